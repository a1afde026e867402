// The likeliest tokens of a row of logits, the likeliest first.

#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.hpp"

namespace {

// Writes `count` tokens. Most of a row is passed over by the highest logit of a stretch.
inline void find_likeliest(const float* logits, int size, int count, int32_t* tokens) {
  constexpr int STRETCH = 16 * LANES;
  int found = 0;
  const auto insert = [&](int token) {
    if (found == count && !(logits[token] > logits[tokens[count - 1]])) return;
    int place = found < count ? found++ : count - 1;
    for (; place > 0 && logits[token] > logits[tokens[place - 1]]; place--) tokens[place] = tokens[place - 1];
    tokens[place] = token;
  };
  for (int first = 0; first < size; first += STRETCH) {
    const int last = std::min(first + STRETCH, size);
    if (found == count && last == first + STRETCH) {
      f32x16 peaks = load(logits + first);
      for (int i = first + LANES; i < last; i += LANES) peaks = larger(load(logits + i), peaks);
      if (!(highest(peaks) > logits[tokens[count - 1]])) continue;
    }
    for (int token = first; token < last; token++) insert(token);
  }
}

}  // namespace
