// The rows that matrices are multiplied with, in the form that each takes: fp32, bf16, or codes of 8 to 16 bits.
//
// An instruction that multiplies bytes takes finer codes as two parts of 8 bits: 2^shift * upper + lower. Weights of
// fewer than 8 bits leave room for the factor: with codes of 4 bits, 16 * code is a byte too. So at a shift of 8 - bits
// a tile takes both parts at once, (16 * code) * upper + code * lower, and activations have 12 bits for weights of 4,
// 11 for 5, 10 for 6. Weights of 8 bits take the parts one after the other, and activations have 16 bits.
//
// Where there is no such instruction, products are of 16 bits, and four inputs lie in the order 0 2 1 3: so they meet
// the even and the odd bytes of four codes.

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
#else
constexpr bool MULTIPLIES_BYTES = false;
#endif

constexpr int APART = 7;           // the shift of parts that are apart, those for weights of 8 bits
constexpr int SHIFTS = APART + 1;  // 0 is that of codes of 8 bits, which have one part
constexpr int STEPS = 127;         // of 8 bits; 2^shift times as many of finer codes

inline constexpr int fine_shift(int weight_bits) { return weight_bits == 8 ? APART : 8 - weight_bits; }

struct alignas(64) Line {
  int8_t bytes[64];
};

// Codes of rows: of 8 bits, or parts. Parts that are apart are two rows, one after the other; others lie together, the
// upper ones of half a block before its lower ones.
struct Rounded {
  const int8_t* codes;
  const int16_t* wide;  // where bytes are not multiplied: both parts in one
  const BlockScale* blocks;
  int stride, width;  // of the codes of a row, and its inputs
};

struct Inputs {
  int count;
  const float* floats;
  const Activation<bf16>* halves;
  Rounded rounded[SHIFTS];

  // What weights of type T are multiplied with.
  template <class T>
  const Activation<T>* as() const {
    if constexpr (std::is_same_v<Activation<T>, float>)
      return floats;
    else
      return halves;
  }
};

enum Form { FLOATS = 1, HALVES = 2, CODES = 4 };  // codes of each shift: CODES << shift

inline int form(const Matrix& w) {
  if (w.bits == 16) return std::is_same_v<Activation<bf16>, bf16> ? HALVES : FLOATS;
  if (w.bits > 16 || w.input_bits == 32) return FLOATS;
  return CODES << (w.input_bits == 8 ? 0 : fine_shift(w.bits));
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

class Rounding {
 public:
  explicit Rounding(Team& team) : team_(team) {}

  // `width` of the widest rows.
  void resize(int count, int width) {
    const size_t numbers = std::max(count, team_.size() * FEW_ROWS) * size_t(width);
    if (halves_.size() >= numbers) return;
    halves_.resize(numbers);
    for (Codes& codes : codes_) {
      codes.parts.resize(2 * numbers / sizeof(Line));
      codes.wide.resize(MULTIPLIES_BYTES ? 0 : numbers);
      codes.blocks.resize(numbers / BLOCK);
    }
  }

  // Rows [count][width] in these forms, for this rank to read. All ranks have written `rows`, unless they are few and
  // its own.
  Inputs round(int count, int width, const float* rows, int forms, int rank) {
    const bool are_few = count <= FEW_ROWS;
    const size_t at = are_few ? size_t(rank) * FEW_ROWS * width : 0;
    const Part own = are_few ? Part{0, count} : part(count, rank, team_.size());
    Inputs out{count, rows, &halves_[at], {}};
    if (forms & HALVES)
      for (size_t i = size_t(own.first) * width; i < size_t(own.last) * width; i++) store(&halves_[at + i], rows[i]);
    Codes* codes = codes_;
    for (int shift = 0; shift < SHIFTS; shift++)
      if (forms & CODES << shift) out.rounded[shift] = (codes++)->round(own, width, rows, shift, at);
    if (!are_few && forms != FLOATS) team_.barrier();
    return out;
  }

 private:
  // Of one shift.
  struct Codes {
    // Some of the rows; all ranks' begin at number `at`.
    Rounded round(Part some, int width, const float* rows, int shift, size_t at) {
      const int stride = shift == 0 ? width : 2 * width;
      int8_t* first_row = parts[0].bytes + 2 * at;
      const Rounded out{first_row, MULTIPLIES_BYTES ? nullptr : &wide[at], &blocks[at / BLOCK], stride, width};
      for (int r = some.first; r < some.last; r++)
        for (int i = 0; i < width; i += BLOCK) {
          const size_t first = size_t(r) * width + i;
          i32x16 whole[2];
          blocks[(at + first) / BLOCK] = round_block(rows + first, float(STEPS << shift), whole);
          for (int half = 0; half < 2; half++)
            put(whole[half], i, half, shift, width, first_row + size_t(r) * stride, at + first);
        }
      return out;
    }

    // Half of the block that begins at input `i` of a row whose codes begin at `row`, and numbers at `first`.
    void put(i32x16 whole, int i, int half, int shift, int width, int8_t* row, size_t first) {
      if (shift == 0) return store16(row + i + half * LANES, whole);
      if (!MULTIPLIES_BYTES) {
        int16_t* to = &wide[first + half * LANES];
        for (int j = 0; j < LANES; j++) to[j / 4 * 4 + j % 2 * 2 + j % 4 / 2] = int16_t(whole[j]);
        return;
      }
      const i32x16 upper = (whole + (1 << (shift - 1))) >> shift, lower = whole - (upper << shift);
      int8_t* to = row + (shift == APART ? i + half * LANES : 2 * (i + half * LANES));
      store16(to, upper);
      store16(to + (shift == APART ? width : LANES), lower);
    }

    std::vector<Line> parts;
    std::vector<int16_t> wide;
    std::vector<BlockScale> blocks;
  };

  static constexpr int MOST = 3;  // shifts at once: queries, keys and values may differ

  Team& team_;
  std::vector<Activation<bf16>> halves_;
  Codes codes_[MOST];
};

}  // namespace
