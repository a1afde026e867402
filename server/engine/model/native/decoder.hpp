// The decoder: embeddings, the sub-layers that are not skipped, the last norm, and the head, which gives logits.
// `Model` is what Python holds; `Decoder<float>` and `Decoder<bf16>` are the same code for two types of weights.

#pragma once

#include <algorithm>
#include <vector>

#include "attention.hpp"
#include "greedy.hpp"
#include "mlp.hpp"
#include "residual.hpp"

namespace {

struct Model {
  virtual ~Model() = default;
  virtual void forward(const Rows& rows) = 0;
  virtual void logits(int count, const float* hidden, float* out) = 0;
  virtual void greedy(const Rows& rows, const Greedy& greedy) = 0;
};

template <class T>
class Decoder final : public Model {
 public:
  Decoder(const Shape& shape, const Layer* layers, const float* norm, const void* head, const float* head_bias,
          const void* embeddings, const float* cos, const float* sin)
      : shape_(shape),
        layers_(layers, layers + shape.num_layers),
        norm_(norm),
        head_((const T*)head),
        head_bias_(head_bias),
        embeddings_((const T*)embeddings),
        team_(shape.num_threads),
        residual_(shape, team_),
        attention_(shape, cos, sin, team_, residual_),
        mlp_(shape, team_, residual_) {}

  // Hidden states after the last norm, in fp32.
  void forward(const Rows& rows) override {
    resize(rows);
    team_.run([&](int rank) {
      sublayers(rows, rank);
      residual_.normalise(part(rows.count, rank, team_.size()), norm_, rows.hidden);
    });
  }

  // Logits [count][vocabulary] of hidden states that `forward` gave.
  void logits(int count, const float* hidden, float* out) override {
    rounded_.resize(size_t(count) * shape_.hidden);
    team_.run([&](int rank) {
      auto [first, last] = part(count, rank, team_.size());
      for (int i = first * shape_.hidden; i < last * shape_.hidden; i++) store(&rounded_[i], hidden[i]);
      team_.barrier();
      head(count, rounded_.data(), out, rank);
    });
  }

  void greedy(const Rows& rows, const Greedy& greedy) override {
    resize(rows);
    const int ranks = team_.size();
    picks_.resize(size_t(ranks) * rows.count);
    team_.run([&](int rank) {
      sublayers(rows, rank);
      const Part own = head(rows.count, residual_.normalised(rows.count, norm_, rank), greedy.logits, rank);
      for (int r = 0; r < rows.count; r++)
        picks_[rank * rows.count + r] = pick(greedy.logits + size_t(r) * shape_.vocabulary, own, greedy.probabilities);
      team_.barrier();
      if (rank == 0)
        for (int r = 0; r < rows.count; r++) settle(picks_, ranks, rows.count, r, greedy);
    });
  }

 private:
  void resize(const Rows& rows) {
    residual_.resize(rows.count);
    attention_.resize(rows);
    mlp_.resize(rows.count);
  }

  void sublayers(const Rows& rows, int rank) {
    residual_.embed(rows, embeddings_, rank);
    for (int layer = 0; layer < shape_.num_layers; layer++) {
      if (!rows.is_skipped[2 * layer]) attention_.apply(rows, layers_[layer], layer, rank);
      if (!rows.is_skipped[2 * layer + 1]) mlp_.apply(rows, layers_[layer], rank);
    }
  }

  // Logits of this rank's share of the vocabulary, which it returns.
  Part head(int count, const Activation<T>* x, float* out, int rank) {
    const Part own = part(panels(shape_.vocabulary), rank, team_.size());
    multiply(own, count, x, head_, shape_.hidden, [&](int row, int first, f32x16 acc) {
      float* to = out + size_t(row) * shape_.vocabulary + first;
      if (!head_bias_ && first + LANES <= shape_.vocabulary) return store16(to, acc);
      for (int i = 0; i < LANES && first + i < shape_.vocabulary; i++)
        to[i] = acc[i] + (head_bias_ ? head_bias_[first + i] : 0);
    });
    return {own.first * LANES, std::min(own.last * LANES, shape_.vocabulary)};
  }

  const Shape shape_;
  const std::vector<Layer> layers_;
  const float* norm_;
  const T* head_;
  const float* head_bias_;
  const T* embeddings_;
  Team team_;
  Residual<T> residual_;
  Attention<T> attention_;
  Mlp<T> mlp_;
  std::vector<Activation<T>> rounded_;  // hidden states as the head takes them
  std::vector<Pick> picks_;
};

}  // namespace
