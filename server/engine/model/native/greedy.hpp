// Greedy tokens. Each rank picks the best of its share of the vocabulary, rank 0 settles on the best of all; a draft
// is a chain of such tokens, one pass of the decoder for each.

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

// The best of all ranks' picks [ranks][count] for a row.
inline void settle(const std::vector<Pick>& picks, int ranks, int count, int row, const Greedy& greedy) {
  Pick best = picks[row];
  for (int rank = 1; rank < ranks; rank++)
    if (const Pick& other = picks[rank * count + row]; other.logit > best.logit) best = other;
  greedy.tokens[row] = best.token;
  if (!greedy.probabilities) return;
  float total = 0;
  for (int rank = 0; rank < ranks; rank++) {
    const Pick& other = picks[rank * count + row];
    total += other.total * std::exp(other.logit - best.logit);
  }
  greedy.probabilities[row] = 1.0f / total;
}

// Writes the chains. `next_tokens(rows)` makes one pass and leaves its tokens and probabilities in `greedy`. Hidden
// states of so many numbers go from pass to pass where a patch reads them.
template <class F>
inline void draft(const Rows& rows, int width, const Greedy& greedy, const Chain& chain, F&& next_tokens) {
  std::vector<int> active;  // sequences that go on
  for (int i = 0; i < rows.count; i++) {
    chain.lengths[i] = 0;
    if (chain.limits[i] > 0) active.push_back(i);
  }
  std::vector<int32_t> ids(rows.count), positions(rows.count), slots(rows.count);
  std::vector<float> states;  // of the active sequences, in their order
  if (rows.states)
    for (int i : active)
      states.insert(states.end(), rows.states + size_t(i) * width, rows.states + size_t(i + 1) * width);
  while (!active.empty()) {
    Rows step = rows;
    step.count = int(active.size());
    for (int a = 0; a < step.count; a++) {
      const int i = active[a], done = chain.lengths[i];
      ids[a] = done ? chain.drafted[i * chain.stride + done - 1] : rows.ids[i];
      positions[a] = rows.positions[i] + done;
      slots[a] = rows.slots[i];
    }
    step.ids = ids.data(), step.positions = positions.data(), step.slots = slots.data();
    step.states = states.data();
    next_tokens(step);
    std::vector<int> still_active;
    for (int a = 0; a < step.count; a++) {
      const int i = active[a];
      if (greedy.probabilities[a] < chain.floor) continue;
      chain.drafted[i * chain.stride + chain.lengths[i]++] = greedy.tokens[a];
      if (chain.lengths[i] >= chain.limits[i] || greedy.probabilities[a] < chain.confidence) continue;
      if (rows.states) std::copy_n(rows.hidden + size_t(a) * width, width, &states[still_active.size() * width]);
      still_active.push_back(i);
    }
    active.swap(still_active);
  }
}

}  // namespace
