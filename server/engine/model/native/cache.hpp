// Where the cache keeps the keys and values of one sequence, in one layer and for one key head. A block has those of
// `BLOCK` positions, and the sequence's table says which block comes where. Within a block both are panels, as those of
// weights, so that a cache is multiplied like one. To keys the outputs are positions, to values dimensions.

#pragma once

#include <algorithm>

#include "interface.hpp"
#include "panels.hpp"

namespace {

constexpr int BLOCK_LENGTH = 32;  // positions of a block, as in kvcache/cache.py, and of a tile of shares
constexpr int BLOCK_PANELS = BLOCK_LENGTH / LANES;

template <class T>
class HeadCache {
 public:
  HeadCache(const Shape& s, const Rows& rows, int layer, int row, int head)
      : dim_(s.head_dim), table_(rows.tables + size_t(rows.slots[row]) * rows.table_size) {
    const size_t size = size_t(BLOCK_LENGTH) * dim_, index = size_t(layer) * s.kv_heads + head;
    stride_ = size * s.num_layers * s.kv_heads;
    keys_ = (T*)rows.keys + index * size;
    values_ = (T*)rows.values + index * size;
  }

  // A panel [dims / 2] of the keys of 16 positions, counted from the sequence's first.
  T* keys(int panel) const {
    return keys_ + table_[panel / BLOCK_PANELS] * stride_ + panel % BLOCK_PANELS * LANES * dim_;
  }

  // The panels [positions / 2][dims / 16] of 16 dimensions of a block's values.
  T* values(int block) const { return values_ + table_[block] * stride_; }

  // Gives a place what another has.
  void copy(int from, int to) const {
    const T* from_keys = keys(from / LANES);
    T* to_keys = keys(to / LANES);
    for (int i = 0; i < dim_; i++)
      to_keys[i / 2 * 2 * LANES + Pair<T>::element(i % 2, to % LANES)] =
          from_keys[i / 2 * 2 * LANES + Pair<T>::element(i % 2, from % LANES)];
    copy_value(from, values(to / BLOCK_LENGTH), to, {0, dim_ / LANES});
  }

  // Gives a block of values, for a position in it, some panels of what stands at a place.
  void copy_value(int place, T* block, int position, Part panels) const {
    const T* from = values(place / BLOCK_LENGTH) + place % BLOCK_LENGTH / 2 * 2 * dim_;
    T* to = block + position % BLOCK_LENGTH / 2 * 2 * dim_;
    for (int i = panels.first * 2 * LANES; i < panels.last * 2 * LANES; i += 2 * LANES)
      for (int lane = 0; lane < LANES; lane++)
        to[i + Pair<T>::element(position % 2, lane)] = from[i + Pair<T>::element(place % 2, lane)];
  }

  // Values of two positions stand in pairs. The place beside a last value is read, with weight zero, so a number must
  // stand there: `is_unpaired` puts a zero.
  void write(int position, const float* key, const float* value, bool is_unpaired) const {
    T* to_keys = keys(position / LANES);
    T* to_values = values(position / BLOCK_LENGTH) + position % BLOCK_LENGTH / 2 * 2 * dim_;
    for (int i = 0; i < dim_; i++) {
      store(to_keys + i / 2 * 2 * LANES + Pair<T>::element(i % 2, position % LANES), key[i]);
      store(to_values + i / LANES * 2 * LANES + Pair<T>::element(position % 2, i % LANES), value[i]);
      if (is_unpaired) store(to_values + i / LANES * 2 * LANES + Pair<T>::element(1, i % LANES), 0.0f);
    }
  }

 private:
  int dim_;
  const int32_t* table_;
  size_t stride_;  // of a block
  T *keys_, *values_;
};

}  // namespace
