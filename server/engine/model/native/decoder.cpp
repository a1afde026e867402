// One forward of a Llama-shaped decoder on a CPU. Weights are read once for all rows; sums are in fp32. This file has
// the functions that Python calls (`kernels.py`); the headers have the rest, one chapter each: decoder.hpp first.
//
// Batch invariance: every sum runs in one fixed order for each row, whatever other rows are in the batch. So verifying
// eight tokens gives bit for bit the logits of decoding them one by one, and speculation is lossless in bf16 too.
//
// All headers are compiled here at once and keep their names in unnamed namespaces, so that the compiler sees every
// caller and may inline what is called within a pass.

#include "decoder.hpp"

#include "copying.hpp"
#include "drafting.hpp"

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

// Moves what the cache has of a tree's branch to where plain decoding would have put it.
void decoder_keep_branch(void* decoder, const Rows* rows) { static_cast<Model*>(decoder)->keep_branch(*rows); }

// Sub-layers are counted from 0: attention and MLP of each layer in turn.
void decoder_pass(void* decoder, const Rows* rows, int first, int last, float* residual) {
  static_cast<Model*>(decoder)->pass(*rows, first, last, residual);
}

// `head` may be another than the model's own, which is null: rows that `matrix_copy_outputs` has put together.
void decoder_logits(void* decoder, const Matrix* head, int count, const float* hidden, float* out) {
  static_cast<Model*>(decoder)->logits(head, count, hidden, out);
}

// Chooses among the outputs of `head`, whose tokens are `ids`; of all tokens where both are null. Without samplings the
// likeliest, else the one that the row's request draws.
void decoder_choose(void* decoder, const Rows* rows, const Matrix* head, const int32_t* ids, const Sampling* samplings,
                    const Choice* choice) {
  static_cast<Model*>(decoder)->choose(*rows, head, ids, samplings, *choice);
}

// The same of logits [count][size], and the probability of the likeliest token at a temperature of 1.
void logits_sample(const float* logits, int count, int size, const Sampling* samplings, int32_t* tokens, float* tops) {
  Sampler sampler;
  for (int r = 0; r < count; r++) {
    const float* row = logits + size_t(r) * size;
    tokens[r] = sampler.draw(row, size, samplings[r]);
    tops[r] = top_probability(row, size);
  }
}

// The likeliest tokens of each row [count][tokens].
void logits_likeliest(const float* logits, int count, int size, int tokens, int32_t* out) {
  for (int r = 0; r < count; r++) find_likeliest(logits + size_t(r) * size, size, tokens, out + r * tokens);
}

// Chooses as `decoder_choose` does.
void decoder_draft(void* decoder, const Rows* rows, const Matrix* head, const int32_t* ids, const Choice* choice,
                   const Chain* chain) {
  Model& model = *static_cast<Model*>(decoder);
  draft(*rows, model.width(), *choice, *chain,
        [&](const Rows& step, const Sampling* samplings) { model.choose(step, head, ids, samplings, *choice); });
}

void decoder_free(void* decoder) { delete static_cast<Model*>(decoder); }

// Gives the outputs from `first` on those that are named, of a matrix of the same kind.
void matrix_copy_outputs(const Matrix* from, int count, const int32_t* outputs, Matrix* to, int first) {
  for (int i = 0; i < count; i++) copy_output(*from, outputs[i], *to, first + i);
}
}
