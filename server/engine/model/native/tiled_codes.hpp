// Products of weights of few bits in tiles: sixteen rows of activations are multiplied with a block of sixteen outputs
// at once. Products of codes are exact in integers, and are scaled as in rounded_codes.hpp: so a row
// has the same bits here and there.

#pragma once

#include "rounded_codes.hpp"
#include "tiles.hpp"

#ifdef __AMX_INT8__

namespace {

constexpr int FEWEST_TILED = 4;  // rows; of fewer the tiles would be mostly empty

// Blocks between those that are unpacked, multiplied and scaled: what was just stored takes long to be read.
constexpr int LAG = 2, UNDER_WAY = 4;

template <int BITS, int GROUP, bool IS_FINE>
struct TiledCodes : Codes<BITS, GROUP> {
  using Base = Codes<BITS, GROUP>;
  static constexpr int GROUPS = Base::GROUPS;
  static constexpr int HEIGHT = IS_FINE ? 2 : 1;   // tile rows of a row: its upper and its lower half
  static constexpr int TALL = TILE_ROWS / HEIGHT;  // rows of a full tile
  static constexpr int TALLEST = TILE_ROWS;        // so that their sums fit the registers

  // Tiles 0 and 3 have the sums, 1 and 4 the activations, 2 the codes.
  static void prepare(int rows, const Matrix&) {
    TileShapes shapes;
    const int first = std::min(rows, TALL), rest = rows - first;
    shapes.set({0}, first * HEIGHT, TILE_BYTES);
    shapes.set({1}, first * HEIGHT, GROUP);
    shapes.set({2}, GROUP / 4, TILE_BYTES);
    if (rest > 0) {
      shapes.set({3}, rest * HEIGHT, TILE_BYTES);
      shapes.set({4}, rest * HEIGHT, GROUP);
    }
    shapes.load();
  }

  // Of a block with R rows.
  template <int R>
  struct Products {
    int32_t sums[GROUPS][R * HEIGHT][LANES];
  };

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    static_assert(P == 1);
    const int blocks = w.inputs / BLOCK, stride = x.stride / HEIGHT;
    const uint8_t* codes = (const uint8_t*)w.weights + size_t(panel) * blocks * block_bytes(BITS);
    const int8_t* rows = x.codes + size_t(row) * x.stride;
    const BlockScale* mine = x.blocks + size_t(row) * blocks;
    const Scales<GROUP> scales(w, panel, 0);
    alignas(64) uint8_t unpacked[UNDER_WAY][QUADS * TILE_BYTES];
    alignas(64) Products<R> products[UNDER_WAY];
    floats acc[R] = {};
    for (int b = 0; b < blocks + 2 * LAG; b++) {
      if (b < blocks) unpack(codes + b * block_bytes(BITS), unpacked[b % UNDER_WAY]);
      if (const int next = b - LAG; next >= 0 && next < blocks)
        multiply_block<R>(unpacked[next % UNDER_WAY], rows + next * BLOCK, stride, products[next % UNDER_WAY]);
      if (const int last = b - 2 * LAG; last >= 0)
        scale_block(products[last % UNDER_WAY], scales, last, mine + last, blocks, acc);
    }
    for (int r = 0; r < R; r++) out[r] = acc[r];
  }

 private:
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, uint8_t* to) {
    for (size_t i = 0; i < block_bytes(BITS); i += 64) __builtin_prefetch(codes + AHEAD + i);
    const Block<BITS> block{codes, 0};
#pragma GCC unroll 8
    for (int i = 0; i < QUADS; i++) *(bytes*)(to + TILE_BYTES * i) = block.quad(i);
  }

  template <int R>
  [[gnu::always_inline]] static void multiply_block(const uint8_t* codes, const int8_t* rows, int stride,
                                                    Products<R>& out) {
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
      _tile_zero(0);
      _tile_loadd(2, codes + g * GROUP * LANES, TILE_BYTES);
      _tile_loadd(1, rows + g * GROUP, stride);
      _tile_dpbsud(0, 1, 2);
      _tile_stored(0, out.sums[g], TILE_BYTES);
      if constexpr (R > TALL) {
        _tile_zero(3);
        _tile_loadd(4, rows + TALL * HEIGHT * stride + g * GROUP, stride);
        _tile_dpbsud(3, 4, 2);
        _tile_stored(3, out.sums[g][TALL * HEIGHT], TILE_BYTES);
      }
    }
  }

  template <int R>
  [[gnu::always_inline]] static void scale_block(const Products<R>& products, const Scales<GROUP>& scales, int block,
                                                 const BlockScale* mine, int stride, floats (&acc)[R]) {
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
      const Scale scale = scales[block * GROUPS + g];
      each_of<R>([&](auto r) __attribute__((always_inline)) {
        ints dots = *(const ints*)products.sums[g][r * HEIGHT];
        if constexpr (IS_FINE) dots = (dots << 7) + *(const ints*)products.sums[g][r * HEIGHT + 1];
        add_scaled<GROUPS>(acc[r], scale, mine[size_t(r) * stride], g, dots);
      });
    }
  }
};

}  // namespace

#endif
