// Products with bf16 weights in tiles: up to sixteen rows cost about what one does. One row takes this way too, for a
// tile's instruction adds in another order than those of vectors.

#pragma once

#include "dense.hpp"
#include "tiled_halves.hpp"

#ifdef __AMX_BF16__

namespace {

struct TiledDense : Dense<bf16>, TiledHalves {
  static constexpr int TALLEST = TILE_ROWS;

  static void prepare(int rows, const Matrix& w) { shape(rows, w.inputs % STEP); }

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    static_assert(P <= 4);
    const size_t panel_size = size_t(w.inputs) * LANES;
    const bf16* weights = (const bf16*)w.weights + panel * panel_size;
    const bf16* rows = x.halves + size_t(row) * w.inputs;
    clear<P>();
    for (int k = 0; k < w.inputs; k += STEP) {
      const bool is_whole = k + STEP <= w.inputs;
      load_rows(is_whole, rows + k, w.inputs);
      each_of<P>([&](auto p) __attribute__((always_inline)) {
        const bf16* own = weights + p * panel_size + size_t(k) * LANES;
        for (int i = 0; i < TILE_ROWS; i++) __builtin_prefetch((const char*)own + AHEAD + i * TILE_BYTES);
        add<p>(is_whole, own, 2 * LANES);
      });
    }
    store<P>((float*)out, LANES, P * LANES);
  }
};

}  // namespace

#endif
