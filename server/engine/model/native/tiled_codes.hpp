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

template <int BITS, int GROUP, int SHIFT>
struct TiledCodes : Codes<BITS, GROUP> {
  using Base = Codes<BITS, GROUP>;
  static constexpr int GROUPS = Base::GROUPS;
  static constexpr bool ARE_TOGETHER = SHIFT != 0 && SHIFT != APART;
  static constexpr int PARTS = ARE_TOGETHER ? 2 : 1;        // of a tile's rows
  static constexpr int HEIGHT = SHIFT == APART ? 2 : 1;     // tile rows of a row, one for each part that is apart
  static constexpr int TALL = TILE_ROWS / HEIGHT;           // rows of a full tile
  static constexpr int TALLEST = TILE_ROWS;                 // so that their sums fit the registers
  static constexpr int BYTES = PARTS * QUADS * TILE_BYTES;  // of a block that is unpacked

  static constexpr int ROW_TILE = 4, CODE_TILE = 6;  // tiles 0 to 3 have the sums of two turns

  static void prepare(int rows, const Matrix&) {
    // Rows beyond a full tile have the second sums of a turn; of lower ones these are a second group's.
    TileShapes shapes;
    const int first = std::min(rows, TALL), rest = rows - first;
    shapes.set({0, 1, 2, 3}, first * HEIGHT, TILE_BYTES);
    shapes.set({ROW_TILE}, first * HEIGHT, PARTS * GROUP);
    shapes.set({CODE_TILE}, PARTS * GROUP / 4, TILE_BYTES);
    if (rest > 0) {
      shapes.set({1, 3}, rest * HEIGHT, TILE_BYTES);
      shapes.set({ROW_TILE + 1}, rest * HEIGHT, PARTS * GROUP);
    }
    shapes.load();
  }

  // Of a block with R rows.
  template <int R>
  struct Products {
    int32_t sums[GROUPS][R * HEIGHT][LANES];
  };

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& inputs, int row, int panel, f32x16* out) {
    static_assert(P == 1);
    const Rounded& x = inputs.rounded[SHIFT];
    const int blocks = w.inputs / BLOCK, stride = x.stride / HEIGHT;
    const uint8_t* codes = (const uint8_t*)w.weights + size_t(panel) * blocks * block_bytes(BITS);
    const int8_t* rows = x.codes + size_t(row) * x.stride;
    const BlockScale* mine = x.blocks + size_t(row) * blocks;
    const Scales<GROUP> scales(w, panel, 0);
    alignas(64) uint8_t unpacked[UNDER_WAY][BYTES];
    alignas(64) Products<R> products[UNDER_WAY];
    floats acc[R];
    each_of<R>([&](auto r) __attribute__((always_inline)) { acc[r] = floats{}; });
    const auto step = [&](int b, auto tile) __attribute__((always_inline)) {
      if (b < blocks) unpack(codes + b * block_bytes(BITS), unpacked[b % UNDER_WAY]);
      if (const int done = b - LAG - 1; done >= 0 && done < blocks) store_block<!tile>(products[done % UNDER_WAY]);
      if (const int next = b - LAG; next >= 0 && next < blocks)
        multiply_block<R, tile>(unpacked[next % UNDER_WAY], rows + next * PARTS * BLOCK, stride);
      if (const int last = b - 2 * LAG - 1; last >= 0 && last < blocks)
        scale_block(products[last % UNDER_WAY], scales, last, mine + last, blocks, acc);
    };
    for (int b = 0; b < blocks + 2 * LAG + 1; b += 2) {
      step(b, std::integral_constant<int, 0>());
      step(b + 1, std::integral_constant<int, 1>());
    }
    each_of<R>([&](auto r) __attribute__((always_inline)) { out[r] = acc[r]; });
  }

 private:
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, uint8_t* to) {
    for (size_t i = 0; i < block_bytes(BITS); i += 64) __builtin_prefetch(codes + AHEAD + i);
    const Block<BITS> block{codes, 0};
#pragma GCC unroll 8
    for (int i = 0; i < QUADS; i++) {
      const bytes quad = block.quad(i);
      uint8_t* place = to + TILE_BYTES * (ARE_TOGETHER ? i / 4 * 8 + i % 4 : i);
      if constexpr (ARE_TOGETHER) {
        *(bytes*)place = (bytes)((words)quad << SHIFT);  // within its byte
        place += 4 * TILE_BYTES;
      }
      *(bytes*)place = quad;
    }
  }

  // Into the sums of one of two turns.
  template <int R, int TURN>
  [[gnu::always_inline]] static void multiply_block(const uint8_t* codes, const int8_t* rows, int stride) {
    each_of<GROUPS>([&](auto g) __attribute__((always_inline)) {
      load_tile<CODE_TILE>(codes + g * PARTS * GROUP * LANES, TILE_BYTES);
      multiply_tile<2 * TURN + g, ROW_TILE>(rows + g * PARTS * GROUP, stride);
      if constexpr (R > TALL) multiply_tile<2 * TURN + 1, ROW_TILE + 1>(rows + TALL * HEIGHT * stride, stride);
    });
  }

  template <int SUMS, int ROWS>
  [[gnu::always_inline]] static void multiply_tile(const int8_t* rows, int stride) {
    clear_tile<SUMS>();
    load_tile<ROWS>(rows, stride);
    multiply_tiles<SUMS, ROWS, CODE_TILE>();
  }

  template <int TURN, int R>
  [[gnu::always_inline]] static void store_block(Products<R>& out) {
    each_of<GROUPS>([&](auto g) __attribute__((always_inline)) {
      store_tile<2 * TURN + g>(out.sums[g], TILE_BYTES);
      if constexpr (R > TALL) store_tile<2 * TURN + 1>(out.sums[g][TALL * HEIGHT], TILE_BYTES);
    });
  }

  template <int R>
  [[gnu::always_inline]] static void scale_block(const Products<R>& products, const Scales<GROUP>& scales, int block,
                                                 const BlockScale* mine, int stride, floats (&acc)[R]) {
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
      const Scale scale = scales[block * GROUPS + g];
      each_of<R>([&](auto r) __attribute__((always_inline)) {
        ints dots = *(const ints*)products.sums[g][r * HEIGHT];
        if constexpr (HEIGHT == 2) dots = (dots << APART) + *(const ints*)products.sums[g][r * HEIGHT + 1];
        add_scaled<GROUPS>(acc[r], scale, mine[size_t(r) * stride], g, dots);
      });
    }
  }
};

}  // namespace

#endif
