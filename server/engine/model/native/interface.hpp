// The structs that cross from Python to C++: `kernels.py` declares the same fields in the same order, so change both
// together. Tensors are bare pointers, which Python keeps alive; an absent tensor is null.

#pragma once

#include <cstdint>

// One layer's weights: panels [out / 16][in / 2][16][2] (bf16) or [out / 16][in][16] (fp32), see panels.hpp. Norms,
// biases and RoPE tables are fp32.
struct Layer {
  const float* attention_norm;
  const void* qkv;
  const float *qkv_bias, *query_norm, *key_norm;
  const void* output;
  const float *output_bias, *mlp_norm;
  const void* gate_up;
  const float* gate_up_bias;
  const void* down;
  const float* down_bias;
};

struct Shape {
  int num_layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, is_bf16, num_threads;
  float epsilon;

  int groups() const { return heads / kv_heads; }  // query heads that share one key head
  int qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
};

// One pass: a row is a token with its position in a sequence; a slot is the sequence's place in the cache. Rows of one
// slot stand together, in the order of their positions.
struct Rows {
  int count, num_slots, max_length;
  const int32_t *ids, *positions, *slots;
  void *keys, *values;        // [layers][slots][kv heads][max_length * head_dim], see cache.hpp
  const uint8_t* is_skipped;  // [layers][attention, mlp]
  float* hidden;              // [count][hidden], the result
};

// The greedy token after each row and, unless null, its probability; scratch for logits [count][vocabulary].
struct Greedy {
  int32_t* tokens;
  float* probabilities;
  float* logits;
};

// A draft for each of `rows.count` sequences: at most limits[i] tokens, ended by one that is less probable than
// `confidence`. Row i of `drafted` [count][stride] receives lengths[i] tokens.
struct Chain {
  int stride;
  float confidence;
  const int32_t* limits;
  int32_t *drafted, *lengths;
};
