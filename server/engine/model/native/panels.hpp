// Products with weights in panels. A panel holds the weights of 16 outputs, the order in which a processor reads them:
// one vector brings one input's 16 weights, and each output has its own lane, so no lane is ever added to another.
// A cache of keys or values is laid out the same way (cache.hpp), so attention uses these products too.

#pragma once

#include <type_traits>

#include "team.hpp"
#include "vectors.hpp"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

// Two consecutive inputs of 16 outputs, and the product with one row's two activations. bf16 panels interleave the
// pair in 32-bit lanes, which is what the bf16 dot-product instruction takes; its activations are bf16 too.
template <class T>
struct Pair;

template <>
struct Pair<float> {
  using Activation = float;
  f32x16 even, odd;
  explicit Pair(const float* w) : even(load(w)), odd(load(w + LANES)) {}
  f32x16 add(f32x16 acc, const float* x) const { return acc + even * x[0] + odd * x[1]; }
  static int element(int parity, int output) { return parity * LANES + output; }
};

#ifdef __AVX512BF16__
template <>
struct Pair<bf16> {
  using Activation = bf16;
  __m512bh both;
  explicit Pair(const bf16* w) : both((__m512bh)_mm512_loadu_si512(w)) {}
  f32x16 add(f32x16 acc, const bf16* x) const {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, both, (__m512bh)_mm512_set1_epi32(pair));
  }
  static int element(int parity, int output) { return 2 * output + parity; }
};
#else
template <>
struct Pair<bf16> {
  using Activation = float;
  f32x16 even, odd;
  explicit Pair(const bf16* w) {
    u32x16 both;
    std::memcpy(&both, w, sizeof both);
    even = (f32x16)(both << 16);
    odd = (f32x16)(both & 0xffff0000u);
  }
  f32x16 add(f32x16 acc, const float* x) const { return acc + even * x[0] + odd * x[1]; }
  static int element(int parity, int output) { return 2 * output + parity; }
};
#endif

// What is multiplied with weights of type T.
template <class T>
using Activation = typename Pair<T>::Activation;

inline int panels(int outputs) { return (outputs + LANES - 1) / LANES; }

// Adds the products of R rows with P panels; `x_stride` apart are the rows, `pair_stride` the pairs of inputs in a
// panel. The panels behind these may be fetched meanwhile: the processor's own prefetching ends at each page of 4 KB.
template <bool FETCH_NEXT, int R, int P, class T>
inline void accumulate(f32x16 (&acc)[R][P], const Activation<T>* x, size_t x_stride, const T* w, size_t pair_stride,
                       size_t panel_stride, int inputs) {
  for (int k = 0; k < inputs; k += 2, w += pair_stride)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      if constexpr (FETCH_NEXT) __builtin_prefetch(w + (P + p) * panel_stride);
      Pair<T> pair(w + p * panel_stride);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][p] = pair.add(acc[r][p], x + r * x_stride + k);
    }
}

constexpr int TILE = 6;  // rows of activations that fit the registers beside four panels

// Calls body(count) with 1 to TILE rows as a compile-time constant, so that their sums can live in registers.
template <class F>
inline void with_constant(int count, F&& body) {
  switch (count) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 6: return body(std::integral_constant<int, 6>{});
  }
}

// Never inlined: among its callers' variables the sums find fewer registers, which costs 2% of a pass with AVX2.
template <int R, int P, class T, class F>
[[gnu::noinline]] void multiply_block(int row, const Activation<T>* x, const T* w, int inputs, int panel, F& finish) {
  f32x16 acc[R][P] = {};
  const size_t panel_size = size_t(inputs) * LANES;
  accumulate<(R > 1)>(acc, x + size_t(row) * inputs, inputs, w + panel * panel_size, 2 * LANES, panel_size, inputs);
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) finish(row + r, (panel + p) * LANES, acc[r][p]);
}

// Rows in tiles of about the same height: 7 rows are 3 and 4, not 6 and 1.
template <int P, class T, class F>
inline void multiply_rows(int count, const Activation<T>* x, const T* w, int inputs, int panel, F& finish) {
  const int tiles = (count + TILE - 1) / TILE;
  for (int tile = 0; tile < tiles; tile++) {
    auto [row, end] = part(count, tile, tiles);
    with_constant(end - row,
                  [&, row = row](auto height) { multiply_block<height, P>(row, x, w, inputs, panel, finish); });
  }
}

// Calls finish(row, first output, 16 sums) for each of `count` rows and some panels. A group of panels stays in the
// nearest cache while all rows use it.
template <class T, class F>
inline void multiply(Part some, int count, const Activation<T>* x, const T* w, int inputs, F&& finish) {
  auto [p, last] = some;
  if (count == 1)
    for (; p + 8 <= last; p += 8) multiply_block<1, 8>(0, x, w, inputs, p, finish);
  for (; p + 4 <= last; p += 4) multiply_rows<4>(count, x, w, inputs, p, finish);
  for (; p < last; p++) multiply_rows<1>(count, x, w, inputs, p, finish);
}

}  // namespace
