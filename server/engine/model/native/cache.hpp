// Where the cache keeps the keys and values of one sequence, in one layer and for one key head. Both are panels, as
// those of weights, so that a cache is multiplied like one. To keys the outputs are positions, to values dimensions.

#pragma once

#include "interface.hpp"
#include "panels.hpp"

namespace {

template <class T>
struct HeadCache {
  int dim;
  T* keys;    // panels [positions / 16][dims / 2] of 16 positions
  T* values;  // panels [positions / 2][dims / 16] of 16 dimensions

  HeadCache(const Shape& s, const Rows& rows, int layer, int row, int head) : dim(s.head_dim) {
    const size_t index = (size_t(layer) * rows.num_slots + rows.slots[row]) * s.kv_heads + head;
    keys = (T*)rows.keys + index * rows.max_length * dim;
    values = (T*)rows.values + index * rows.max_length * dim;
  }

  // Values of two positions stand in pairs. The place beside a last value is read, with weight zero, so a number must
  // stand there: `is_unpaired` puts a zero.
  void write(int position, const float* key, const float* value, bool is_unpaired) const {
    T* to_keys = keys + position / LANES * LANES * dim;
    T* to_values = values + position / 2 * 2 * dim;
    for (int i = 0; i < dim; i++) {
      store(to_keys + i / 2 * 2 * LANES + Pair<T>::element(i % 2, position % LANES), key[i]);
      store(to_values + i / LANES * 2 * LANES + Pair<T>::element(position % 2, i % LANES), value[i]);
      if (is_unpaired) store(to_values + i / LANES * 2 * LANES + Pair<T>::element(1, i % LANES), 0.0f);
    }
  }
};

}  // namespace
