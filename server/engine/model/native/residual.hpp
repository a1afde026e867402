// The residual stream: `hidden` numbers for each row, which begin as the token's embedding. Every sub-layer reads them
// normalised and adds its result to them.

#pragma once

#include <algorithm>
#include <vector>

#include "interface.hpp"
#include "panels.hpp"

namespace {

template <class T>
class Residual {
 public:
  Residual(const Shape& shape, Team& team) : shape_(shape), team_(team) {}

  void resize(size_t count) {
    x_.resize(count * shape_.hidden);
    normed_.resize(std::max(count, size_t(team_.size()) * FEW_ROWS) * shape_.hidden);
  }

  void embed(const Rows& rows, const T* embeddings, int rank) {
    auto [first, last] = part(rows.count, rank, team_.size());
    for (int r = first; r < last; r++)
      for (int i = 0; i < shape_.hidden; i++)
        x_[size_t(r) * shape_.hidden + i] = to_float(embeddings[size_t(rows.ids[r]) * shape_.hidden + i]);
    team_.barrier();
  }

  template <class Out>
  void normalise(Part some, const float* weight, Out* out) const {
    for (int r = some.first; r < some.last; r++) {
      const float* row = &x_[size_t(r) * shape_.hidden];
      float scale = inverse_rms(row, shape_.hidden, shape_.epsilon);
      Out* to = out + size_t(r) * shape_.hidden;
      int i = 0;
      for (; i + LANES <= shape_.hidden; i += LANES) store16(to + i, load(row + i) * scale * load(weight + i));
      for (; i < shape_.hidden; i++) store(to + i, row[i] * scale * weight[i]);
    }
  }

  // All rows normalised, for this rank to read: its own copy where they are few, else a shared one.
  const Activation<T>* normalised(int count, const float* weight, int rank) {
    if (count > FEW_ROWS) {
      normalise(part(count, rank, team_.size()), weight, normed_.data());
      team_.barrier();
      return normed_.data();
    }
    Activation<T>* own = &normed_[size_t(rank) * FEW_ROWS * shape_.hidden];
    normalise(Part{0, count}, weight, own);
    return own;
  }

  // x += weight * input + bias, the residual connection.
  void add(int count, const Activation<T>* input, int inputs, const T* weight, const float* bias, int rank) {
    const Part own = part(panels(shape_.hidden), rank, team_.size());
    multiply(own, count, input, weight, inputs, [&](int row, int first, f32x16 acc) {
      float* x = &x_[size_t(row) * shape_.hidden];
      if (!bias && first + LANES <= shape_.hidden) return store16(x + first, load(x + first) + acc);
      for (int i = 0; i < LANES && first + i < shape_.hidden; i++)
        x[first + i] += acc[i] + (bias ? bias[first + i] : 0);
    });
    team_.barrier();
  }

 private:
  static constexpr int FEW_ROWS = 8;  // so few that normalising them twice is cheaper than one barrier

  const Shape shape_;
  Team& team_;
  std::vector<float> x_;
  std::vector<Activation<T>> normed_;
};

}  // namespace
