// Products of rows with a matrix, whatever its weights are: `multiply` finds the code for them.

#pragma once

#include <utility>

#include "codes.hpp"
#include "dense.hpp"
#include "rounded_codes.hpp"

namespace {

// Sums of R rows and P panels, R x P vectors.
using Sums = void (*)(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out);

// The code for one kind of weights, and how many rows and panels fit the registers at once.
struct Product {
  const Sums* by_height;  // for 1 to `tallest` rows
  int tallest, panels;
};

template <class Kind, int P, int... R>
inline Product product_of(std::integer_sequence<int, R...>) {
  static constexpr Sums by_height[] = {&Kind::template sums<R + 1, P>...};
  return {by_height, sizeof...(R), P};
}
template <class Kind, int P = 1>
inline Product product_of() {
  return product_of<Kind, P>(std::make_integer_sequence<int, Kind::TALLEST>());
}

// Calls body with the kind of these weights.
template <class F>
inline auto with_kind(const Matrix& w, F&& body) {
  switch (w.bits * 100 + w.group) {
    case 3200: return body(Dense<float>());
    case 1600: return body(Dense<bf16>());
    case 832: return body(Codes<8, 32>());
    case 532: return body(Codes<5, 32>());
    case 432: return body(Codes<4, 32>());
    case 616: return body(Codes<6, 16>());
    default: return body(Codes<4, 16>());
  }
}

// One code for dense weights reads as many panels at once as are left; a single row has registers for more.
template <class T>
inline Product product_for(Dense<T>, const Matrix&, int rows, int panels) {
  if (rows == 1 && panels >= 2 * WIDE) return product_of<DenseRow<T>, 2 * WIDE>();
  return panels >= WIDE ? product_of<Dense<T>, WIDE>() : product_of<Dense<T>, 1>();
}

template <int BITS, int GROUP>
inline Product product_for(Codes<BITS, GROUP>, const Matrix& w, int, int) {
  if (w.input_bits == 8) return product_of<RoundedCodes<BITS, GROUP, false>>();
  if (w.input_bits == 16) return product_of<RoundedCodes<BITS, GROUP, true>>();
  return product_of<ExactCodes<BITS, GROUP>>();
}

// Calls finish(row, first output, 16 sums) for each row and some panels. A group of panels stays in the nearest cache
// while all rows use it, in tiles of about the same height: 7 rows are 3 and 4, not 6 and 1.
template <class F>
inline void multiply(Part some, const Inputs& x, const Matrix& w, F&& finish) {
  f32x16 sums[TILE * WIDE];  // of the kinds of product, dense weights have the most
  for (auto [p, last] = some; p < last;) {
    const int left = last - p;
    const Product product = with_kind(w, [&](auto kind) { return product_for(kind, w, x.count, left); });
    const int tiles = (x.count + product.tallest - 1) / product.tallest;
    for (int tile = 0; tile < tiles; tile++) {
      const auto [row, end] = part(x.count, tile, tiles);
      product.by_height[end - row - 1](w, x, row, p, sums);
      for (int r = 0; r < end - row; r++)
        for (int i = 0; i < product.panels; i++) {
          const int first = (p + i) * LANES;
          const f32x16& own = sums[r * product.panels + i];
          finish(row + r, first, w.bias ? own + load(w.bias + first) : own);
        }
    }
    p += product.panels;
  }
}

// The weights of one output, as fp32: a token's embedding.
inline void read_output(const Matrix& w, int output, float* to) {
  with_kind(w, [&](auto kind) { kind.read(w, output, to); });
}

}  // namespace
