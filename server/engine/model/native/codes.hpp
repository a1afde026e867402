// Products with weights of few bits. A weight is scale * code + minimum, its scale and minimum shared by a group of 16
// or 32 inputs of one output.
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
constexpr int UNIT = 256;  // inputs whose scales share a unit

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

// The codes of one block for the outputs from this lane on.
template <int BITS>
struct Block {
  const uint8_t* codes;
  int lane;

  // Four inputs of each output, the codes above 15 put together.
  bytes quad(int i) const {
    if constexpr (BITS == 8) return load_bytes(codes + 64 * i + 4 * lane);
    const bytes both = load_bytes(codes + 64 * (i % (QUADS / 2)) + 4 * lane);
    bytes out = i < QUADS / 2 ? both & 15 : both >> 4;
    for (int bit = 4; bit < BITS; bit++) out = with_bit(out, codes + 256 + 64 * (bit - 4) + 8 * i + lane / 2, 1 << bit);
    return out;
  }
};

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

  // Calls body(number, block, scales) for each block of a panel, with the outputs from this lane on.
  template <class F>
  [[gnu::always_inline]] static void each_block(const Matrix& w, int panel, int lane, F&& body) {
    const int blocks = w.inputs / BLOCK;
    const uint8_t* codes = (const uint8_t*)w.weights + size_t(panel) * blocks * block_bytes(BITS);
    const Scales<GROUP> scales(w, panel, lane);
    for (int b = 0; b < blocks; b++, codes += block_bytes(BITS)) {
      for (size_t i = 0; i < block_bytes(BITS); i += 64) __builtin_prefetch(codes + AHEAD + i);
      body(b, Block<BITS>{codes, lane}, scales);
    }
  }

  // One output's weights, as fp32.
  static void read(const Matrix& w, int output, float* to) {
    const int first = output % LANES / WIDTH * WIDTH, lane = output % WIDTH;
    each_block(w, output / LANES, first, [&](int b, const Block<BITS>& block, const Scales<GROUP>& scales) {
      for (int i = 0; i < QUADS; i++) {
        const bytes quad = block.quad(i);
        const Scale scale = scales[b * GROUPS + 4 * i / GROUP];
        for (int j = 0; j < 4; j++)
          to[b * BLOCK + 4 * i + j] = scale.scale[lane] * float(quad[4 * lane + j]) + scale.minimum[lane];
      }
    });
  }
};

constexpr int TALLEST_CODES = WIDTH == 16 ? 8 : 6;  // rows whose sums fit the registers

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
      Base::each_block(w, panel, lane,
                       [&](int b, const Block<BITS>& block, const Scales<GROUP>& scales)
                           __attribute__((always_inline)) {
                             for (int i = 0; i < QUADS; i++) {
                               const words quad = (words)block.quad(i);
                               const Scale scale = scales[b * Base::GROUPS + 4 * i / GROUP];
#pragma GCC unroll 4
                               for (int j = 0; j < 4; j++) {
                                 const floats code = __builtin_convertvector((ints)(quad >> 8 * j & 255), floats);
                                 const floats weight = scale.scale * code + scale.minimum;
#pragma GCC unroll 8
                                 for (int r = 0; r < R; r++)
                                   acc[r] += weight * rows[size_t(r) * w.inputs + b * BLOCK + 4 * i + j];
                               }
                             }
                           });
      for (int r = 0; r < R; r++) put(acc[r], out + r, lane);
    }
  }
};

}  // namespace
