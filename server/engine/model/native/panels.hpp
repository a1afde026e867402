// Products with weights in panels. A panel holds the weights of 16 outputs, the order in which a processor reads them:
// one vector brings one input's 16 weights, and each output has its own lane, so no lane is ever added to another.
// A cache of keys or values is laid out the same way (cache.hpp), so attention uses these products too.

#pragma once

#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "team.hpp"
#include "vectors.hpp"

namespace {

// Two consecutive inputs of `WIDTH` outputs, and the product with one row's two activations. bf16 panels interleave the
// pair in 32-bit lanes, which is what the bf16 dot-product instruction takes; its activations are bf16 too.
template <class T>
struct Pair;

template <>
struct Pair<float> {
  using Activation = float;
  floats even, odd;
  explicit Pair(const float* w) : even(*(const floats*)w), odd(*(const floats*)(w + LANES)) {}
  floats add(floats acc, const float* x) const { return acc + even * x[0] + odd * x[1]; }
  static int element(int parity, int output) { return parity * LANES + output; }
};

#ifdef __AVX512BF16__
template <>
struct Pair<bf16> {
  using Activation = bf16;
  __m512bh both;
  explicit Pair(const bf16* w) : both((__m512bh)_mm512_loadu_si512(w)) {}
  floats add(floats acc, const bf16* x) const {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (floats)_mm512_dpbf16_ps((__m512)acc, both, (__m512bh)_mm512_set1_epi32(pair));
  }
  static int element(int parity, int output) { return 2 * output + parity; }
};
#else
template <>
struct Pair<bf16> {
  using Activation = float;
  floats even, odd;
  explicit Pair(const bf16* w) {
    const words both = *(const words*)w;
    even = (floats)(both << 16);
    odd = (floats)(both & 0xffff0000u);
  }
  floats add(floats acc, const float* x) const { return acc + even * x[0] + odd * x[1]; }
  static int element(int parity, int output) { return 2 * output + parity; }
};
#endif

// What is multiplied with weights of type T.
template <class T>
using Activation = typename Pair<T>::Activation;

inline int panels(int outputs) { return (outputs + LANES - 1) / LANES; }

// Adds the products of R rows with the first `WIDTH` outputs of P panels; `x_stride` apart are the rows, `pair_stride`
// the pairs of inputs in a panel. The panels behind these may be fetched meanwhile: the processor's own prefetching
// ends at each page of 4 KB.
template <bool FETCH_NEXT, int R, int P, class T>
inline void accumulate(floats (&acc)[R][P], const Activation<T>* x, size_t x_stride, const T* w, size_t pair_stride,
                       size_t panel_stride, int inputs) {
  for (int k = 0; k < inputs; k += 2, w += pair_stride)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      if constexpr (FETCH_NEXT) __builtin_prefetch(w + (P + p) * panel_stride);
      Pair<T> pair(w + p * panel_stride);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) acc[r][p] = pair.add(acc[r][p], x + r * x_stride + k);
    }
}

// The same of panels that lie anywhere, while those of `next` are fetched.
template <int R, int P, class T>
inline void accumulate(floats (&acc)[R][P], const Activation<T>* x, size_t x_stride, const T* const (&w)[P],
                       const T* const (&next)[P], size_t pair_stride, int inputs) {
  for (int k = 0; k < inputs; k += 2)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      __builtin_prefetch(next[p] + k / 2 * pair_stride);
      Pair<T> pair(w[p] + k / 2 * pair_stride);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][p] = pair.add(acc[r][p], x + r * x_stride + k);
    }
}

constexpr int TILE = WIDTH == 16 ? 6 : 3;  // rows of activations that fit the registers beside `WIDE` panels
constexpr int WIDE = 4;
constexpr int AHEAD = 4096;  // bytes that are fetched before their turn; several rows take longer than the memory

// Calls body(count) with 1 to TILE rows as a compile-time constant, so that their sums can live in registers.
template <class F>
inline void with_constant(int count, F&& body) {
  const auto call = [&]<int... N>(std::integer_sequence<int, N...>) {
    ((count == N + 1 && (body(std::integral_constant<int, N + 1>{}), true)) || ...);
  };
  call(std::make_integer_sequence<int, TILE>());
}

}  // namespace
