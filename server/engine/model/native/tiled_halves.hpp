// Products of numbers in bf16 by tiles: of sixteen rows at most with as many columns, for some panels of them at once.

#pragma once

#include "panels.hpp"
#include "tiles.hpp"

#ifdef __AMX_BF16__

namespace {

// Tiles 0 to 3 have the sums of a panel each, 4 and 6 the rows, 5 and 7 what they are multiplied with: the last two of
// what is `left` of the numbers that are summed over after whole steps.
struct TiledHalves {
  static constexpr int STEP = TILE_BYTES / 2;  // numbers of a row that a tile holds

  static void shape(int height, int left) {
    TileShapes shapes;
    shapes.set({0, 1, 2, 3}, height, TILE_BYTES);
    shapes.set({4}, height, TILE_BYTES);
    shapes.set({5}, TILE_ROWS, TILE_BYTES);
    if (left) {
      shapes.set({6}, height, 2 * left);
      shapes.set({7}, left / 2, TILE_BYTES);
    }
    shapes.load();
  }

  // Rows that are `stride` numbers apart.
  [[gnu::always_inline]] static void load_rows(bool is_whole, const bf16* rows, size_t stride) {
    if (is_whole)
      load_tile<4>(rows, 2 * stride);
    else
      load_tile<6>(rows, 2 * stride);
  }

  // Adds the products of the rows with pairs of numbers, which are `stride` apart.
  template <int SUMS>
  [[gnu::always_inline]] static void add(bool is_whole, const bf16* pairs, size_t stride) {
    if (is_whole) {
      load_tile<5>(pairs, 2 * stride);
      multiply_halves<SUMS, 4, 5>();
    } else {
      load_tile<7>(pairs, 2 * stride);
      multiply_halves<SUMS, 6, 7>();
    }
  }

  template <int P>
  [[gnu::always_inline]] static void clear() {
    each_of<P>([](auto p) __attribute__((always_inline)) { clear_tile<p>(); });
  }

  // Reads what `store` wrote.
  template <int P>
  [[gnu::always_inline]] static void resume(const float* sums, size_t apart, size_t stride) {
    each_of<P>([&](auto p) __attribute__((always_inline)) { load_tile<p>(sums + p * apart, 4 * stride); });
  }

  // Writes a panel's sums each `apart` from the last one's; rows are `stride` apart.
  template <int P>
  [[gnu::always_inline]] static void store(float* out, size_t apart, size_t stride) {
    each_of<P>([&](auto p) __attribute__((always_inline)) { store_tile<p>(out + p * apart, 4 * stride); });
  }
};

}  // namespace

#endif
