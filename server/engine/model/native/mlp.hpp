// The MLP sub-layer: down(silu(gate(x)) * up(x)), added to the residual stream.

#pragma once

#include <vector>

#include "residual.hpp"

namespace {

class Mlp {
 public:
  Mlp(const Shape& shape, Team& team, Residual& residual) : shape_(shape), team_(team), residual_(residual) {}

  void resize(size_t count) { inner_.resize(count * shape_.intermediate); }

  void apply(const Rows& rows, const Layer& layer, int rank) {
    const Part own = part(shape_.intermediate / LANES, rank, team_.size());
    const Inputs x = residual_.normalised(rows.count, layer.mlp_norm, rank, layer.gate, layer.up);
    multiply(own, x, layer.gate, [&](int row, int first, f32x16 gate) {
      store16(&inner_[size_t(row) * shape_.intermediate + first], gate / (exp16(-gate) + 1.0f));
    });
    multiply(own, x, layer.up, [&](int row, int first, f32x16 up) {
      float* inner = &inner_[size_t(row) * shape_.intermediate + first];
      store16(inner, load(inner) * up);
    });
    team_.barrier();
    residual_.add(rows.count, inner_.data(), layer.down, rank);
  }

 private:
  const Shape shape_;
  Team& team_;
  Residual& residual_;
  std::vector<float> inner_;
};

}  // namespace
