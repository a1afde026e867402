// The structs that cross from Python to C++: `kernels.py` declares the same fields in the same order, so change both
// together. Tensors are bare pointers, which Python keeps alive; an absent tensor is null.

#pragma once

#include <cstdint>

// A weight in panels of 16 outputs: numbers of 32 or 16 bits (panels.hpp), or codes of 8, 6, 5 or 4 bits (codes.hpp),
// of which each group of inputs has a scale. The bias is padded to whole panels.
struct Matrix {
  int outputs, inputs, bits, group;
  int zero;        // the code of a zero where groups have no minimum
  int input_bits;  // of what codes are multiplied with: 8, 16 for fine ones (inputs.hpp), 32 for fp32
  const void* weights;
  const void *scales, *minima;  // of each group: fp16, or integers in these units, fp16, of 256 inputs
  const void *scale_units, *minimum_units;
  const float* bias;
};

// One layer's weights; norms are fp32.
struct Layer {
  const float *attention_norm, *query_norm, *key_norm, *mlp_norm;
  Matrix query, key, value, output, gate, up, down;
};

// What is not in a layer. RoPE's tables are [positions][head_dim].
struct Edges {
  const float *norm, *cos, *sin;
  Matrix head, embeddings;
};

struct Shape {
  int num_layers, hidden, intermediate, heads, kv_heads, head_dim;
  int is_bf16;  // whether the cache is
  float epsilon;

  int groups() const { return heads / kv_heads; }  // query heads that share one key head
};

// One pass: a row is a token with its position in a sequence; a slot is the sequence's number, by which its table is
// found. Rows of one slot stand together, in the order of their positions.
struct Rows {
  int count, table_size;
  int num_chosen;  // rows, the first ones, after which a token is chosen
  const int32_t *ids, *positions, *slots;
  const int32_t* tables;      // [slots][table_size]: the blocks that hold a slot's positions, in their order
  void *keys, *values;        // [blocks][layers][kv heads][BLOCK_LENGTH * head_dim], see cache.hpp
  const uint8_t* is_skipped;  // [layers][attention, mlp]
  float* hidden;              // [count][hidden], the result: states after the last norm
  const Matrix* patch;        // unless null, what gives them in place of the last norm, [hidden][2 * hidden],
  const float* states;        // from the normalised residual and this state of the place before, [count][hidden]
  int is_reading;             // whether the cache stays as it is: it has the keys and values of these places already
};

// The token chosen after each row and, unless null, the likeliest one's probability; logits [count][outputs of the
// head].
struct Choice {
  int32_t* tokens;
  float* probabilities;
  float* logits;
};

// How the token after one row is drawn: at a temperature of 0 the likeliest, else by noise of seed and position.
struct Sampling {
  float temperature, top_p, min_p;
  int top_k;  // 0 is all
  uint64_t seed, position;
};

// A draft for each of `rows.count` sequences: at most limits[i] tokens, ended by one that is less probable than
// `confidence`, and before one that is less probable than `floor`. Row i of `drafted` [count][stride] receives
// lengths[i] tokens. `samplings` draw the first ones; without them a draft is greedy.
struct Chain {
  int stride;
  float confidence, floor;
  const int32_t* limits;
  int32_t *drafted, *lengths;
  const Sampling* samplings;
};
