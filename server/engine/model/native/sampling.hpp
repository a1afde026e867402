// The token that a request draws from a row of logits: temperature, then top-k, top-p and min-p, then a race in which
// each token runs for its weight over a noise of its own, and the largest wins (Gumbel-max).
//
// Noise comes from a counter (Philox4x32-10, Salmon et al. 2011): of the request's seed, the place in its text and the
// token's number. So a token's noise is the same in any batch and for any draft, and is made only for those that may
// win. `distribution.py` has the same definition for torch.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "greedy.hpp"
#include "interface.hpp"
#include "vectors.hpp"

namespace {

// A counter gives four numbers of 32 bits. Of 64 tokens, sixteen counters have one each: token 64 b + 16 w + l has
// number w of counter 16 b + l.
constexpr int WORDS = 4, BLOCK_TOKENS = WORDS * LANES;
constexpr double FRACTION = 1.0 / 4294967296.0;  // of 32 random bits

// The halves of the products of 32 bits.
struct Halves {
  words high, low;
};

inline Halves multiply_wide(words x, uint32_t factor) {
#ifdef __AVX512F__
  const __m512i all = (__m512i)x, times = _mm512_set1_epi32(int(factor));
  const words even = (words)_mm512_mul_epu32(all, times);
  const words odd = (words)_mm512_mul_epu32(_mm512_srli_epi64(all, 32), times);
  return {(words)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64((__m512i)even, 32), (__m512i)odd),
          (words)_mm512_mask_blend_epi32(0xaaaa, (__m512i)even, _mm512_slli_epi64((__m512i)odd, 32))};
#else
  const __m256i all = (__m256i)x, times = _mm256_set1_epi32(int(factor));
  const words even = (words)_mm256_mul_epu32(all, times);
  const words odd = (words)_mm256_mul_epu32(_mm256_srli_epi64(all, 32), times);
  return {(words)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)even, 32), (__m256i)odd, 0xaa),
          (words)_mm256_blend_epi32((__m256i)even, _mm256_slli_epi64((__m256i)odd, 32), 0xaa)};
#endif
}

// The bits of 64 tokens from `first` on, which is a multiple of that.
inline void philox(uint64_t seed, uint64_t position, int first, uint32_t* out) {
  for (int lane = 0; lane < LANES; lane += WIDTH) {
    words a, b{}, c = words{} + uint32_t(position), d = words{} + uint32_t(position >> 32);
    for (int i = 0; i < WIDTH; i++) a[i] = uint32_t(first) / WORDS + lane + i;
    uint32_t low_key = uint32_t(seed), high_key = uint32_t(seed >> 32);
    for (int round = 0; round < 10; round++, low_key += 0x9e3779b9u, high_key += 0xbb67ae85u) {
      const Halves left = multiply_wide(a, 0xd2511f53u), right = multiply_wide(c, 0xcd9e8d57u);
      a = right.high ^ b ^ low_key;
      c = left.high ^ d ^ high_key;
      b = right.low;
      d = left.low;
    }
    int word = 0;
    for (const words& each : {a, b, c, d}) *(words*)(out + LANES * word++ + lane) = each;
  }
}

// Exponential with mean 1, of 32 random bits; small ones, which win, are the finest.
inline double exponential(uint32_t bits) { return -std::log1p(-(bits + 0.5) * FRACTION); }

struct Candidate {
  float weight;
  int token;
};

inline bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

// What draws rows one after the other write.
class Sampler {
 public:
  // The logits of some tokens at the places of these tokens among all, so that they run with their own noise.
  const float* spread(const float* logits, int count, const int32_t* ids, int size) {
    spread_.assign(size, -INFINITY);
    for (int i = 0; i < count; i++) spread_[ids[i]] = logits[i];
    return spread_.data();
  }

  int draw(const float* logits, int size, const Sampling& s) {
    const Pick best = pick(logits, {0, size}, false);
    if (s.temperature == 0 || best.token >= size) return std::min(best.token, size - 1);
    float total = weigh(logits, size, best.logit, std::min(1 / s.temperature, 1e30f));
    const bool is_top_k = s.top_k > 0 && s.top_k < size;
    if (!is_top_k && s.top_p >= 1 && s.min_p <= 0) return race_of_all(size, s);
    float least = 0;
    if (is_top_k) {
      least = kth_weight(size, s.top_k);
      total = total_from(size, least);
    }
    // What all that is lighter has together is too little for it to be among the likeliest of this mass.
    if (s.top_p < 1) least = std::max(least, (1 - std::max(s.top_p, 0.0f)) * total / size);
    collect(size, least);
    if (s.top_p < 1) candidates_.resize(nucleus(double(s.top_p) * total));
    if (s.min_p > 0) std::erase_if(candidates_, [&](const Candidate& each) { return each.weight < s.min_p; });
    return race(s);
  }

 private:
  // exp((logit - best) / temperature) of all, and their sum; beyond them zeros to a whole block. What is forbidden has
  // a logit of minus infinity, and no weight.
  float weigh(const float* logits, int size, float best, float factor) {
    weights_.resize((size + BLOCK_TOKENS - 1) / BLOCK_TOKENS * BLOCK_TOKENS);
    std::fill(weights_.begin() + size, weights_.end(), 0);
    f32x16 sums{};
    int i = 0;
    for (; i + LANES <= size; i += LANES) {
      const f32x16 weight = exp16_or_zero((load(logits + i) - best) * factor);
      store16(&weights_[i], weight);
      sums += weight;
    }
    float total = sum(sums);
    if (i < size) {
      f32x16 rest = splat(-INFINITY);
      std::memcpy(&rest, logits + i, (size - i) * sizeof(float));
      rest = exp16_or_zero((rest - best) * factor);
      std::memcpy(&weights_[i], &rest, (size - i) * sizeof(float));
      total += sum(rest);
    }
    return total;
  }

  // The k-th largest weight: a heap of the k largest so far, which few of a block enter.
  float kth_weight(int size, int k) {
    heap_.assign(weights_.begin(), weights_.begin() + k);
    const auto is_more = std::greater<float>();
    std::make_heap(heap_.begin(), heap_.end(), is_more);
    for (int i = k; i < size; i++)
      if (weights_[i] > heap_.front()) {
        std::pop_heap(heap_.begin(), heap_.end(), is_more);
        heap_.back() = weights_[i];
        std::push_heap(heap_.begin(), heap_.end(), is_more);
      }
    return heap_.front();
  }

  float total_from(int size, float least) const {
    double total = 0;
    for (int i = 0; i < size; i++) total += weights_[i] >= least ? weights_[i] : 0;
    return float(total);
  }

  void collect(int size, float least) {
    candidates_.clear();
    for (int i = 0; i < size; i++)
      if (weights_[i] >= least && weights_[i] > 0) candidates_.push_back({weights_[i], i});
  }

  // Puts the likeliest candidates in front: those before which there is less than this mass. Returns how many these
  // are.
  size_t nucleus(double mass) {
    size_t begin = 0, end = candidates_.size();
    double before = 0;  // of all in front of `begin`
    while (begin < end) {
      const size_t middle = begin + (end - begin) / 2;
      const auto first = candidates_.begin();
      std::nth_element(first + begin, first + middle, first + end, is_likelier);
      double sum = before;
      for (size_t i = begin; i < middle; i++) sum += candidates_[i].weight;
      if (sum < mass) {
        before = sum + candidates_[middle].weight;
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return std::max<size_t>(begin, 1);
  }

  // In the order of their tokens, so that neighbours share a block of noise.
  int race(const Sampling& s) {
    std::sort(candidates_.begin(), candidates_.end(), [](auto& a, auto& b) { return a.token < b.token; });
    double fastest = -1;
    int winner = 0, block = -1;
    uint32_t bits[BLOCK_TOKENS];
    for (const Candidate& each : candidates_) {
      if (each.token / BLOCK_TOKENS != block) {
        block = each.token / BLOCK_TOKENS;
        philox(s.seed, s.position, block * BLOCK_TOKENS, bits);
      }
      const double speed = each.weight / exponential(bits[each.token % BLOCK_TOKENS]);
      if (speed > fastest) fastest = speed, winner = each.token;
    }
    return winner;
  }

  int race_of_all(int size, const Sampling& s) const {
    int winner = 0;
    double fastest = 0;
    uint32_t bits[BLOCK_TOKENS];
    for (int first = 0; first < size; first += BLOCK_TOKENS) {
      // Noise is at least its bits as a fraction of one, and these are half a step at least. The small factor covers
      // what single precision rounds.
      const float needed = float(fastest * FRACTION) * 0.9999f;
      if (!any_over(&weights_[first], needed / 2)) continue;
      philox(s.seed, s.position, first, bits);
      if (!may_win(&weights_[first], bits, needed)) continue;
      for (int i = 0; i < BLOCK_TOKENS; i++) {
        if (weights_[first + i] == 0) continue;
        const double speed = weights_[first + i] / exponential(bits[i]);
        if (speed > fastest) fastest = speed, winner = first + i;
      }
    }
    return winner;
  }

  static bool any_over(const float* weights, float least) {
    ints is_over{};
    for (int i = 0; i < BLOCK_TOKENS; i += WIDTH) is_over |= *(const floats*)(weights + i) > floats{} + least;
    return is_any(is_over);
  }

  // Whether one of them may be faster; without the last of the bits, for numbers with a sign are converted at once.
  static bool may_win(const float* weights, const uint32_t* bits, float needed) {
    ints is_over{};
    for (int i = 0; i < BLOCK_TOKENS; i += WIDTH) {
      const floats half = __builtin_convertvector((ints)(*(const words*)(bits + i) >> 1), floats);
      is_over |= *(const floats*)(weights + i) > half * (2 * needed);
    }
    return is_any(is_over);
  }

  static bool is_any(ints mask) {
    int any = 0;
    for (int i = 0; i < WIDTH; i++) any |= mask[i];
    return any != 0;
  }

  std::vector<float> weights_, heap_, spread_;
  std::vector<Candidate> candidates_;
};

}  // namespace
