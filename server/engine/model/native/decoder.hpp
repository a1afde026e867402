// The decoder: embeddings, the sub-layers that are not skipped, the last norm, and the head, which gives logits.
// `Model` is what Python holds; `Decoder<float>` and `Decoder<bf16>` are the same code for two types of cache.

#pragma once

#include <algorithm>
#include <vector>

#include "attention.hpp"
#include "greedy.hpp"
#include "mlp.hpp"
#include "residual.hpp"
#include "sampling.hpp"

namespace {

struct Model {
  virtual ~Model() = default;
  virtual int width() const = 0;  // of a hidden state
  virtual void forward(const Rows& rows) = 0;
  virtual void keep_branch(const Rows& rows) = 0;
  virtual void pass(const Rows& rows, int first, int last, float* residual) = 0;
  virtual void logits(const Matrix* head, int count, const float* hidden, float* out) = 0;
  virtual void choose(const Rows& rows, const Matrix* head, const int32_t* ids, const Sampling* samplings,
                      const Choice& choice) = 0;
};

template <class T>
class Decoder final : public Model {
 public:
  Decoder(const Shape& shape, const Layer* layers, const Edges& edges, Team& team)
      : shape_(shape),
        layers_(layers, layers + shape.num_layers),
        edges_(edges),
        team_(team),
        residual_(shape, team_),
        attention_(shape, edges.cos, edges.sin, team_, residual_),
        mlp_(shape, team_, residual_) {}

  int width() const override { return shape_.hidden; }

  void forward(const Rows& rows) override {
    resize(rows);
    team_.run([&](int rank) {
      sublayers(rows, rank);
      if (rows.patch) return residual_.patch(rows, edges_.norm, rank);
      residual_.normalise(part(rows.count, rank, team_.size()), edges_.norm, rows.hidden);
    });
  }

  // Keys and values of rows go from their places to their positions, the first row's first.
  void keep_branch(const Rows& rows) override {
    for (int layer = 0; layer < shape_.num_layers; layer++)
      for (int head = 0; head < shape_.kv_heads; head++)
        for (int r = 0; r < rows.count; r++)
          HeadCache<T>(shape_, rows, layer, r, head).copy(rows.places[r], rows.positions[r]);
  }

  // The residual stream [count][hidden] behind the sub-layers from `first` to before `last`, in place of the one in
  // front of them; from the first sub-layer on it begins as the tokens' embeddings.
  void pass(const Rows& rows, int first, int last, float* residual) override {
    resize(rows);
    team_.run([&](int rank) {
      if (first == 0)
        residual_.embed(rows, edges_.embeddings, rank);
      else
        residual_.begin(rows.count, residual, rank);
      for (int sublayer = first; sublayer < last; sublayer++) apply(rows, sublayer, rank);
      residual_.read(part(rows.count, rank, team_.size()), residual);
    });
  }

  // Logits [count][outputs] of hidden states that `forward` gave; without a head the model's own.
  void logits(const Matrix* head, int count, const float* hidden, float* out) override {
    const Matrix& used = head ? *head : edges_.head;
    residual_.resize(count);
    team_.run([&](int rank) { score(used, residual_.rounded(count, hidden, rank, used), out, rank); });
  }

  // The token after each of the first rows, drawn as `samplings` ask; without them the likeliest. `ids` are the tokens
  // of the head's outputs; without them an output's number is its token.
  void choose(const Rows& rows, const Matrix* head, const int32_t* ids, const Sampling* samplings,
              const Choice& choice) override {
    const Matrix& used = head ? *head : edges_.head;
    resize(rows);
    picks_.resize(size_t(team_.size()) * rows.num_chosen);
    samplers_.resize(team_.size());
    team_.run([&](int rank) {
      sublayers(rows, rank);
      const Part own = score(used, states(rows, used, rank), choice.logits, rank);
      if (samplings)
        draw(rows.num_chosen, used.outputs, ids, samplings, choice, rank);
      else
        pick_all(rows.num_chosen, used.outputs, ids, own, choice, rank);
    });
  }

 private:
  void resize(const Rows& rows) {
    residual_.resize(rows.count);
    attention_.resize(rows);
    mlp_.resize(rows.count);
  }

  void sublayers(const Rows& rows, int rank) {
    residual_.embed(rows, edges_.embeddings, rank);
    for (int sublayer = 0; sublayer < 2 * shape_.num_layers; sublayer++) apply(rows, sublayer, rank);
  }

  // Attention and MLP of each layer take turns.
  void apply(const Rows& rows, int sublayer, int rank) {
    const int layer = sublayer / 2;
    if (rows.is_skipped[sublayer]) return;
    if (sublayer % 2 == 0)
      attention_.apply(rows, layers_[layer], layer, rank);
    else
      mlp_.apply(rows, layers_[layer], rank);
  }

  // Writes rows.hidden, and returns what tokens are chosen after as the head takes it.
  Inputs states(const Rows& rows, const Matrix& head, int rank) {
    if (rows.patch) {
      residual_.patch(rows, edges_.norm, rank);
      return residual_.rounded(rows.num_chosen, rows.hidden, rank, head);
    }
    residual_.normalise(part(rows.count, rank, team_.size()), edges_.norm, rows.hidden);
    return residual_.normalised(rows.num_chosen, edges_.norm, rank, head);
  }

  // Logits of this rank's share of a head's outputs, which it returns.
  Part score(const Matrix& head, const Inputs& x, float* out, int rank) {
    const Part own = part(panels(head.outputs), rank, team_.size());
    multiply(own, x, head, [&](int row, int first, f32x16 sums) {
      float* to = out + size_t(row) * head.outputs + first;
      if (first + LANES <= head.outputs) return store16(to, sums);
      for (int i = 0; first + i < head.outputs; i++) to[i] = sums[i];
    });
    return {own.first * LANES, std::min(own.last * LANES, head.outputs)};
  }

  void pick_all(int count, int outputs, const int32_t* ids, Part own, const Choice& choice, int rank) {
    const int ranks = team_.size();
    for (int r = 0; r < count; r++)
      picks_[rank * count + r] = pick(choice.logits + size_t(r) * outputs, own, choice.probabilities);
    team_.barrier();
    if (rank != 0) return;
    for (int r = 0; r < count; r++) {
      settle(picks_, ranks, count, r, choice);
      if (ids) choice.tokens[r] = ids[choice.tokens[r]];
    }
  }

  // Each rank draws for rows of its own.
  void draw(int count, int outputs, const int32_t* ids, const Sampling* samplings, const Choice& choice, int rank) {
    team_.barrier();
    for (int r = rank; r < count; r += team_.size()) {
      const float* logits = choice.logits + size_t(r) * outputs;
      const int size = edges_.head.outputs;
      if (choice.probabilities) choice.probabilities[r] = top_probability(logits, outputs);
      if (ids) logits = samplers_[rank].spread(logits, outputs, ids, size);
      choice.tokens[r] = samplers_[rank].draw(logits, size, samplings[r]);
    }
  }

  const Shape shape_;
  const std::vector<Layer> layers_;
  const Edges edges_;
  Team& team_;
  Residual residual_;
  Attention<T> attention_;
  Mlp mlp_;
  std::vector<Pick> picks_;
  std::vector<Sampler> samplers_;
};

}  // namespace
