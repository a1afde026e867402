// Products with weights that are numbers, fp32 or bf16, in panels.

#pragma once

#include "inputs.hpp"
#include "panels.hpp"

namespace {

// Panels that several rows are multiplied with at once. Where registers hold the sums of ten rows beside two panels,
// checks of up to ten read the weights once.
constexpr int ABREAST = WIDTH == 16 ? 2 : WIDE;

// Products with numbers of type T in a matrix.
template <class T>
struct Dense {
  static constexpr int TALLEST = WIDTH == 16 ? 10 : TILE;  // rows whose sums fit the registers beside `ABREAST` panels

  // Never inlined: among its callers' variables the sums find fewer registers, which costs 2% of a pass with AVX2.
  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    const size_t panel_size = size_t(w.inputs) * LANES;
    const T* weights = (const T*)w.weights + panel * panel_size;
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[R][P] = {};
      accumulate<(R > 1)>(acc, x.as<T>() + size_t(row) * w.inputs, w.inputs, weights + Pair<T>::element(0, lane),
                          2 * LANES, panel_size, w.inputs);
      for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) put(acc[r][p], out + r * P + p, lane);
    }
  }

  // One output's weights, as fp32.
  static void read(const Matrix& w, int output, float* to) {
    const T* panel = (const T*)w.weights + size_t(output / LANES) * w.inputs * LANES;
    for (int i = 0; i < w.inputs; i++)
      to[i] = to_float(panel[i / 2 * 2 * LANES + Pair<T>::element(i % 2, output % LANES)]);
  }
};

template <class T>
struct DenseRow : Dense<T> {
  static constexpr int TALLEST = 1;
};

}  // namespace
