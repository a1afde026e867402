// The MLP sub-layer: down(silu(gate(x)) * up(x)), added to the residual stream. Gate and up are one tensor, the gate's
// panels first.

#pragma once

#include <vector>

#include "residual.hpp"

namespace {

template <class T>
class Mlp {
 public:
  Mlp(const Shape& shape, Team& team, Residual<T>& residual) : shape_(shape), team_(team), residual_(residual) {}

  void resize(size_t count) {
    gate_.resize(count * shape_.intermediate);
    inner_.resize(gate_.size());
  }

  void apply(const Rows& rows, const Layer& layer, int rank) {
    const Part own = part(shape_.intermediate / LANES, rank, team_.size());
    const T* gate_up = (const T*)layer.gate_up;
    const T* up = gate_up + size_t(shape_.intermediate) * shape_.hidden;
    const Activation<T>* x = residual_.normalised(rows.count, layer.mlp_norm, rank);
    multiply(own, rows.count, x, gate_up, shape_.hidden, [&](int row, int first, f32x16 acc) {
      f32x16 gate = layer.gate_up_bias ? acc + load(layer.gate_up_bias + first) : acc;
      store16(&gate_[size_t(row) * shape_.intermediate + first], gate / (exp16(-gate) + 1.0f));
    });
    multiply(own, rows.count, x, up, shape_.hidden, [&](int row, int first, f32x16 acc) {
      f32x16 value = layer.gate_up_bias ? acc + load(layer.gate_up_bias + shape_.intermediate + first) : acc;
      const size_t i = size_t(row) * shape_.intermediate + first;
      store16(&inner_[i], load(&gate_[i]) * value);
    });
    team_.barrier();
    residual_.add(rows.count, inner_.data(), shape_.intermediate, (const T*)layer.down, layer.down_bias, rank);
  }

 private:
  const Shape shape_;
  Team& team_;
  Residual<T>& residual_;
  std::vector<float> gate_;
  std::vector<Activation<T>> inner_;
};

}  // namespace
