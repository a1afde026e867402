// Products with bf16 weights in tiles: up to sixteen rows cost about what one does. One row takes this way too, for a
// tile's instruction adds in another order than those of vectors.

#pragma once

#include "dense.hpp"
#include "tiles.hpp"

#ifdef __AMX_BF16__

namespace {

struct TiledDense : Dense<bf16> {
  static constexpr int TALLEST = TILE_ROWS;
  static constexpr int STEP = TILE_BYTES / 2;  // inputs of a tile

  // Tiles 0 to 3 have the sums of a panel each, 4 and 6 the activations, 5 and 7 the weights: the last two of what is
  // left of the inputs after whole steps.
  static void prepare(int rows, const Matrix& w) {
    TileShapes shapes;
    shapes.set({0, 1, 2, 3}, rows, TILE_BYTES);
    shapes.set({4}, rows, TILE_BYTES);
    shapes.set({5}, TILE_ROWS, TILE_BYTES);
    if (const int left = w.inputs % STEP) {
      shapes.set({6}, rows, 2 * left);
      shapes.set({7}, left / 2, TILE_BYTES);
    }
    shapes.load();
  }

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    static_assert(P <= 4);
    const size_t panel_size = size_t(w.inputs) * LANES;
    const bf16* weights = (const bf16*)w.weights + panel * panel_size;
    const bf16* rows = x.halves + size_t(row) * w.inputs;
    const int whole = w.inputs / STEP * STEP;
    clear<P>();
    for (int k = 0; k < whole; k += STEP) {
      _tile_loadd(4, rows + k, 2 * w.inputs);
      each_of<P>([&](auto p) __attribute__((always_inline)) {
        const bf16* own = weights + p * panel_size + size_t(k) * LANES;
        for (int i = 0; i < TILE_ROWS; i++) __builtin_prefetch((const char*)own + AHEAD + i * TILE_BYTES);
        _tile_loadd(5, own, TILE_BYTES);
        add<p>();
      });
    }
    if (whole < w.inputs) {
      _tile_loadd(6, rows + whole, 2 * w.inputs);
      each_of<P>([&](auto p) __attribute__((always_inline)) {
        _tile_loadd(7, weights + p * panel_size + size_t(whole) * LANES, TILE_BYTES);
        add_rest<p>();
      });
    }
    put<P>(out);
  }

 private:
  // The compiler wants a tile's number as a literal.
  template <int SUMS>
  [[gnu::always_inline]] static void add() {
    if constexpr (SUMS == 0) _tile_dpbf16ps(0, 4, 5);
    if constexpr (SUMS == 1) _tile_dpbf16ps(1, 4, 5);
    if constexpr (SUMS == 2) _tile_dpbf16ps(2, 4, 5);
    if constexpr (SUMS == 3) _tile_dpbf16ps(3, 4, 5);
  }

  template <int SUMS>
  [[gnu::always_inline]] static void add_rest() {
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

  template <int P>
  [[gnu::always_inline]] static void put(f32x16* out) {
    _tile_stored(0, out, P * TILE_BYTES);
    if constexpr (P > 1) {
      _tile_stored(1, out + 1, P * TILE_BYTES);
      _tile_stored(2, out + 2, P * TILE_BYTES);
      _tile_stored(3, out + 3, P * TILE_BYTES);
    }
  }
};

}  // namespace

#endif
