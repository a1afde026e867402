// The rows that matrices are multiplied with, in the form that each takes: fp32, bf16, or codes of 8 or 16 bits.

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

struct Inputs {
  int count;
  const float* floats;
  const Activation<bf16>* halves;
  const int8_t *codes, *low;  // of 16 bits the upper and the lower 8
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

// The nearest of 255 steps between the largest magnitude and its negative, or with `low` of 32513. These are whole
// numbers 128 * code + low, so that both parts fit 8 bits.
inline BlockScale round_block(const float* x, int8_t* codes, int8_t* low) {
  const float steps = low ? 127 * 128 : 127;
  float largest = 0;
  for (int i = 0; i < BLOCK; i++) largest = std::max(largest, std::abs(x[i]));
  BlockScale out{largest / steps, 0, {}};
  const float inverse = largest > 0 ? steps / largest : 0;
  for (int half = 0; half < 2; half++) {
    int32_t total = 0;
    for (int i = half * BLOCK / 2; i < (half + 1) * BLOCK / 2; i++) {
      const int32_t whole = int32_t((x[i] * inverse + 12582912.0f) - 12582912.0f);  // rounds, as in `exp16`
      const int32_t upper = low ? (whole + 64) >> 7 : whole;
      codes[i] = int8_t(upper);
      if (low) low[i] = int8_t(whole - 128 * upper);
      total += whole;
    }
    out.halves[half] = float(total) * out.scale;
  }
  out.sum = out.halves[0] + out.halves[1];
  return out;
}

class Rounding {
 public:
  explicit Rounding(Team& team) : team_(team) {}

  // `width` of the widest rows.
  void resize(int count, int width) {
    const size_t rows = std::max(count, team_.size() * FEW_ROWS);
    halves_.resize(rows * width);
    codes_.resize(rows * width);
    low_.resize(rows * width);
    blocks_.resize(rows * width / BLOCK);
  }

  // Rows [count][width] in these forms, for this rank to read. All ranks have written `rows`, unless they are few and
  // its own.
  Inputs round(int count, int width, const float* rows, int forms, int rank) {
    const bool are_few = count <= FEW_ROWS;
    const size_t first = are_few ? size_t(rank) * FEW_ROWS : 0;
    const Inputs out{count,
                     rows,
                     &halves_[first * width],
                     &codes_[first * width],
                     &low_[first * width],
                     &blocks_[first * (width / BLOCK)]};
    const Part own = are_few ? Part{0, count} : part(count, rank, team_.size());
    const size_t begin = size_t(own.first) * width, end = size_t(own.last) * width;
    if (forms & HALVES)
      for (size_t i = begin; i < end; i++) store(&halves_[first * width + i], rows[i]);
    if (forms & (CODES | FINE_CODES))
      for (size_t i = begin; i < end; i += BLOCK)
        blocks_[first * (width / BLOCK) + i / BLOCK] =
            round_block(rows + i, &codes_[first * width + i], forms & FINE_CODES ? &low_[first * width + i] : nullptr);
    if (!are_few && forms != FLOATS) team_.barrier();
    return out;
  }

 private:
  Team& team_;
  std::vector<Activation<bf16>> halves_;
  std::vector<int8_t> codes_, low_;
  std::vector<BlockScale> blocks_;
};

}  // namespace
