// Products with weights of few bits. A weight is scale * code + minimum, its scale and minimum shared by a group of 16
// or 32 inputs of one output. Codes are whole numbers, so with activations of 8 bits the products of a group are exact
// in integers; its sum is scaled once.
//
// The codes of 32 inputs and 16 outputs lie together, a block of eight quads: [16 outputs][4 inputs], a byte each. With
// less than 8 bits, a byte has the low halves of quads i and i + 4, and the bits above them follow in planes of eight
// 64-bit words, a bit for each byte of a quad.

#pragma once

#include <immintrin.h>

#include "inputs.hpp"
#include "interface.hpp"

namespace {

typedef uint8_t u8x64 __attribute__((vector_size(64), aligned(1)));
typedef int8_t i8x16 __attribute__((vector_size(16), aligned(1)));
constexpr int QUADS = BLOCK / 4;
constexpr int AHEAD = 4096;  // bytes that are fetched before their turn; several rows take longer than the memory

inline constexpr size_t block_bytes(int bits) { return bits == 8 ? 512 : 256 + 64 * size_t(bits - 4); }

inline u8x64 load64(const uint8_t* x) { return *(const u8x64*)x; }

// `bit` added where the word has a one.
inline u8x64 with_bit(u8x64 quad, uint64_t word, uint8_t bit) {
#ifdef __AVX512BW__
  return (u8x64)_mm512_mask_add_epi8((__m512i)quad, word, (__m512i)quad, _mm512_set1_epi8(bit));
#else
  u8x64 out;
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i single = _mm256_set1_epi64x(0x8040201008040201);
  for (int half = 0; half < 2; half++) {
    const __m256i bits = _mm256_shuffle_epi8(_mm256_set1_epi32(uint32_t(word >> 32 * half)), spread);
    const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, single), single);
    __m256i& to = ((__m256i*)&out)[half];
    to = _mm256_add_epi8(((const __m256i*)&quad)[half], _mm256_and_si256(is_set, _mm256_set1_epi8(bit)));
  }
  return out;
#endif
}

template <int BITS>
inline void unpack(const uint8_t* block, u8x64 (&quads)[QUADS]) {
  if constexpr (BITS == 8) {
    for (int i = 0; i < QUADS; i++) quads[i] = load64(block + 64 * i);
    return;
  }
  for (int i = 0; i < QUADS / 2; i++) {
    const u8x64 both = load64(block + 64 * i);
    quads[i] = both & 15;
    quads[i + QUADS / 2] = both >> 4;
  }
  for (int bit = 4; bit < BITS; bit++)
    for (int i = 0; i < QUADS; i++) {
      uint64_t word;
      std::memcpy(&word, block + 256 + 64 * (bit - 4) + 8 * i, 8);
      quads[i] = with_bit(quads[i], word, 1 << bit);
    }
}

// Adds to each output the products of its four codes with four activations. Without the instruction for it, products
// are added in pairs of 16 bits, which codes of 8 bits would overflow: these go in two halves.
template <int BITS>
inline i32x16 dot(i32x16 acc, u8x64 quad, int32_t four) {
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)quad, _mm512_set1_epi32(four));
#elif defined(__AVX512BW__)
  const auto sums = [four](u8x64 codes, int factor) {
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)codes, _mm512_set1_epi32(four));
    return (i32x16)_mm512_madd_epi16(pairs, _mm512_set1_epi16(factor));
  };
  if constexpr (BITS == 8) return acc + sums(quad & 15, 1) + sums(quad >> 4, 16);
  return acc + sums(quad, 1);
#else
  const auto sums = [four](u8x64 codes, int factor) {
    i32x16 out;
    for (int half = 0; half < 2; half++) {
      const __m256i pairs = _mm256_maddubs_epi16(((const __m256i*)&codes)[half], _mm256_set1_epi32(four));
      ((__m256i*)&out)[half] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(factor));
    }
    return out;
  };
  if constexpr (BITS == 8) return acc + sums(quad & 15, 1) + sums(quad >> 4, 16);
  return acc + sums(quad, 1);
#endif
}

inline f32x16 load_half(const void* x) {
#ifdef __AVX512F__
  return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x));
#else
  f32x16 out;
  for (int half = 0; half < 2; half++)
    ((__m256*)&out)[half] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x + half));
  return out;
#endif
}

inline f32x16 load_bytes(const int8_t* x) { return __builtin_convertvector(*(const i8x16*)x, f32x16); }

// What each group of a panel's inputs has beside its codes, for 16 outputs.
struct Scale {
  f32x16 scale, minimum;
};

template <int GROUP>
class Scales {
 public:
  Scales(const Matrix& w, int panel)
      : w_(w),
        first_(size_t(panel) * (w.inputs / GROUP) * LANES),
        first_unit_(size_t(panel) * (w.inputs / UNIT) * LANES) {}

  Scale operator[](int group) const {
    const f32x16 scale = read(w_.scales, w_.scale_units, group);
    return {scale, w_.minima ? read(w_.minima, w_.minimum_units, group) : scale * float(-w_.zero)};
  }

 private:
  static constexpr int UNIT = 256;

  f32x16 read(const void* values, const void* units, int group) const {
    const size_t i = first_ + size_t(group) * LANES;
    if (!units) return load_half((const uint16_t*)values + i);
    return load_bytes((const int8_t*)values + i) *
           load_half((const uint16_t*)units + first_unit_ + group * GROUP / UNIT * LANES);
  }

  const Matrix& w_;
  const size_t first_, first_unit_;
};

template <int BITS, int GROUP>
struct Codes {
  static constexpr int GROUPS = BLOCK / GROUP;  // of a block

  static const uint8_t* panel(const Matrix& w, int index) {
    return (const uint8_t*)w.weights + size_t(index) * (w.inputs / BLOCK) * block_bytes(BITS);
  }

  // One output's weights, as fp32.
  static void read(const Matrix& w, int output, float* to) {
    const uint8_t* block = panel(w, output / LANES);
    const Scales<GROUP> scales(w, output / LANES);
    const int lane = output % LANES;
    for (int b = 0; b < w.inputs / BLOCK; b++, block += block_bytes(BITS)) {
      u8x64 quads[QUADS];
      unpack<BITS>(block, quads);
      for (int i = 0; i < BLOCK; i++) {
        const Scale scale = scales[b * GROUPS + i / GROUP];
        to[b * BLOCK + i] = scale.scale[lane] * float(quads[i / 4][4 * lane + i % 4]) + scale.minimum[lane];
      }
    }
  }
};

// With activations of 8 bits.
template <int BITS, int GROUP>
struct RoundedCodes : Codes<BITS, GROUP> {
  using Base = Codes<BITS, GROUP>;
  static constexpr int TALLEST = IS_AVX512 ? 8 : 2;

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    static_assert(P == 1);
    const uint8_t* block = Base::panel(w, panel);
    const Scales<GROUP> scales(w, panel);
    const int blocks = w.inputs / BLOCK;
    const int8_t* codes = x.codes + size_t(row) * w.inputs;
    const BlockScale* rows = x.blocks + size_t(row) * blocks;
    f32x16 acc[R] = {};
    for (int b = 0; b < blocks; b++, block += block_bytes(BITS)) {
      for (size_t i = 0; i < block_bytes(BITS); i += 64) __builtin_prefetch(block + AHEAD + i);
      u8x64 quads[QUADS];
      unpack<BITS>(block, quads);
#pragma GCC unroll 2
      for (int g = 0; g < Base::GROUPS; g++) {
        const Scale scale = scales[b * Base::GROUPS + g];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          i32x16 dots{};
#pragma GCC unroll 8
          for (int i = g * GROUP / 4; i < (g + 1) * GROUP / 4; i++) {
            int32_t four;
            std::memcpy(&four, codes + size_t(r) * w.inputs + b * BLOCK + 4 * i, 4);
            dots = dot<BITS>(dots, quads[i], four);
          }
          const BlockScale& own = rows[size_t(r) * blocks + b];
          acc[r] += scale.scale * own.scale * __builtin_convertvector(dots, f32x16);
          acc[r] += scale.minimum * (Base::GROUPS == 1 ? own.sum : own.halves[g]);
        }
      }
    }
    for (int r = 0; r < R; r++) out[r] = acc[r];
  }
};

// With activations of fp32.
template <int BITS, int GROUP>
struct ExactCodes : Codes<BITS, GROUP> {
  using Base = Codes<BITS, GROUP>;
  static constexpr int TALLEST = IS_AVX512 ? 8 : 2;

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    static_assert(P == 1);
    const uint8_t* block = Base::panel(w, panel);
    const Scales<GROUP> scales(w, panel);
    const float* rows = x.floats + size_t(row) * w.inputs;
    f32x16 acc[R] = {};
    for (int b = 0; b < w.inputs / BLOCK; b++, block += block_bytes(BITS)) {
      u8x64 quads[QUADS];
      unpack<BITS>(block, quads);
      for (int i = 0; i < BLOCK; i++) {
        const Scale scale = scales[b * Base::GROUPS + i / GROUP];
        const u32x16 code = (u32x16)quads[i / 4] >> 8 * (i % 4) & 255;
        const f32x16 weight = scale.scale * __builtin_convertvector((i32x16)code, f32x16) + scale.minimum;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[r] += weight * rows[size_t(r) * w.inputs + b * BLOCK + i];
      }
    }
    for (int r = 0; r < R; r++) out[r] = acc[r];
  }
};

}  // namespace
