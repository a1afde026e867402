// Products of rows with a matrix, whatever its weights are: `multiply` finds the code for them.

#pragma once

#include <utility>

#include "codes.hpp"
#include "dense.hpp"
#include "rounded_codes.hpp"
#include "tiled_codes.hpp"
#include "tiled_dense.hpp"

namespace {

// Sums of R rows and P panels, R x P vectors.
using Sums = void (*)(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out);

// The code for one kind of weights, and how many rows and panels fit the registers at once.
struct Product {
  const Sums* by_height;  // for 1 to `tallest` rows
  int tallest, panels;
  void (*prepare)(int rows, const Matrix& w) = nullptr;  // where tiles are to be shaped for so many
};

template <class Kind, int P, int... R>
inline Product product_of(std::integer_sequence<int, R...>) {
  static constexpr Sums by_height[] = {&Kind::template sums<R + 1, P>...};
  Product product{by_height, sizeof...(R), P};
  if constexpr (requires { &Kind::prepare; }) product.prepare = &Kind::prepare;
  return product;
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
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, bf16>)
    if (may_use_tiles()) return panels >= WIDE ? product_of<TiledDense, WIDE>() : product_of<TiledDense>();
#endif
  if (rows == 1 && panels >= 2 * WIDE) return product_of<DenseRow<T>, 2 * WIDE>();
  return panels >= ABREAST ? product_of<Dense<T>, ABREAST>() : product_of<Dense<T>, 1>();
}

template <int BITS, int GROUP>
inline Product product_for(Codes<BITS, GROUP>, const Matrix& w, int rows, int) {
  constexpr int FINE = fine_shift(BITS);
#ifdef __AMX_INT8__
  if (rows >= FEWEST_TILED && w.input_bits < 32 && may_use_tiles())
    return w.input_bits == 8 ? product_of<TiledCodes<BITS, GROUP, 0>>() : product_of<TiledCodes<BITS, GROUP, FINE>>();
#endif
  if (w.input_bits == 8) return product_of<RoundedCodes<BITS, GROUP, 0>>();
  if (w.input_bits == 16) return product_of<RoundedCodes<BITS, GROUP, FINE>>();
  return product_of<ExactCodes<BITS, GROUP>>();
}

constexpr int MOST_SUMS = 64;    // of dense weights in tiles
constexpr int NEAR = 128 << 10;  // bytes of weights that stay in a near cache while all rows use them

// Calls finish(row, first output, 16 sums) for each row and some panels. As many panels as stay near are multiplied
// with a tile of rows, which stay nearer still, then with the next one. Tiles have about the same height: 7 rows are 3
// and 4, not 6 and 1.
template <class F>
inline void multiply(Part some, const Inputs& x, const Matrix& w, F&& finish) {
  f32x16 sums[MOST_SUMS];
  const int near = std::max(NEAR / (w.inputs * LANES / 8 * w.bits) / (2 * WIDE), 1) * 2 * WIDE;
  for (int begin = some.first; begin < some.last; begin += near) {
    const int end = std::min(begin + near, some.last);
    const auto product_at = [&](int panel) {
      return with_kind(w, [&](auto kind) { return product_for(kind, w, x.count, end - panel); });
    };
    const Product first = product_at(begin);
    const int tiles = (x.count + first.tallest - 1) / first.tallest;
    for (int tile = 0; tile < tiles; tile++) {
      const auto [row, last] = part(x.count, tile, tiles);
      if (first.prepare) first.prepare(last - row, w);
      for (int p = begin; p < end;) {
        const Product product = product_at(p);
        product.by_height[last - row - 1](w, x, row, p, sums);
        for (int r = 0; r < last - row; r++)
          for (int i = 0; i < product.panels; i++) {
            const int output = (p + i) * LANES;
            const f32x16& own = sums[r * product.panels + i];
            finish(row + r, output, w.bias ? own + load(w.bias + output) : own);
          }
        p += product.panels;
      }
    }
    if (first.prepare) give_tiles_back();
  }
}

// The weights of one output, as fp32: a token's embedding.
inline void read_output(const Matrix& w, int output, float* to) {
  with_kind(w, [&](auto kind) { kind.read(w, output, to); });
}

}  // namespace
