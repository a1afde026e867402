// Products with weights of few bits. A weight is scale * code + minimum, its scale and minimum shared by a group of 16
// or 32 inputs of one output. Codes are whole numbers, so with activations of 8 bits, or of 16 as two of 8, the
// products of a group are exact in integers; its sum is scaled once.
//
// The codes of 32 inputs and 16 outputs lie together, a block of eight quads: [16 outputs][4 inputs], a byte each. With
// less than 8 bits, a byte has the low halves of quads i and i + 4, and the bits above them follow in planes of eight
// 64-bit words, a bit for each byte of a quad.

#pragma once

#include <immintrin.h>

#include "inputs.hpp"
#include "interface.hpp"

namespace {

constexpr int QUADS = BLOCK / 4;
constexpr int UNIT = 256;    // inputs whose scales share a unit
constexpr int AHEAD = 4096;  // bytes that are fetched before their turn; several rows take longer than the memory

inline constexpr size_t block_bytes(int bits) { return bits == 8 ? 512 : 256 + 64 * size_t(bits - 4); }

inline bytes load_bytes(const uint8_t* x) { return *(const bytes*)x; }

// `bit` added to each of the quad's bytes whose place in the word has a one.
inline bytes with_bit(bytes quad, const uint8_t* word, uint8_t bit) {
#ifdef __AVX512BW__
  uint64_t mask;
  std::memcpy(&mask, word, 8);
  return (bytes)_mm512_mask_add_epi8((__m512i)quad, mask, (__m512i)quad, _mm512_set1_epi8(bit));
#else
  int32_t mask;
  std::memcpy(&mask, word, 4);
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i single = _mm256_set1_epi64x(0x8040201008040201);
  const __m256i own = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(mask), spread), single);
  const __m256i is_set = _mm256_cmpeq_epi8(own, single);
  return (bytes)_mm256_add_epi8((__m256i)quad, _mm256_and_si256(is_set, _mm256_set1_epi8(bit)));
#endif
}

// The quads of a block for the outputs from this lane on.
template <int BITS>
inline void unpack(const uint8_t* block, int lane, bytes (&quads)[QUADS]) {
  if constexpr (BITS == 8) {
    for (int i = 0; i < QUADS; i++) quads[i] = load_bytes(block + 64 * i + 4 * lane);
    return;
  }
  for (int i = 0; i < QUADS / 2; i++) {
    const bytes both = load_bytes(block + 64 * i + 4 * lane);
    quads[i] = both & 15;
    quads[i + QUADS / 2] = both >> 4;
  }
  for (int bit = 4; bit < BITS; bit++)
    for (int i = 0; i < QUADS; i++)
      quads[i] = with_bit(quads[i], block + 256 + 64 * (bit - 4) + 8 * i + lane / 2, 1 << bit);
}

// Adds to each output the products of its four codes with four activations. Without the instruction for it, products
// are added in pairs of 16 bits, which codes of 8 bits would overflow: these go in two halves.
template <int BITS>
inline ints dot(ints acc, bytes quad, int32_t four) {
#if defined(__AVX512VNNI__)
  return (ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)quad, _mm512_set1_epi32(four));
#else
  const auto sums = [four](bytes codes, int factor) {
#if defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)codes, _mm512_set1_epi32(four));
    return (ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(factor));
#else
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(four));
    return (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(factor));
#endif
  };
  if constexpr (BITS == 8) return acc + sums(quad & 15, 1) + sums(quad >> 4, 16);
  return acc + sums(quad, 1);
#endif
}

inline floats load_half(const uint16_t* x) {
#ifdef __AVX512F__
  return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x));
#else
  return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x));
#endif
}

inline floats load_signed(const int8_t* x) {
#ifdef __AVX512F__
  return __builtin_convertvector((ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)x)), floats);
#else
  return __builtin_convertvector((ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)x)), floats);
#endif
}

// What each group of a panel's inputs has beside its codes, for `WIDTH` outputs.
struct Scale {
  floats scale, minimum;
};

template <int GROUP>
class Scales {
 public:
  Scales(const Matrix& w, int panel, int lane)
      : w_(w),
        first_(size_t(panel) * (w.inputs / GROUP) * LANES + lane),
        first_unit_(size_t(panel) * (w.inputs / UNIT) * LANES + lane) {}

  Scale operator[](int group) const {
    const floats scale = read(w_.scales, w_.scale_units, group);
    return {scale, w_.minima ? read(w_.minima, w_.minimum_units, group) : scale * float(-w_.zero)};
  }

 private:
  floats read(const void* values, const void* units, int group) const {
    const size_t i = first_ + size_t(group) * LANES;
    if (!units) return load_half((const uint16_t*)values + i);
    const size_t unit = first_unit_ + size_t(group * GROUP / UNIT) * LANES;
    return load_signed((const int8_t*)values + i) * load_half((const uint16_t*)units + unit);
  }

  const Matrix& w_;
  const size_t first_, first_unit_;
};

template <int BITS, int GROUP>
struct Codes {
  static constexpr int GROUPS = BLOCK / GROUP;  // of a block

  // Calls body(number, quads, scales) for each block of a panel, with the outputs from this lane on.
  template <class F>
  [[gnu::always_inline]] static void each_block(const Matrix& w, int panel, int lane, F&& body) {
    const int blocks = w.inputs / BLOCK;
    const uint8_t* block = (const uint8_t*)w.weights + size_t(panel) * blocks * block_bytes(BITS);
    const Scales<GROUP> scales(w, panel, lane);
    for (int b = 0; b < blocks; b++, block += block_bytes(BITS)) {
      for (size_t i = 0; i < block_bytes(BITS); i += 64) __builtin_prefetch(block + AHEAD + i);
      bytes quads[QUADS];
      unpack<BITS>(block, lane, quads);
      body(b, quads, scales);
    }
  }

  // One output's weights, as fp32.
  static void read(const Matrix& w, int output, float* to) {
    const int first = output % LANES / WIDTH * WIDTH, lane = output % WIDTH;
    each_block(w, output / LANES, first, [&](int b, const bytes(&quads)[QUADS], const Scales<GROUP>& scales) {
      for (int i = 0; i < BLOCK; i++) {
        const Scale scale = scales[b * GROUPS + i / GROUP];
        to[b * BLOCK + i] = scale.scale[lane] * float(quads[i / 4][4 * lane + i % 4]) + scale.minimum[lane];
      }
    });
  }
};

constexpr int TALLEST_CODES = WIDTH == 16 ? 8 : 3;  // rows whose sums fit the registers

// With activations of 8 bits, or of twice 8.
template <int BITS, int GROUP, bool IS_FINE>
struct RoundedCodes : Codes<BITS, GROUP> {
  using Base = Codes<BITS, GROUP>;
  static constexpr int TALLEST = TALLEST_CODES;

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    static_assert(P == 1);
    const int blocks = w.inputs / BLOCK;
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[R] = {};
      Base::each_block(w, panel, lane,
                       [&](int b, const bytes(&quads)[QUADS], const Scales<GROUP>& scales)
                           __attribute__((always_inline)) {
#pragma GCC unroll 2
                             for (int g = 0; g < Base::GROUPS; g++) {
                               const Scale scale = scales[b * Base::GROUPS + g];
#pragma GCC unroll 8
                               for (int r = 0; r < R; r++) {
                                 const size_t first = size_t(row + r) * w.inputs + b * BLOCK;
                                 ints dots = products(quads, g, x.codes + first);
                                 if constexpr (IS_FINE) dots = (dots << 7) + products(quads, g, x.low + first);
                                 const BlockScale& own = x.blocks[size_t(row + r) * blocks + b];
                                 acc[r] += scale.scale * own.scale * __builtin_convertvector(dots, floats);
                                 acc[r] += scale.minimum * (Base::GROUPS == 1 ? own.sum : own.halves[g]);
                               }
                             }
                           });
      for (int r = 0; r < R; r++) put(acc[r], out + r, lane);
    }
  }

 private:
  // Sums of the products of a group's codes with a row's.
  [[gnu::always_inline]] static ints products(const bytes (&quads)[QUADS], int group, const int8_t* codes) {
    ints dots{};
#pragma GCC unroll 8
    for (int i = group * GROUP / 4; i < (group + 1) * GROUP / 4; i++) {
      int32_t four;
      std::memcpy(&four, codes + 4 * i, 4);
      dots = dot<BITS>(dots, quads[i], four);
    }
    return dots;
  }
};

// With activations of fp32.
template <int BITS, int GROUP>
struct ExactCodes : Codes<BITS, GROUP> {
  using Base = Codes<BITS, GROUP>;
  static constexpr int TALLEST = TALLEST_CODES;

  template <int R, int P>
  [[gnu::noinline]] static void sums(const Matrix& w, const Inputs& x, int row, int panel, f32x16* out) {
    static_assert(P == 1);
    const float* rows = x.floats + size_t(row) * w.inputs;
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[R] = {};
      Base::each_block(
          w, panel, lane,
          [&](int b, const bytes(&quads)[QUADS], const Scales<GROUP>& scales) __attribute__((always_inline)) {
            for (int i = 0; i < BLOCK; i++) {
              const Scale scale = scales[b * Base::GROUPS + i / GROUP];
              const words code = (words)quads[i / 4] >> 8 * (i % 4) & 255;
              const floats weight = scale.scale * __builtin_convertvector((ints)code, floats) + scale.minimum;
#pragma GCC unroll 8
              for (int r = 0; r < R; r++) acc[r] += weight * rows[size_t(r) * w.inputs + b * BLOCK + i];
            }
          });
      for (int r = 0; r < R; r++) put(acc[r], out + r, lane);
    }
  }
};

}  // namespace
