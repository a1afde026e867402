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
  Attention(const Shape& shape, const float* cos, const float* sin, Team& team, Residual& residual)
      : shape_(shape),
        width_((shape.heads + 2 * shape.kv_heads) * shape.head_dim),
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
    const Inputs x = residual_.normalised(rows.count, layer.attention_norm, rank, layer.query, layer.key, layer.value);
    if (shape_.kv_heads % ranks == 0) {
      const Part kv = part(shape_.kv_heads, rank, ranks);
      const int key_panels = shape_.head_dim / LANES, query_panels = key_panels * shape_.groups();
      project(x, layer, {kv.first * query_panels, kv.last * query_panels},
              {kv.first * key_panels, kv.last * key_panels});
      place(rows, layer, index, {0, rows.count}, kv);
      mixing_.mix_own(rows, index, kv, rank);
    } else {
      const Part kv{0, shape_.kv_heads};
      project(x, layer, part(panels(layer.query.outputs), rank, ranks), part(panels(layer.key.outputs), rank, ranks));
      team_.barrier();
      place(rows, layer, index, part(rows.count, rank, ranks), kv);
      team_.barrier();
      mixing_.mix_together(rows, index, team_, rank);
    }
    team_.barrier();
    residual_.add(rows.count, mixing_.mixed(), layer.output, rank);
  }

 private:
  // Some panels of the queries, and of both keys and values, of all rows.
  void project(const Inputs& x, const Layer& layer, Part queries, Part keys) {
    const auto write_from = [this](int start) {
      return [this, start](int row, int first, f32x16 sums) {
        store16(&qkv_[size_t(row) * width_ + start + first], sums);
      };
    };
    multiply(queries, x, layer.query, write_from(0));
    multiply(keys, x, layer.key, write_from(layer.query.outputs));
    multiply(keys, x, layer.value, write_from(layer.query.outputs + layer.key.outputs));
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
        if (rows.is_reading) continue;
        const bool is_last = r + 1 == rows.count || rows.slots[r + 1] != rows.slots[r];
        const int place = rows.place(r);
        HeadCache<T>(shape_, rows, index, r, h).write(place, key, value, is_last && place % 2 == 0);
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
  const int width_;          // of a row of queries, keys and values
  const float *cos_, *sin_;  // [positions][head_dim]
  Team& team_;
  Residual& residual_;
  Mixing<T> mixing_;
  std::vector<float> qkv_;
};

}  // namespace
