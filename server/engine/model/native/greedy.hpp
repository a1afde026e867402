// Greedy tokens: each rank picks the best of its share of the vocabulary, rank 0 settles on the best of all.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "interface.hpp"
#include "team.hpp"
#include "vectors.hpp"

namespace {

// The first of the largest logits of a share, and the sum of exponentials relative to it.
struct Pick {
  float logit, total;
  int token;
};

inline Pick pick(const float* logits, Part share, bool is_summing) {
  floats highest = floats{} - INFINITY;
  ints where = ints{} + share.first;
  const int whole = share.first + (share.last - share.first) / LANES * LANES;
  for (int i = share.first; i < whole; i += WIDTH) {
    const floats block = *(const floats*)(logits + i);
    where = block > highest ? ints{} + i : where;
    highest = block > highest ? block : highest;
  }
  Pick best{-INFINITY, 0, share.last};
  for (int i = 0; i < WIDTH; i++)
    if (highest[i] > best.logit || (highest[i] == best.logit && where[i] + i < best.token))
      best.logit = highest[i], best.token = where[i] + i;
  for (int i = whole; i < share.last; i++)
    if (logits[i] > best.logit) best.logit = logits[i], best.token = i;
  if (!is_summing) return best;
  f32x16 total{};
  for (int i = share.first; i < whole; i += LANES) total += exp16(load(logits + i) - best.logit);
  best.total = sum(total);
  for (int i = whole; i < share.last; i++) best.total += std::exp(logits[i] - best.logit);
  return best;
}

// The probability of the likeliest of these logits, at a temperature of 1 and without cuts.
inline float top_probability(const float* logits, int size) { return 1.0f / pick(logits, {0, size}, true).total; }

// The best of all ranks' picks [ranks][count] for a row.
inline void settle(const std::vector<Pick>& picks, int ranks, int count, int row, const Choice& choice) {
  Pick best = picks[row];
  for (int rank = 1; rank < ranks; rank++)
    if (const Pick& other = picks[rank * count + row]; other.logit > best.logit) best = other;
  choice.tokens[row] = best.token;
  if (!choice.probabilities) return;
  float total = 0;
  for (int rank = 0; rank < ranks; rank++) {
    const Pick& other = picks[rank * count + row];
    total += other.total * std::exp(other.logit - best.logit);
  }
  choice.probabilities[row] = 1.0f / total;
}

}  // namespace
