// A draft is a chain of tokens, one pass of the decoder for each.

#pragma once

#include <algorithm>
#include <vector>

#include "interface.hpp"

namespace {

// The rows of one pass: the sequences that go on, each with its last token.
class DraftingRows {
 public:
  DraftingRows(const Rows& first, const Chain& chain) : first_(first), chain_(chain), ids_(first.count) {
    positions_ = slots_ = ids_;
    if (chain.samplings) samplings_.resize(first.count);
  }

  Rows of(const std::vector<int>& active, const std::vector<float>& states) {
    Rows rows = first_;
    rows.count = rows.num_chosen = int(active.size());
    for (int a = 0; a < rows.count; a++) {
      const int i = active[a], done = chain_.lengths[i];
      ids_[a] = done ? chain_.drafted[i * chain_.stride + done - 1] : first_.ids[i];
      positions_[a] = first_.positions[i] + done;
      slots_[a] = first_.slots[i];
      if (!chain_.samplings) continue;
      samplings_[a] = chain_.samplings[i];
      samplings_[a].position += done;
    }
    rows.ids = ids_.data(), rows.positions = positions_.data(), rows.slots = slots_.data();
    rows.states = states.data();
    return rows;
  }

  const Sampling* samplings() const { return chain_.samplings ? samplings_.data() : nullptr; }

 private:
  const Rows& first_;
  const Chain& chain_;
  std::vector<int32_t> ids_, positions_, slots_;
  std::vector<Sampling> samplings_;
};

// Writes the chains. `choose(rows, samplings)` makes one pass and leaves its tokens and probabilities in `choice`.
// Hidden states of so many numbers go from pass to pass where a patch reads them.
template <class F>
inline void draft(const Rows& rows, int width, const Choice& choice, const Chain& chain, F&& choose) {
  std::vector<int> active;  // sequences that go on
  for (int i = 0; i < rows.count; i++) {
    chain.lengths[i] = 0;
    if (chain.limits[i] > 0) active.push_back(i);
  }
  std::vector<float> states;  // of the active sequences, in their order
  if (rows.states)
    for (int i : active)
      states.insert(states.end(), rows.states + size_t(i) * width, rows.states + size_t(i + 1) * width);
  DraftingRows steps(rows, chain);
  while (!active.empty()) {
    choose(steps.of(active, states), steps.samplings());
    std::vector<int> still_active;
    for (int a = 0; a < int(active.size()); a++) {
      const int i = active[a];
      if (choice.probabilities[a] < chain.floor) continue;
      chain.drafted[i * chain.stride + chain.lengths[i]++] = choice.tokens[a];
      if (chain.lengths[i] >= chain.limits[i] || choice.probabilities[a] < chain.confidence) continue;
      if (rows.states) std::copy_n(rows.hidden + size_t(a) * width, width, &states[still_active.size() * width]);
      still_active.push_back(i);
    }
    active.swap(still_active);
  }
}

}  // namespace
