// One forward of a Llama-shaped decoder on a CPU. Weights are read once for all rows; sums are in fp32. This file has
// the functions that Python calls (`kernels.py`); the headers have the rest, one chapter each: decoder.hpp first.
//
// Batch invariance: every sum runs in one fixed order for each row, whatever other rows are in the batch. So verifying
// eight tokens gives bit for bit the logits of decoding them one by one, and speculation is lossless in bf16 too.
//
// All headers are compiled here at once and keep their names in unnamed namespaces, so that the compiler sees every
// caller and may inline what is called within a pass.

#include "decoder.hpp"

extern "C" {

void* team_new(int size) { return new Team(size); }

void team_free(void* team) { delete static_cast<Team*>(team); }

// The team outlives the decoder; one decoder at a time uses it.
void* decoder_new(const Shape* shape, const Layer* layers, const Edges* edges, void* team) {
  Team& threads = *static_cast<Team*>(team);
  if (shape->is_bf16) return new Decoder<bf16>(*shape, layers, *edges, threads);
  return new Decoder<float>(*shape, layers, *edges, threads);
}

void decoder_forward(void* decoder, const Rows* rows) { static_cast<Model*>(decoder)->forward(*rows); }

void decoder_logits(void* decoder, int count, const float* hidden, float* out) {
  static_cast<Model*>(decoder)->logits(count, hidden, out);
}

void decoder_greedy(void* decoder, const Rows* rows, const Greedy* greedy) {
  static_cast<Model*>(decoder)->greedy(*rows, *greedy);
}

void decoder_draft(void* decoder, const Rows* rows, const Greedy* greedy, const Chain* chain) {
  draft(*rows, *greedy, *chain, [&](const Rows& step) { static_cast<Model*>(decoder)->greedy(step, *greedy); });
}

void decoder_free(void* decoder) { delete static_cast<Model*>(decoder); }
}
