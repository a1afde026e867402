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
    scores_.resize(size_t(FEW) * ranks * TILE * stride(rows));
    shares_.resize(scores_.size());
    totals_.resize(size_t(FEW) * ranks * TILE);
  }

  // The queries [groups][head_dim] of one row and key head, for the caller to fill in; those of a key head lie
  // together.
  Activation<T>* queries(int count, int row, int kv_head) {
    return &queries_[(size_t(kv_head) * count + row) * shape_.groups() * shape_.head_dim];
  }

  // The result, [count][heads * head_dim].
  const float* mixed() const { return mixed_.data(); }

  // Attention of all rows to some key heads.
  void mix_own(const Rows& rows, int layer, Part kv, int rank) {
    each_tile(rows, kv, [&](const Tile& tile, auto height, int) { mix<height>(rows, layer, tile, rank); });
  }

  // Attention of all rows to all key heads, by all ranks. Each takes every such tile in turn. Few tiles of a long text
  // cannot be dealt out evenly, so they take parts of each: of the positions for its scores, of the dimensions for its
  // values. No sum is another then.
  void mix_together(const Rows& rows, int layer, Team& team, int rank) {
    const Part kv{0, shape_.kv_heads};
    const int ranks = team.size();
    int count = 0;
    each_tile(rows, kv, [&](const Tile&, auto, int) { count++; });
    if (count > FEW * ranks || count % ranks == 0 ||
        *std::max_element(rows.positions, rows.positions + rows.count) < LONG)
      return each_tile(rows, kv, [&](const Tile& tile, auto height, int item) {
        if (item % ranks == rank) mix<height>(rows, layer, tile, rank);
      });
    each_tile(rows, kv, [&](const Tile& tile, auto height, int item) {
      score_all<height>(rows, layer, tile, part(panels(longest<height>(rows, tile)), rank, ranks), item);
    });
    team.barrier();
    each_tile(rows, kv, [&](const Tile& tile, auto height, int item) {
      for (int i = rank; i < height; i += ranks) soften<height>(rows, tile, i, item);
    });
    team.barrier();
    each_tile(rows, kv, [&](const Tile& tile, auto height, int item) {
      gather_all<height>(rows, layer, tile, part(shape_.head_dim / LANES, rank, ranks), item);
    });
  }

 private:
  // Query i of a tile is head `kv_head * groups + i % groups` of row `first_row + i / groups`, counted from
  // `first_query`.
  struct Tile {
    int first_row, first_query, kv_head;
  };

  static constexpr int FEW = 4;     // tiles for each rank, up to which they may be shared
  static constexpr int LONG = 512;  // positions from which on that pays two further meetings of the ranks

  // Numbers of a query's scores: all positions of a table, and a panel that may be read past a sequence's end.
  static int stride(const Rows& rows) { return rows.table_size * BLOCK_LENGTH + LANES; }

  // Calls body(tile, height, number); the height, its queries, is a compile-time constant.
  template <class F>
  void each_tile(const Rows& rows, Part kv, F&& body) const {
    int item = 0;
    for (int first = 0, last; first < rows.count; first = last) {
      for (last = first + 1; last < rows.count && rows.slots[last] == rows.slots[first];) last++;
      const int queries = (last - first) * shape_.groups(), tiles = (queries + TILE - 1) / TILE;
      for (int kv_head = kv.first; kv_head < kv.last; kv_head++)
        for (int tile = 0; tile < tiles; tile++, item++) {
          const auto [query, end] = part(queries, tile, tiles);
          with_constant(end - query, [&, query = query](auto height) { body({first, query, kv_head}, height, item); });
        }
    }
  }

  int row(const Tile& tile, int i) const { return tile.first_row + (tile.first_query + i) / shape_.groups(); }

  template <int Q>
  int longest(const Rows& rows, const Tile& tile) const {
    return rows.positions[row(tile, Q - 1)] + 1;
  }

  template <int Q>
  void mix(const Rows& rows, int layer, const Tile& tile, int place) {
    score_all<Q>(rows, layer, tile, {0, panels(longest<Q>(rows, tile))}, place);
    for (int i = 0; i < Q; i++) soften<Q>(rows, tile, i, place);
    gather_all<Q>(rows, layer, tile, {0, shape_.head_dim / LANES}, place);
  }

  // Scores at the positions of some panels of keys; `place` is where they are kept.
  template <int Q>
  void score_all(const Rows& rows, int layer, const Tile& tile, Part own, int place) {
    const HeadCache<T> cache(shape_, rows, layer, tile.first_row, tile.kv_head);
    const Activation<T>* queries =
        this->queries(rows.count, tile.first_row, tile.kv_head) + tile.first_query * shape_.head_dim;
    float* scores = &scores_[size_t(place) * TILE * stride(rows)];
    int p = own.first;
    for (; p + WIDE <= own.last; p += WIDE) score<Q, WIDE>(queries, cache, p, own.last - 1, scores, stride(rows));
    for (; p < own.last; p++) score<Q, 1>(queries, cache, p, own.last - 1, scores, stride(rows));
  }

  // Scores of Q queries at the positions of P panels of keys.
  template <int Q, int P>
  void score(const Activation<T>* queries, const HeadCache<T>& cache, int panel, int last, float* scores,
             int stride) const {
    const int dim = shape_.head_dim;
    const float scale = 1.0f / std::sqrt(float(dim));
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[Q][P] = {};
      const T *keys[P], *next[P];
      for (int p = 0; p < P; p++) {
        keys[p] = cache.keys(panel + p) + Pair<T>::element(0, lane);
        next[p] = cache.keys(std::min(panel + P + p, last)) + Pair<T>::element(0, lane);
      }
      accumulate(acc, queries, dim, keys, next, 2 * LANES, dim);
      for (int i = 0; i < Q; i++)
        for (int p = 0; p < P; p++) *(floats*)(scores + i * stride + (panel + p) * LANES + lane) = acc[i][p] * scale;
    }
  }

  // Exponentials of a query's scores, zeros behind its own position, and their sum.
  template <int Q>
  void soften(const Rows& rows, const Tile& tile, int i, int place) {
    const int length = rows.positions[row(tile, i)] + 1, end = panels(longest<Q>(rows, tile)) * LANES;
    const size_t first = (size_t(place) * TILE + i) * stride(rows);
    float* scores = &scores_[first];
    Activation<T>* shares = &shares_[first];
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
    totals_[place * TILE + i] = sum(total);
  }

  // The values of some panels of dimensions, summed by the shares of a tile's queries.
  template <int Q>
  void gather_all(const Rows& rows, int layer, const Tile& tile, Part own, int place) {
    const HeadCache<T> cache(shape_, rows, layer, tile.first_row, tile.kv_head);
    const int groups = shape_.groups(), length = longest<Q>(rows, tile);
    const Activation<T>* shares = &shares_[size_t(place) * TILE * stride(rows)];
    float scale[Q], *out[Q];
    for (int i = 0; i < Q; i++) {
      const int head = tile.kv_head * groups + (tile.first_query + i) % groups;
      scale[i] = 1.0f / totals_[place * TILE + i];
      out[i] = &mixed_[(size_t(row(tile, i)) * shape_.heads + head) * shape_.head_dim];
    }
    int p = own.first;
    for (; p + WIDE <= own.last; p += WIDE) gather<Q, WIDE>(shares, stride(rows), cache, p, length, scale, out);
    for (; p + 2 <= own.last; p += 2) gather<Q, 2>(shares, stride(rows), cache, p, length, scale, out);
    for (; p < own.last; p++) gather<Q, 1>(shares, stride(rows), cache, p, length, scale, out);
  }

  // The values of P panels of dimensions, summed by the shares of Q queries.
  template <int Q, int P>
  void gather(const Activation<T>* shares, int stride, const HeadCache<T>& cache, int panel, int longest,
              const float (&scale)[Q], float* const (&out)[Q]) const {
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[Q][P] = {};
      for (int t = 0; t < longest; t += BLOCK_LENGTH) {
        const T *values[P], *next[P];
        const int block = t / BLOCK_LENGTH, length = std::min(BLOCK_LENGTH, longest - t);
        for (int p = 0; p < P; p++) {
          values[p] = cache.values(block) + (panel + p) * 2 * LANES + Pair<T>::element(0, lane);
          next[p] = cache.values(std::min(block + 1, (longest - 1) / BLOCK_LENGTH)) + (panel + p) * 2 * LANES;
        }
        accumulate(acc, shares + t, stride, values, next, 2 * shape_.head_dim, length);
      }
      for (int i = 0; i < Q; i++)
        for (int p = 0; p < P; p++) *(floats*)(out[i] + (panel + p) * LANES + lane) = acc[i][p] * scale[i];
    }
  }

  const Shape shape_;
  std::vector<float> scores_, totals_, mixed_;
  std::vector<Activation<T>> queries_, shares_;
};

}  // namespace
