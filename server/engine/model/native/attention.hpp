// The attention sub-layer: project the normalised rows to queries, keys and values; turn queries and keys by their
// positions (RoPE) and put keys and values into the cache; mix (mixing.hpp); add the output to the residual stream.

#pragma once

#include <vector>

#include "cache.hpp"
#include "mixing.hpp"
#include "residual.hpp"

namespace {

template <class T>
class Attention {
 public:
  Attention(const Shape& shape, const float* cos, const float* sin, Team& team, Residual<T>& residual)
      : shape_(shape),
        width_(panels(shape.qkv_width()) * LANES),
        cos_(cos),
        sin_(sin),
        team_(team),
        residual_(residual),
        mixing_(shape) {}

  void resize(const Rows& rows) {
    qkv_.resize(size_t(rows.count) * width_);
    mixing_.resize(rows, team_.size());
  }

  // Where key heads can be dealt out evenly, a rank goes all the way from the norm to its own heads' mixture without
  // waiting for the others.
  void apply(const Rows& rows, const Layer& layer, int index, int rank) {
    const int ranks = team_.size();
    const Activation<T>* x = residual_.normalised(rows.count, layer.attention_norm, rank);
    if (shape_.kv_heads % ranks == 0) {
      const Part kv = part(shape_.kv_heads, rank, ranks);
      project_heads(rows.count, x, layer, kv);
      place(rows, layer, index, {0, rows.count}, kv);
      mixing_.mix_all(rows, index, kv, 0, 1, rank);
    } else {
      const Part kv{0, shape_.kv_heads};
      project(rows.count, x, layer, part(width_ / LANES, rank, ranks));
      team_.barrier();
      place(rows, layer, index, part(rows.count, rank, ranks), kv);
      team_.barrier();
      mixing_.mix_all(rows, index, kv, rank, ranks, rank);
    }
    team_.barrier();
    residual_.add(rows.count, mixing_.mixed(), shape_.heads * shape_.head_dim, (const T*)layer.output,
                  layer.output_bias, rank);
  }

 private:
  // Some panels of [queries, keys, values] of all rows.
  void project(int count, const Activation<T>* x, const Layer& layer, Part some) {
    multiply(some, count, x, (const T*)layer.qkv, shape_.hidden, [&](int row, int i, f32x16 acc) {
      store16(&qkv_[size_t(row) * width_ + i], layer.qkv_bias ? acc + load(layer.qkv_bias + i) : acc);
    });
  }

  // The queries, keys and values of some key heads.
  void project_heads(int count, const Activation<T>* x, const Layer& layer, Part kv) {
    const int dim_panels = shape_.head_dim / LANES, groups = shape_.groups();
    project(count, x, layer, {kv.first * groups * dim_panels, kv.last * groups * dim_panels});
    for (int before : {shape_.heads, shape_.heads + shape_.kv_heads})
      project(count, x, layer, {(before + kv.first) * dim_panels, (before + kv.last) * dim_panels});
  }

  // Head norms and RoPE of some rows and key heads; their queries go to the mixing, keys and values to the cache.
  void place(const Rows& rows, const Layer& layer, int index, Part some, Part kv) {
    const int dim = shape_.head_dim, groups = shape_.groups();
    for (int r = some.first; r < some.last; r++)
      for (int h = kv.first; h < kv.last; h++) {
        const int position = rows.positions[r];
        float* query = &qkv_[size_t(r) * width_ + h * groups * dim];
        for (int g = 0; g < groups; g++) rotate(query + g * dim, layer.query_norm, position);
        Activation<T>* rounded = mixing_.queries(rows.count, r, h);
        for (int i = 0; i < groups * dim; i += LANES) store16(rounded + i, load(query + i));
        float* key = &qkv_[size_t(r) * width_ + (shape_.heads + h) * dim];
        const float* value = key + shape_.kv_heads * dim;
        rotate(key, layer.key_norm, position);
        const bool is_last = r + 1 == rows.count || rows.slots[r + 1] != rows.slots[r];
        HeadCache<T>(shape_, rows, index, r, h).write(position, key, value, is_last && position % 2 == 0);
      }
  }

  void rotate(float* head, const float* norm, int position) const {
    const int half = shape_.head_dim / 2;
    if (norm) {
      float scale = inverse_rms(head, shape_.head_dim, shape_.epsilon);
      for (int i = 0; i < shape_.head_dim; i++) head[i] *= scale * norm[i];
    }
    const float *cos = cos_ + size_t(position) * shape_.head_dim, *sin = sin_ + size_t(position) * shape_.head_dim;
#pragma GCC ivdep
    for (int i = 0; i < half; i++) {
      float low = head[i], high = head[i + half];
      head[i] = low * cos[i] + high * sin[i];  // `sin` carries the sign of the swapped half
      head[i + half] = high * cos[i + half] + low * sin[i + half];
    }
  }

  const Shape shape_;
  const int width_;          // of a row of queries, keys and values, in whole vectors
  const float *cos_, *sin_;  // [positions][head_dim]
  Team& team_;
  Residual<T>& residual_;
  Mixing<T> mixing_;
  std::vector<float> qkv_;
};

}  // namespace
