// The core of attention: each query weighs the cached values of its sequence by softmax(query * key / sqrt(dim)). The
// queries that read the same keys, those of one slot's rows and one key head, go through the cache together in tiles.

#pragma once

#include <algorithm>
#include <vector>

#include "cache.hpp"

namespace {

template <class T>
class Mixing {
 public:
  explicit Mixing(const Shape& shape) : shape_(shape) {}

  void resize(const Rows& rows, int ranks) {
    queries_.resize(size_t(rows.count) * shape_.heads * shape_.head_dim);
    mixed_.resize(queries_.size());
    scores_.resize(size_t(ranks) * TILE * stride(rows));
    shares_.resize(scores_.size());
  }

  // The queries [groups][head_dim] of one row and key head, for the caller to fill in; those of a key head lie
  // together.
  Activation<T>* queries(int count, int row, int kv_head) {
    return &queries_[(size_t(kv_head) * count + row) * shape_.groups() * shape_.head_dim];
  }

  // The result, [count][heads * head_dim].
  const float* mixed() const { return mixed_.data(); }

  // Attention of all rows to some key heads. Where several ranks share these, `sharers` of them, each takes every
  // such tile in turn.
  void mix_all(const Rows& rows, int layer, Part kv, int turn, int sharers, int rank) {
    int item = 0;
    for (int first = 0, last; first < rows.count; first = last) {
      for (last = first + 1; last < rows.count && rows.slots[last] == rows.slots[first];) last++;
      const int queries = (last - first) * shape_.groups(), tiles = (queries + TILE - 1) / TILE;
      for (int kv_head = kv.first; kv_head < kv.last; kv_head++)
        for (int tile = 0; tile < tiles; tile++) {
          if (item++ % sharers != turn) continue;
          auto [query, end] = part(queries, tile, tiles);
          with_constant(end - query,
                        [&, query = query](auto height) { mix<height>(rows, layer, first, query, kv_head, rank); });
        }
    }
  }

 private:
  // Numbers of a query's scores: all positions of a table, and a panel that may be read past a sequence's end.
  static int stride(const Rows& rows) { return rows.table_size * BLOCK_LENGTH + LANES; }

  // Query i of a tile is head `kv_head * groups + i % groups` of row `first_row + i / groups`, counted from
  // `first_query`.
  template <int Q>
  void mix(const Rows& rows, int layer, int first_row, int first_query, int kv_head, int rank) {
    const int dim = shape_.head_dim, groups = shape_.groups(), stride = this->stride(rows);
    const HeadCache<T> cache(shape_, rows, layer, first_row, kv_head);
    const Activation<T>* queries = this->queries(rows.count, first_row, kv_head) + first_query * dim;
    float* scores = &scores_[size_t(rank) * TILE * stride];
    Activation<T>* shares = &shares_[size_t(rank) * TILE * stride];
    const auto row = [&](int i) { return first_row + (first_query + i) / groups; };
    const int longest = rows.positions[row(Q - 1)] + 1, num_panels = panels(longest);
    int p = 0;
    for (; p + WIDE <= num_panels; p += WIDE) score<Q, WIDE>(queries, cache, p, scores, stride);
    for (; p < num_panels; p++) score<Q, 1>(queries, cache, p, scores, stride);
    float scale[Q];
    for (int i = 0; i < Q; i++) {
      const float total = soften(scores + i * stride, rows.positions[row(i)] + 1, longest, shares + i * stride);
      scale[i] = 1.0f / total;
    }
    float* out[Q];
    for (int i = 0; i < Q; i++)
      out[i] = &mixed_[(size_t(row(i)) * shape_.heads + kv_head * groups + (first_query + i) % groups) * dim];
    for (p = 0; p + WIDE <= dim / LANES; p += WIDE)
      gather<Q, WIDE>(shares, stride, cache, p, longest, scale, out);
    for (; p < dim / LANES; p++) gather<Q, 1>(shares, stride, cache, p, longest, scale, out);
  }

  // Scores of Q queries at the positions of P panels of keys.
  template <int Q, int P>
  void score(const Activation<T>* queries, const HeadCache<T>& cache, int panel, float* scores, int stride) const {
    const int dim = shape_.head_dim;
    const float scale = 1.0f / std::sqrt(float(dim));
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[Q][P] = {};
      const T* keys[P];
      for (int p = 0; p < P; p++) keys[p] = cache.keys(panel + p) + Pair<T>::element(0, lane);
      accumulate(acc, queries, dim, keys, 2 * LANES, dim);
      for (int i = 0; i < Q; i++)
        for (int p = 0; p < P; p++) *(floats*)(scores + i * stride + (panel + p) * LANES + lane) = acc[i][p] * scale;
    }
  }

  // Exponentials of the scores before `length`, zeros from there on; returns their sum.
  static float soften(float* scores, int length, int longest, Activation<T>* shares) {
    const int end = panels(longest) * LANES;
    for (int t = length; t < end; t++) scores[t] = -INFINITY;
    f32x16 peaks = splat(-INFINITY);
    for (int t = 0; t < length; t += LANES) {
      const f32x16 block = load(scores + t);
      peaks = larger(block, peaks);
    }
    const float peak = highest(peaks);
    f32x16 total{};
    for (int t = 0; t < end; t += LANES) {
      const f32x16 block = load(scores + t);
      const f32x16 p = exp16_or_zero(block - peak);
      store16(shares + t, p);
      total += p;
    }
    return sum(total);
  }

  // The values of P panels of dimensions, summed by the shares of Q queries.
  template <int Q, int P>
  void gather(const Activation<T>* shares, int stride, const HeadCache<T>& cache, int panel, int longest,
              const float (&scale)[Q], float* const (&out)[Q]) const {
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[Q][P] = {};
      for (int t = 0; t < longest; t += BLOCK_LENGTH) {
        const T* first = cache.values(t / BLOCK_LENGTH) + panel * 2 * LANES + Pair<T>::element(0, lane);
        const int length = std::min(BLOCK_LENGTH, longest - t);
        accumulate<false>(acc, shares + t, stride, first, 2 * shape_.head_dim, 2 * LANES, length);
      }
      for (int i = 0; i < Q; i++)
        for (int p = 0; p < P; p++) *(floats*)(out[i] + (panel + p) * LANES + lane) = acc[i][p] * scale[i];
    }
  }

  const Shape shape_;
  std::vector<float> scores_, mixed_;
  std::vector<Activation<T>> queries_, shares_;
};

}  // namespace
