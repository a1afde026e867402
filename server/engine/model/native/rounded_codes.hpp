// Products of weights of few bits with activations of 8 bits or finer ones. Codes are whole numbers, so the products of
// a group are exact in integers, in whatever order they are added; its sum is scaled once.

#pragma once

#include "codes.hpp"

namespace {

inline int32_t load_four(const void* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return four;
}

#ifdef __AVX512VNNI__

// The products of the codes of a group of `COUNT` quads, from the block's quad `begin` on, with rows of activations.
template <int BITS, int COUNT, int SHIFT>
struct GroupProducts {
  // Calls body(row, sums) for R rows from `row` on, with their block `b`. Both parts of the activations have sums of
  // their own, for a product waits four cycles or more for the one that it is added to.
  template <int R, class F>
  [[gnu::always_inline]] static void each_row(const Block<BITS>& block, int begin, const Rounded& x, int row, int b,
                                              F&& body) {
    constexpr int PARTS = SHIFT == 0 || SHIFT == APART ? 1 : 2;
    bytes quads[COUNT];
    for (int i = 0; i < COUNT; i++) quads[i] = block.quad(begin + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const int8_t* own = x.codes + size_t(row + r) * x.stride + PARTS * (b * BLOCK + 4 * begin);
      const int8_t* lower_own = own + (SHIFT == APART ? x.width : LANES);
      ints upper{}, lower{};
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; i++) {
        const int place = i / 4 * PARTS * LANES + i % 4 * 4;
        upper = add(upper, quads[i], own + place);
        if constexpr (SHIFT > 0) lower = add(lower, quads[i], lower_own + place);
      }
      body(r, SHIFT > 0 ? (upper << SHIFT) + lower : upper);
    }
  }

 private:
  [[gnu::always_inline]] static ints add(ints sums, bytes quad, const int8_t* codes) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)quad, _mm512_set1_epi32(load_four(codes)));
  }
};

#else

typedef int16_t shorts __attribute__((vector_size(4 * WIDTH), aligned(2)));

#ifdef __AVX512BW__
inline ints multiply_pairs(shorts a, shorts b) { return (ints)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
inline shorts multiply_bytes(bytes a, ints b) { return (shorts)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
#else
inline ints multiply_pairs(shorts a, shorts b) { return (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
inline shorts multiply_bytes(bytes a, ints b) { return (shorts)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
#endif

// Adds now. The compiler would multiply everything first, being free to reorder integers, and run out of registers.
template <class V>
inline void add_to(V& sum, V addend) {
  sum += addend;
  asm("" : "+v"(sum));
}

template <int BITS, int COUNT, int SHIFT>
struct GroupProducts {
  template <int R, class F>
  [[gnu::always_inline]] static void each_row(const Block<BITS>& block, int begin, const Rounded& x, int row, int b,
                                              F&& body) {
    ints sums[R] = {};
    const size_t first = size_t(row) * x.width + b * BLOCK + 4 * begin;
    if constexpr (SHIFT > 0) {
      add_wide(sums, block, begin, x.wide + first, x.width);
    } else if constexpr (BITS == 8) {  // in halves, whose products fit 16 bits
      add<4>(sums, [&](int i) { return block.quad(begin + i) & 15; }, 1, x.codes + first, x.width);
      add<4>(sums, [&](int i) { return block.quad(begin + i) >> 4; }, 16, x.codes + first, x.width);
    } else {
      add<BITS>(sums, [&](int i) { return block.quad(begin + i); }, 1, x.codes + first, x.width);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) body(r, sums[r]);
  }

 private:
  // Even and odd bytes of four codes, each two of them a pair of 16 bits.
  template <int R>
  [[gnu::always_inline]] static void add_wide(ints (&sums)[R], const Block<BITS>& block, int begin, const int16_t* x,
                                              size_t stride) {
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i++) {
      const words quad = (words)block.quad(begin + i);
      const shorts even = (shorts)(quad & 0x00ff00ffu), odd = (shorts)(quad >> 8 & 0x00ff00ffu);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const int16_t* own = x + r * stride + 4 * i;
        add_to(sums[r], multiply_pairs(even, (shorts)(ints{} + load_four(own))));
        add_to(sums[r], multiply_pairs(odd, (shorts)(ints{} + load_four(own + 2))));
      }
    }
  }

  // Products of codes of `SIZE` bits are added in 16 bits as long as these hold them.
  template <int SIZE, int R, class F>
  [[gnu::always_inline]] static void add(ints (&sums)[R], F&& quad, int16_t factor, const int8_t* codes,
                                         size_t stride) {
    constexpr int HELD = 32767 / (2 * 127 * ((1 << SIZE) - 1)), STEP = HELD < COUNT ? HELD : COUNT;
#pragma GCC unroll 8
    for (int first = 0; first < COUNT; first += STEP) {
      shorts held[R] = {};
#pragma GCC unroll 8
      for (int i = first; i < first + STEP; i++) {
        const bytes own = quad(i);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
          add_to(held[r], multiply_bytes(own, ints{} + load_four(codes + r * stride + 4 * i)));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sums[r] += multiply_pairs(held[r], shorts{} + factor);
    }
  }
};

#endif

// Adds the products of one row with a block's group `g`, of `GROUPS`.
template <int GROUPS>
[[gnu::always_inline]] inline void add_scaled(floats& acc, const Scale& scale, const BlockScale& mine, int g,
                                              ints dots) {
  acc += scale.scale * mine.scale * __builtin_convertvector(dots, floats);
  acc += scale.minimum * (GROUPS == 1 ? mine.sum : mine.halves[g]);
}

template <int BITS, int GROUP, int SHIFT>
struct RoundedCodes : Codes<BITS, GROUP> {
  using Base = Codes<BITS, GROUP>;
  static constexpr int TALLEST = TALLEST_CODES;

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& inputs, int row, int panel, f32x16* out) {
    static_assert(P == 1);
    const Rounded& x = inputs.rounded[SHIFT];
    const int blocks = w.inputs / BLOCK;
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[R] = {};
      Base::each_block(
          w, panel, lane,
          [&](int b, const Block<BITS>& block, const Scales<GROUP>& scales) __attribute__((always_inline)) {
#pragma GCC unroll 2
            for (int g = 0; g < Base::GROUPS; g++) {
              const Scale scale = scales[b * Base::GROUPS + g];
              GroupProducts<BITS, GROUP / 4, SHIFT>::template each_row<R>(
                  block, g * GROUP / 4, x, row, b, [&](int r, ints dots) __attribute__((always_inline)) {
                    add_scaled<Base::GROUPS>(acc[r], scale, x.blocks[size_t(row + r) * blocks + b], g, dots);
                  });
            }
          });
      for (int r = 0; r < R; r++) put(acc[r], out + r, lane);
    }
  }
};

}  // namespace
