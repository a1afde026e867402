// The core of attention: each query weighs the cached values of its sequence by softmax(query * key / sqrt(dim)). The
// queries that read the same keys, those of one slot's rows and one key head, go through the cache together in tiles.
//
// A row of a tree of drafts has its sums in the order of its branch's positions, as if that were all of the text. Of
// its scores, those of the branch are put in that order; values are copied into it, from the first block on that they
// differ in. What is before that is gone through for all branches at once.

#pragma once

#include <algorithm>
#include <vector>

#include "cache.hpp"
#include "tails.hpp"
#include "tiled_attention.hpp"

namespace {

template <class T>
class Mixing {
 public:
  explicit Mixing(const Shape& shape) : shape_(shape), tails_(shape.head_dim) {}

  void resize(const Rows& rows, int ranks) {
    queries_.resize(size_t(rows.count) * shape_.heads * shape_.head_dim);
    mixed_.resize(queries_.size());
    scores_.resize(size_t(FEW) * ranks * TALLEST * stride(rows));
    shares_.resize(scores_.size());
    totals_.resize(size_t(FEW) * ranks * TALLEST);
    tails_.resize(rows, FEW * ranks);
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
      score_all(rows, layer, tile, part(panels(stored(rows, tile)), rank, ranks), item);
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

  // Places that hold the keys of a tile's queries.
  int stored(const Rows& rows, const Tile& tile) const { return rows.place(row(tile, tile.height - 1)) + 1; }

  // Positions that the queries of a tile see at most.
  int length(const Rows& rows, const Tile& tile) const {
    int last = rows.positions[row(tile, tile.height - 1)];
    if (rows.parents)
      for (int r = tile.first_row; r <= row(tile, tile.height - 1); r++) last = std::max(last, rows.positions[r]);
    return last + 1;
  }

  void mix(const Rows& rows, int layer, const Tile& tile, int place) {
    score_all(rows, layer, tile, {0, panels(stored(rows, tile))}, place);
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
    put_in_order(rows, row(tile, i), scores);
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

  // A row's scores at the places of its branch go to their positions, none of which is behind its place.
  static void put_in_order(const Rows& rows, int row, float* scores) {
    if (!rows.is_elsewhere(row)) return;
    put_in_order(rows, rows.parents[row], scores);
    scores[rows.positions[row]] = scores[rows.places[row]];
  }

  // The values of some panels of dimensions, summed by the shares of a tile's queries: for all of them to where the
  // first branch may begin, then for each branch on its own.
  void gather_all(const Rows& rows, int layer, const Tile& tile, Part own, int place) {
    const HeadCache<T> cache(shape_, rows, layer, tile.first_row, tile.kv_head);
    const Part all{0, tile.height};
    const auto cached = [&](int block) { return cache.values(block); };
    if (!rows.is_elsewhere(row(tile, tile.height - 1)))
      return sum_values(rows, tile, all, {0, length(rows, tile)}, own, place, true, cached);
    const int shared = rows.positions[tile.first_row] / BLOCK_LENGTH * BLOCK_LENGTH;
    if (shared) sum_values(rows, tile, all, {0, shared}, own, place, false, cached);
    for (Part some{0, 0}; some.first < tile.height; some.first = some.last) {
      some.last = branch_end(rows, tile, some.first);
      const int last = row(tile, some.last - 1);
      const Part positions{shared, rows.positions[last] + 1};
      if (!rows.is_elsewhere(last)) {
        sum_values(rows, tile, some, positions, own, place, true, cached);
        continue;
      }
      const T* tail = tails_.copy(rows, cache, last, positions, own, place);
      const auto copied = [&](int block) { return tail + size_t(block * BLOCK_LENGTH - shared) * shape_.head_dim; };
      sum_values(rows, tile, some, positions, own, place, true, copied);
    }
  }

  // The first query of a tile that is of another branch than this one.
  int branch_end(const Rows& rows, const Tile& tile, int query) const {
    while (++query < tile.height) {
      const int r = row(tile, query);
      if (r != row(tile, query - 1) && rows.is_elsewhere(r) && rows.parents[r] != r - 1) break;
    }
    return query;
  }

  // The same of some queries and positions. Sums that begin behind others go on from those; `is_whole` ones are divided
  // by their totals.
  template <class F>
  void sum_values(const Rows& rows, const Tile& tile, Part some, Part positions, Part own, int place, bool is_whole,
                  F&& values) {
    const int groups = shape_.groups(), stride = this->stride(rows), height = some.last - some.first;
    const Activation<T>* shares = &shares_[(size_t(place) * TALLEST + some.first) * stride];
    float scale[TALLEST], *out[TALLEST];
    for (int i = 0; i < height; i++) {
      const int query = some.first + i, head = tile.kv_head * groups + (tile.first_query + query) % groups;
      scale[i] = is_whole ? 1.0f / totals_[place * TALLEST + query] : 1;
      out[i] = &mixed_[(size_t(row(tile, query)) * shape_.heads + head) * shape_.head_dim];
    }
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, bf16>)
      if (attends_in_tiles<T>()) {
        const auto begun = [&](int i, int panel) { return load(out[i] + panel * LANES); };
        const auto finish = [&](int i, int panel, f32x16 sums) { store16(out[i] + panel * LANES, sums * scale[i]); };
        return TiledAttention::gather(height, shares, stride, positions, shape_.head_dim, own, values, begun, finish);
      }
#endif
    with_constant(height, [&](auto queries) {
      int p = own.first;
      for (; p + WIDE <= own.last; p += WIDE) gather<queries, WIDE>(shares, stride, values, p, positions, scale, out);
      for (; p + 2 <= own.last; p += 2) gather<queries, 2>(shares, stride, values, p, positions, scale, out);
      for (; p < own.last; p++) gather<queries, 1>(shares, stride, values, p, positions, scale, out);
    });
  }

  // The values of P panels of dimensions, summed by the shares of Q queries.
  template <int Q, int P, class F>
  void gather(const Activation<T>* shares, int stride, F&& values, int panel, Part positions, const float* scale,
              float* const* out) const {
    for (int lane = 0; lane < LANES; lane += WIDTH) {
      floats acc[Q][P] = {};
      if (positions.first)
        for (int i = 0; i < Q; i++)
          for (int p = 0; p < P; p++) acc[i][p] = *(const floats*)(out[i] + (panel + p) * LANES + lane);
      for (int t = positions.first; t < positions.last; t += BLOCK_LENGTH) {
        const T *of_block[P], *next[P];
        const int block = t / BLOCK_LENGTH, length = std::min(BLOCK_LENGTH, positions.last - t);
        for (int p = 0; p < P; p++) {
          of_block[p] = values(block) + (panel + p) * 2 * LANES + Pair<T>::element(0, lane);
          next[p] = values(std::min(block + 1, (positions.last - 1) / BLOCK_LENGTH)) + (panel + p) * 2 * LANES;
        }
        accumulate(acc, shares + t, stride, of_block, next, 2 * shape_.head_dim, length);
      }
      for (int i = 0; i < Q; i++)
        for (int p = 0; p < P; p++) *(floats*)(out[i] + (panel + p) * LANES + lane) = acc[i][p] * scale[i];
    }
  }

  const Shape shape_;
  std::vector<float> scores_, totals_, mixed_;
  std::vector<Activation<T>> queries_, shares_;
  Tails<T> tails_;
};

}  // namespace
