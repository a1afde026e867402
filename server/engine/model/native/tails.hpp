// The values of a branch of a tree of drafts, from the first block on that it has not in common with others: copied to
// where they would stand if it were all of the text.

#pragma once

#include <algorithm>
#include <vector>

#include "cache.hpp"

namespace {

template <class T>
class Tails {
 public:
  explicit Tails(int dim) : dim_(dim) {}

  // Room for so many at a time.
  void resize(const Rows& rows, int places) {
    size_ = size_t(rows.count / BLOCK_LENGTH + 2) * BLOCK_LENGTH * dim_;
    if (rows.parents) values_.resize(places * size_);
  }

  // Blocks of the values of a row's branch at these positions, some panels of each; kept at a place of its own.
  const T* copy(const Rows& rows, const HeadCache<T>& cache, int row, Part positions, Part panels, int place) {
    const int from = panels.first * 2 * LANES, size = (panels.last - panels.first) * 2 * LANES;
    T* tail = &values_[place * size_];
    const auto block = [&](int t) { return tail + size_t(t / BLOCK_LENGTH * BLOCK_LENGTH - positions.first) * dim_; };
    for (int t = positions.first; t < positions.last; t += 2) {
      const int pair = t % BLOCK_LENGTH * dim_ + from;
      std::copy_n(cache.values(t / BLOCK_LENGTH) + pair, size, block(t) + pair);
    }
    for (; rows.is_elsewhere(row); row = rows.parents[row])
      cache.copy_value(rows.places[row], block(rows.positions[row]), rows.positions[row], panels);
    return tail;
  }

 private:
  int dim_;
  size_t size_ = 0;  // of a tail, in numbers
  std::vector<T> values_;
};

}  // namespace
