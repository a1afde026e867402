// The residual stream: `hidden` numbers for each row, which begin as the token's embedding. Every sub-layer reads them
// normalised and adds its result to them.

#pragma once

#include <algorithm>
#include <vector>

#include "matrix.hpp"

namespace {

class Residual {
 public:
  Residual(const Shape& shape, Team& team) : shape_(shape), team_(team), rounding_(team) {}

  void resize(int count) {
    x_.resize(size_t(count) * shape_.hidden);
    const size_t rows = std::max(count, team_.size() * FEW_ROWS);
    normed_.resize(rows * shape_.hidden);
    joined_.resize(rows * 2 * shape_.hidden);
    rounding_.resize(count, std::max({2 * shape_.hidden, shape_.intermediate, shape_.heads * shape_.head_dim}));
  }

  void embed(const Rows& rows, const Matrix& embeddings, int rank) {
    auto [first, last] = part(rows.count, rank, team_.size());
    for (int r = first; r < last; r++) read_output(embeddings, rows.ids[r], &x_[size_t(r) * shape_.hidden]);
    team_.barrier();
  }

  // Goes on from a stream [count][hidden] that was read before.
  void begin(int count, const float* stream, int rank) {
    auto [first, last] = part(count, rank, team_.size());
    std::copy(stream + size_t(first) * shape_.hidden, stream + size_t(last) * shape_.hidden,
              &x_[size_t(first) * shape_.hidden]);
    team_.barrier();
  }

  void read(Part some, float* stream) const {
    std::copy(&x_[size_t(some.first) * shape_.hidden], &x_[size_t(some.last) * shape_.hidden],
              stream + size_t(some.first) * shape_.hidden);
  }

  void normalise(Part some, const float* weight, float* out) const { normalise(some, weight, out, shape_.hidden); }

  // Rows of `out` lie `stride` apart.
  void normalise(Part some, const float* weight, float* out, int stride) const {
    for (int r = some.first; r < some.last; r++) {
      const float* row = &x_[size_t(r) * shape_.hidden];
      float scale = inverse_rms(row, shape_.hidden, shape_.epsilon);
      float* to = out + size_t(r) * stride;
      int i = 0;
      for (; i + LANES <= shape_.hidden; i += LANES) store16(to + i, load(row + i) * scale * load(weight + i));
      for (; i < shape_.hidden; i++) to[i] = row[i] * scale * weight[i];
    }
  }

  // All rows normalised, as these matrices take them: this rank's own copy where they are few, else a shared one.
  template <class... M>
  Inputs normalised(int count, const float* weight, int rank, const M&... readers) {
    if (count <= FEW_ROWS) {
      float* own = &normed_[size_t(rank) * FEW_ROWS * shape_.hidden];
      normalise({0, count}, weight, own);
      return rounded(count, own, rank, readers...);
    }
    normalise(part(count, rank, team_.size()), weight, normed_.data());
    team_.barrier();
    return rounded(count, normed_.data(), rank, readers...);
  }

  // rows.hidden = patch * [the normalised residual, the state of the place before].
  void patch(const Rows& rows, const float* weight, int rank) {
    const bool are_few = rows.count <= FEW_ROWS;
    const int hidden = shape_.hidden, width = 2 * hidden;
    float* joined = &joined_[are_few ? size_t(rank) * FEW_ROWS * width : 0];
    const Part some = are_few ? Part{0, rows.count} : part(rows.count, rank, team_.size());
    normalise(some, weight, joined, width);
    for (int r = some.first; r < some.last; r++)
      std::copy_n(rows.states + size_t(r) * hidden, hidden, joined + size_t(r) * width + hidden);
    if (!are_few) team_.barrier();
    const Inputs inputs = rounded(rows.count, joined, rank, *rows.patch);
    multiply(part(panels(hidden), rank, team_.size()), inputs, *rows.patch, [&](int row, int first, f32x16 sums) {
      float* to = rows.hidden + size_t(row) * hidden + first;
      if (first + LANES <= hidden) return store16(to, sums);
      for (int i = 0; first + i < hidden; i++) to[i] = sums[i];
    });
    team_.barrier();
  }

  // Rows that all ranks have written, as these matrices take them.
  template <class... M>
  Inputs rounded(int count, const float* rows, int rank, const Matrix& reader, const M&... others) {
    return rounding_.round(count, reader.inputs, rows, (form(reader) | ... | form(others)), rank);
  }

  // x += weight * input, the residual connection.
  void add(int count, const float* input, const Matrix& weight, int rank) {
    const Inputs inputs = rounded(count, input, rank, weight);
    const Part own = part(panels(shape_.hidden), rank, team_.size());
    multiply(own, inputs, weight, [&](int row, int first, f32x16 sums) {
      float* x = &x_[size_t(row) * shape_.hidden];
      if (first + LANES <= shape_.hidden) return store16(x + first, load(x + first) + sums);
      for (int i = 0; first + i < shape_.hidden; i++) x[first + i] += sums[i];
    });
    team_.barrier();
  }

 private:
  const Shape shape_;
  Team& team_;
  Rounding rounding_;
  std::vector<float> x_, normed_, joined_;
};

}  // namespace
