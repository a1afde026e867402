// The rows that matrices are multiplied with, in the form that each takes: fp32, bf16, or codes of 8 or 16 bits.
//
// An instruction that multiplies bytes takes 16 bits as two parts of 8. Where there is none, products are of 16 bits,
// and four inputs lie in the order 0 2 1 3: so they meet the even and the odd bytes of four codes.

#pragma once

#include <algorithm>
#include <vector>

#include "interface.hpp"
#include "panels.hpp"
#include "team.hpp"

namespace {

constexpr int BLOCK = 32;    // inputs that are rounded to codes together
constexpr int FEW_ROWS = 8;  // so few that a copy for each rank is cheaper than one barrier

// A block's inputs are scale * code. Its sum, and those of its halves, are of the rounded inputs.
struct BlockScale {
  float scale, sum, halves[2];
};

#ifdef __AVX512VNNI__
constexpr bool MULTIPLIES_BYTES = true;
constexpr int PARTS = 2;  // of codes of 16 bits
#else
constexpr bool MULTIPLIES_BYTES = false;
constexpr int PARTS = 1;
#endif

struct Inputs {
  int count;
  const float* floats;
  const Activation<bf16>* halves;
  const int8_t *codes, *low;  // of 16 bits the upper and the lower 8, a row's after each other,
  const int16_t* wide;        // or all
  int stride;                 // of codes, from row to row
  const BlockScale* blocks;

  // What weights of type T are multiplied with.
  template <class T>
  const Activation<T>* as() const {
    if constexpr (std::is_same_v<Activation<T>, float>)
      return floats;
    else
      return halves;
  }
};

enum Form { FLOATS = 1, HALVES = 2, CODES = 4, FINE_CODES = 8 };

inline int form(const Matrix& w) {
  if (w.bits == 16) return std::is_same_v<Activation<bf16>, bf16> ? HALVES : FLOATS;
  if (w.bits > 16 || w.input_bits == 32) return FLOATS;
  return w.input_bits == 8 ? CODES : FINE_CODES;
}

// The nearest whole numbers of so many steps between zero and the largest magnitude.
inline BlockScale round_block(const float* x, float steps, i32x16 (&whole)[2]) {
  const f32x16 halves[2] = {load(x), load(x + LANES)};
  const float largest = highest(larger(magnitude(halves[0]), magnitude(halves[1])));
  BlockScale out{largest / steps, 0, {}};
  const float inverse = largest > 0 ? steps / largest : 0;
  for (int half = 0; half < 2; half++) {
    const f32x16 rounded = (halves[half] * inverse + 12582912.0f) - 12582912.0f;  // as in `exp`
    whole[half] = __builtin_convertvector(rounded, i32x16);
    out.halves[half] = sum(rounded) * out.scale;  // exact: together they are far from 2^24
  }
  out.sum = out.halves[0] + out.halves[1];
  return out;
}

inline void store16(int8_t* to, i32x16 v) { *(i8x16*)to = __builtin_convertvector(v, i8x16); }

constexpr float STEPS = 127, FINE_STEPS = 127 * 128;  // the fine ones are 128 * upper + lower, both of 8 bits

class Rounding {
 public:
  explicit Rounding(Team& team) : team_(team) {}

  // `width` of the widest rows.
  void resize(int count, int width) {
    const size_t rows = std::max(count, team_.size() * FEW_ROWS);
    halves_.resize(rows * width);
    codes_.resize(rows * width * PARTS);
    wide_.resize(MULTIPLIES_BYTES ? 0 : rows * width);
    blocks_.resize(rows * width / BLOCK);
  }

  // Rows [count][width] in these forms, for this rank to read. All ranks have written `rows`, unless they are few and
  // its own.
  Inputs round(int count, int width, const float* rows, int forms, int rank) {
    const bool are_few = count <= FEW_ROWS;
    const size_t first = are_few ? size_t(rank) * FEW_ROWS : 0;
    const size_t at = first * width;
    const int8_t* codes = &codes_[at * PARTS];
    const int stride = forms & FINE_CODES ? width * PARTS : width;
    const int16_t* wide = MULTIPLIES_BYTES ? nullptr : &wide_[at];
    const Inputs out{count, rows, &halves_[at], codes, codes + width, wide, stride, &blocks_[at / BLOCK]};
    const Part own = are_few ? Part{0, count} : part(count, rank, team_.size());
    const size_t begin = size_t(own.first) * width, end = size_t(own.last) * width;
    if (forms & HALVES)
      for (size_t i = begin; i < end; i++) store(&halves_[at + i], rows[i]);
    if (forms & (CODES | FINE_CODES))
      for (int r = own.first; r < own.last; r++) {
        const size_t from = size_t(r) * width, to = at * PARTS + size_t(r) * stride;
        for (int i = 0; i < width; i += BLOCK)
          blocks_[(at + from + i) / BLOCK] =
              forms & FINE_CODES ? round_fine(rows + from + i, to + i, width) : round_codes(rows + from + i, to + i);
      }
    if (!are_few && forms != FLOATS) team_.barrier();
    return out;
  }

 private:
  BlockScale round_codes(const float* x, size_t to) {
    i32x16 whole[2];
    const BlockScale out = round_block(x, STEPS, whole);
    for (int half = 0; half < 2; half++) store16(&codes_[to + half * LANES], whole[half]);
    return out;
  }

  BlockScale round_fine(const float* x, size_t to, int width) {
    i32x16 whole[2];
    const BlockScale out = round_block(x, FINE_STEPS, whole);
    for (int half = 0; half < 2; half++) {
      const size_t first = to + half * LANES;
      if constexpr (MULTIPLIES_BYTES) {
        const i32x16 upper = (whole[half] + 64) >> 7;
        store16(&codes_[first], upper);
        store16(&codes_[first + width], whole[half] - 128 * upper);
      } else {
        for (int i = 0; i < LANES; i++) wide_[first + i / 4 * 4 + i % 2 * 2 + i % 4 / 2] = int16_t(whole[half][i]);
      }
    }
    return out;
  }

  Team& team_;
  std::vector<Activation<bf16>> halves_;
  std::vector<int8_t> codes_;
  std::vector<int16_t> wide_;
  std::vector<BlockScale> blocks_;
};

}  // namespace
