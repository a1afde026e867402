// Attention in tiles: up to sixteen queries go through keys and values for about the time of one. One query takes this
// way too, for a tile's instruction adds in another order than those of vectors.

#pragma once

#include <type_traits>

#include "panels.hpp"
#include "tiles.hpp"

namespace {

#ifdef __AMX_BF16__

template <class T>
inline bool attends_in_tiles() {
  return std::is_same_v<T, bf16> && may_use_tiles();
}

class TiledAttention {
 public:
  // Writes the products of `height` queries [dim] with some panels of keys, times `scale`; keys(panel) is where one
  // lies. Scores of a query are `stride` apart from those of the next.
  template <class F>
  static void score(int height, const bf16* queries, int dim, Part panels, F&& keys, float scale, float* scores,
                    size_t stride) {
    prepare(height, dim % STEP);
    int p = panels.first;
    const auto next = [&](int panel) { return keys(std::min(panel, panels.last - 1)); };
    const auto write = [&](auto count) {
      clear<count>();
      for (int k = 0; k < dim; k += STEP) {
        const bool is_whole = k + STEP <= dim;
        load_rows(is_whole, queries + k, dim);
        each_of<count>([&](auto i) __attribute__((always_inline)) {
          const bf16* ahead = next(p + count + i) + size_t(k) * LANES;
          for (int line = 0; line < TILE_ROWS; line++) __builtin_prefetch(ahead + line * 2 * LANES);
          add<i>(is_whole, keys(p + i) + size_t(k) * LANES, 2 * LANES);
        });
      }
      store<count>(scores + p * LANES, LANES, stride);
      for (int i = 0; i < height; i++)
        for (int t = p * LANES; t < (p + count) * LANES; t += LANES)
          store16(scores + i * stride + t, load(scores + i * stride + t) * scale);
      p += count;
    };
    while (p + WIDE <= panels.last) write(std::integral_constant<int, WIDE>());
    while (p < panels.last) write(std::integral_constant<int, 1>());
    give_tiles_back();
  }

  // Sums some panels of dimensions of the values at `positions`, whole blocks and the beginning of one, by the shares
  // of `height` queries; values(block) is where those of 32 positions lie. Sums behind others go on from
  // begun(query, panel). finish(query, panel, 16 sums) receives them.
  template <class F, class G, class H>
  static void gather(int height, const bf16* shares, size_t stride, Part positions, int dim, Part panels, F&& values,
                     G&& begun, H&& finish) {
    const int length = positions.last;
    // A last single value has a zero beside it.
    prepare(height, (length + length % 2) % STEP);
    alignas(64) float sums[TILE_ROWS][WIDE * LANES];
    int p = panels.first;
    const auto write = [&](auto count) {
      clear<count>();
      if (positions.first) {
        for (int i = 0; i < height; i++)
          for (int own = 0; own < count; own++) store16(sums[i] + own * LANES, begun(i, p + own));
        resume<count>(sums[0], LANES, WIDE * LANES);
      }
      for (int t = positions.first; t < length; t += STEP) {
        const bool is_whole = t + STEP <= length + length % 2;
        const bf16 *block = values(t / STEP), *ahead = values(std::min(t / STEP + 1, (length - 1) / STEP));
        load_rows(is_whole, shares + t, stride);
        each_of<count>([&](auto i) __attribute__((always_inline)) {
          const int panel = (p + i) * 2 * LANES;
          for (int line = 0; line < TILE_ROWS; line++) __builtin_prefetch(ahead + panel + size_t(line) * 2 * dim);
          add<i>(is_whole, block + panel, 2 * dim);
        });
      }
      store<count>(sums[0], LANES, WIDE * LANES);
      for (int i = 0; i < height; i++)
        for (int own = 0; own < count; own++) finish(i, p + own, load(sums[i] + own * LANES));
      p += count;
    };
    while (p + WIDE <= panels.last) write(std::integral_constant<int, WIDE>());
    while (p < panels.last) write(std::integral_constant<int, 1>());
    give_tiles_back();
  }

 private:
  static constexpr int STEP = TILE_BYTES / 2;  // dimensions of a query, or positions, that a tile holds

  // Tiles 0 to 3 have the sums of a panel each, 4 and 6 the queries or shares, 5 and 7 what they are multiplied with:
  // the last two of what is `left` after whole steps.
  static void prepare(int height, int left) {
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

  [[gnu::always_inline]] static void load_rows(bool is_whole, const bf16* rows, size_t stride) {
    if (is_whole)
      _tile_loadd(4, rows, 2 * stride);
    else
      _tile_loadd(6, rows, 2 * stride);
  }

  // The compiler wants a tile's number as a literal.
  template <int SUMS>
  [[gnu::always_inline]] static void add(bool is_whole, const bf16* pairs, size_t stride) {
    if (is_whole) {
      _tile_loadd(5, pairs, 2 * stride);
      if constexpr (SUMS == 0) _tile_dpbf16ps(0, 4, 5);
      if constexpr (SUMS == 1) _tile_dpbf16ps(1, 4, 5);
      if constexpr (SUMS == 2) _tile_dpbf16ps(2, 4, 5);
      if constexpr (SUMS == 3) _tile_dpbf16ps(3, 4, 5);
      return;
    }
    _tile_loadd(7, pairs, 2 * stride);
    if constexpr (SUMS == 0) _tile_dpbf16ps(0, 6, 7);
    if constexpr (SUMS == 1) _tile_dpbf16ps(1, 6, 7);
    if constexpr (SUMS == 2) _tile_dpbf16ps(2, 6, 7);
    if constexpr (SUMS == 3) _tile_dpbf16ps(3, 6, 7);
  }

  template <int P>
  [[gnu::always_inline]] static void clear() {
    _tile_zero(0);
    if constexpr (P > 1) {
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }

  // Reads what `store` wrote.
  template <int P>
  [[gnu::always_inline]] static void resume(const float* sums, size_t apart, size_t stride) {
    _tile_loadd(0, sums, 4 * stride);
    if constexpr (P > 1) {
      _tile_loadd(1, sums + apart, 4 * stride);
      _tile_loadd(2, sums + 2 * apart, 4 * stride);
      _tile_loadd(3, sums + 3 * apart, 4 * stride);
    }
  }

  // Writes a panel's sums each `apart` from the last one's; rows are `stride` apart.
  template <int P>
  [[gnu::always_inline]] static void store(float* out, size_t apart, size_t stride) {
    _tile_stored(0, out, 4 * stride);
    if constexpr (P > 1) {
      _tile_stored(1, out + apart, 4 * stride);
      _tile_stored(2, out + 2 * apart, 4 * stride);
      _tile_stored(3, out + 3 * apart, 4 * stride);
    }
  }
};

#else

template <class T>
constexpr bool attends_in_tiles() {
  return false;
}

#endif

}  // namespace
