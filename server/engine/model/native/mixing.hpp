// The core of attention: each query weighs the cached values of its sequence by softmax(query * key / sqrt(dim)). The
// queries that read the same keys, those of one slot's rows and one key head, go through the cache together in tiles.

#pragma once

#include <algorithm>
#include <vector>

#include "cache.hpp"
#include "tiled_attention.hpp"

namespace {

template <class T>
class Mixing {
 public:
  explicit Mixing(const Shape& shape) : shape_(shape) {}

  void resize(const Rows& rows, int ranks) {
    queries_.resize(size_t(rows.count) * shape_.heads * shape_.head_dim);
    mixed_.resize(queries_.size());
    scores_.resize(size_t(FEW) * ranks * TALLEST * stride(rows));
    shares_.resize(scores_.size());
    totals_.resize(size_t(FEW) * ranks * TALLEST);
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
    each_tile(rows, kv, [&](const Tile& tile, int) { mix(rows, layer, tile, rank); });
  }

  // Attention of all rows to all key heads, by all ranks. Each takes every such tile in turn. Few tiles of a long text
  // cannot be dealt out evenly, so they take parts of each: of the positions for its scores, of the dimensions for its
  // values. No sum is another then.
  void mix_together(const Rows& rows, int layer, Team& team, int rank) {
    const Part kv{0, shape_.kv_heads};
    const int ranks = team.size();
    int count = 0;
    each_tile(rows, kv, [&](const Tile&, int) { count++; });
    const int longest = *std::max_element(rows.positions, rows.positions + rows.count);
    if (count > FEW * ranks || count % ranks == 0 || longest < LONG)
      return each_tile(rows, kv, [&](const Tile& tile, int item) {
        if (item % ranks == rank) mix(rows, layer, tile, rank);
      });
    each_tile(rows, kv, [&](const Tile& tile, int item) {
      score_all(rows, layer, tile, part(panels(length(rows, tile)), rank, ranks), item);
    });
    team.barrier();
    each_tile(rows, kv, [&](const Tile& tile, int item) {
      for (int i = rank; i < tile.height; i += ranks) soften(rows, tile, i, item);
    });
    team.barrier();
    each_tile(rows, kv, [&](const Tile& tile, int item) {
      gather_all(rows, layer, tile, part(shape_.head_dim / LANES, rank, ranks), item);
    });
  }

 private:
  // Query i of a tile is head `kv_head * groups + i % groups` of row `first_row + i / groups`, counted from
  // `first_query`.
  struct Tile {
    int first_row, first_query, kv_head, height;
  };

  static constexpr int TALLEST = 16;  // queries of a tile
  static constexpr int FEW = 4;       // tiles for each rank, up to which they may be shared
  static constexpr int LONG = 512;    // positions from which on that pays two further meetings of the ranks

  // Numbers of a query's scores: all positions of a table, and a panel that may be read past a sequence's end.
  static int stride(const Rows& rows) { return rows.table_size * BLOCK_LENGTH + LANES; }

  // Calls body(tile, number).
  template <class F>
  void each_tile(const Rows& rows, Part kv, F&& body) const {
    const int tallest = attends_in_tiles<T>() ? TALLEST : TILE;
    int item = 0;
    for (int first = 0, last; first < rows.count; first = last) {
      for (last = first + 1; last < rows.count && rows.slots[last] == rows.slots[first];) last++;
      const int queries = (last - first) * shape_.groups(), tiles = (queries + tallest - 1) / tallest;
      for (int kv_head = kv.first; kv_head < kv.last; kv_head++)
        for (int tile = 0; tile < tiles; tile++) {
          const Part own = part(queries, tile, tiles);
          body(Tile{first, own.first, kv_head, own.last - own.first}, item++);
        }
    }
  }

  int row(const Tile& tile, int i) const { return tile.first_row + (tile.first_query + i) / shape_.groups(); }

  // Positions that a tile's last query sees.
  int length(const Rows& rows, const Tile& tile) const { return rows.positions[row(tile, tile.height - 1)] + 1; }

  void mix(const Rows& rows, int layer, const Tile& tile, int place) {
    score_all(rows, layer, tile, {0, panels(length(rows, tile))}, place);
    for (int i = 0; i < tile.height; i++) soften(rows, tile, i, place);
    gather_all(rows, layer, tile, {0, shape_.head_dim / LANES}, place);
  }

  // Scores at the positions of some panels of keys; `place` is where they are kept.
  void score_all(const Rows& rows, int layer, const Tile& tile, Part own, int place) {
    const HeadCache<T> cache(shape_, rows, layer, tile.first_row, tile.kv_head);
    const int dim = shape_.head_dim, stride = this->stride(rows);
    const Activation<T>* queries = this->queries(rows.count, tile.first_row, tile.kv_head) + tile.first_query * dim;
    float* scores = &scores_[size_t(place) * TALLEST * stride];
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, bf16>)
      if (attends_in_tiles<T>()) {
        const auto keys = [&](int panel) { return cache.keys(panel); };
        return TiledAttention::score(tile.height, queries, dim, own, keys, 1.0f / std::sqrt(float(dim)), scores,
                                     stride);
      }
#endif
    with_constant(tile.height, [&](auto height) {
      int p = own.first;
      for (; p + WIDE <= own.last; p += WIDE) score<height, WIDE>(queries, cache, p, own.last - 1, scores, stride);
      for (; p < own.last; p++) score<height, 1>(queries, cache, p, own.last - 1, scores, stride);
    });
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
  void soften(const Rows& rows, const Tile& tile, int i, int place) {
    const int length = rows.positions[row(tile, i)] + 1, end = panels(this->length(rows, tile)) * LANES;
    const size_t first = (size_t(place) * TALLEST + i) * stride(rows);
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
    totals_[place * TALLEST + i] = sum(total);
  }

  // The values of some panels of dimensions, summed by the shares of a tile's queries.
  void gather_all(const Rows& rows, int layer, const Tile& tile, Part own, int place) {
    const HeadCache<T> cache(shape_, rows, layer, tile.first_row, tile.kv_head);
    const int groups = shape_.groups(), length = this->length(rows, tile), stride = this->stride(rows);
    const Activation<T>* shares = &shares_[size_t(place) * TALLEST * stride];
    float scale[TALLEST], *out[TALLEST];
    for (int i = 0; i < tile.height; i++) {
      const int head = tile.kv_head * groups + (tile.first_query + i) % groups;
      scale[i] = 1.0f / totals_[place * TALLEST + i];
      out[i] = &mixed_[(size_t(row(tile, i)) * shape_.heads + head) * shape_.head_dim];
    }
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, bf16>)
      if (attends_in_tiles<T>()) {
        const auto values = [&](int block) { return cache.values(block); };
        const auto finish = [&](int i, int panel, f32x16 sums) { store16(out[i] + panel * LANES, sums * scale[i]); };
        return TiledAttention::gather(tile.height, shares, stride, length, shape_.head_dim, own, values, finish);
      }
#endif
    with_constant(tile.height, [&](auto height) {
      int p = own.first;
      for (; p + WIDE <= own.last; p += WIDE) gather<height, WIDE>(shares, stride, cache, p, length, scale, out);
      for (; p + 2 <= own.last; p += 2) gather<height, 2>(shares, stride, cache, p, length, scale, out);
      for (; p < own.last; p++) gather<height, 1>(shares, stride, cache, p, length, scale, out);
    });
  }

  // The values of P panels of dimensions, summed by the shares of Q queries.
  template <int Q, int P>
  void gather(const Activation<T>* shares, int stride, const HeadCache<T>& cache, int panel, int longest,
              const float* scale, float* const* out) const {
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
