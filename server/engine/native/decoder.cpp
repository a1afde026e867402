// One forward of a Llama-shaped decoder on a CPU. Weights are read once for all rows; sums are in
// fp32.
//
// Batch invariance: every sum below runs in one fixed order for each row, whatever other rows are
// in the batch. So verifying eight tokens gives bit for bit the logits of decoding them one by one,
// and speculation is lossless in bf16 too.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

typedef float f16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t u16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4)));
typedef uint16_t h16 __attribute__((vector_size(32), aligned(2)));
constexpr int LANES = 16;

struct bf16 {
  uint16_t bits;
};

inline f16 splat(float x) { return f16{} + x; }

inline float sum(f16 v) {  // a tree: the order is fixed and the latency short
  typedef float f8 __attribute__((vector_size(32)));
  typedef float f4 __attribute__((vector_size(16)));
  f8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  f4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The sums of 16 vectors as one vector: halves of pairs are added until one lane of each is left.
template <int HALF>
inline f16 add_halves(f16 a, f16 b) {
  if constexpr (HALF == 8)
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  else if constexpr (HALF == 4)
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  else if constexpr (HALF == 2)
    return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

inline f16 sums(f16 (&v)[LANES]) {
  for (int i = 0; i < 8; i++) v[i] = add_halves<8>(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 4; i++) v[i] = add_halves<4>(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 2; i++) v[i] = add_halves<2>(v[2 * i], v[2 * i + 1]);
  return add_halves<1>(v[0], v[1]);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline void store(float *to, float x) { *to = x; }
inline void store(bf16 *to, float x) {  // round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline f16 load(const float *x) { return *(const f16 *)x; }
inline f16 load(const bf16 *x) { return (f16)(__builtin_convertvector(*(const h16 *)x, u16) << 16); }

// Two consecutive inputs of 16 outputs, and the product with one row's two activations. bf16 panels
// interleave the pair in 32-bit lanes, which is what the bf16 dot-product instruction takes; its
// activations are bf16 too.
template <class T>
struct Pair;

template <>
struct Pair<float> {
  using Activation = float;
  f16 even, odd;
  explicit Pair(const float *w) : even(load(w)), odd(load(w + LANES)) {}
  f16 add(f16 acc, const float *x) const { return acc + even * x[0] + odd * x[1]; }
};

#ifdef __AVX512BF16__
template <>
struct Pair<bf16> {
  using Activation = bf16;
  __m512bh both;
  explicit Pair(const bf16 *w) : both((__m512bh)_mm512_loadu_si512(w)) {}
  f16 add(f16 acc, const bf16 *x) const {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (f16)_mm512_dpbf16_ps((__m512)acc, both, (__m512bh)_mm512_set1_epi32(pair));
  }
};
#else
template <>
struct Pair<bf16> {
  using Activation = float;
  f16 even, odd;
  explicit Pair(const bf16 *w) {
    u16 both = *(const u16 *)w;
    even = (f16)(both << 16);
    odd = (f16)(both & 0xffff0000u);
  }
  f16 add(f16 acc, const float *x) const { return acc + even * x[0] + odd * x[1]; }
};
#endif

inline void store16(float *to, f16 v) { *(f16 *)to = v; }
inline void store16(bf16 *to, f16 v) {  // round to nearest even
  u16 bits = (u16)v;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *(h16 *)to = __builtin_convertvector(bits, h16);
}

// exp with 2e-7 relative error: 2^n by the exponent bits, 2^f by a polynomial on [-0.5, 0.5].
inline f16 exp16(f16 x) {
  f16 low = splat(-87.0f), high = splat(88.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  f16 t = x * 1.44269504f;
  f16 shifted = t + 12582912.0f;
  f16 n = shifted - 12582912.0f;
  f16 f = (x - n * 0.693145751953125f) - n * 1.42860677e-6f;
  f16 p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  i16 exponent = (__builtin_convertvector(n, i16) + 127) << 23;
  return p * (f16)exponent;
}

// Workers that sleep between steps and meet at barriers within one.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { work(i); });
  }
  ~Team() {
    job_ = nullptr;
    start();
    for (auto &thread : threads_) thread.join();
  }
  template <class F>
  void run(F &&body) {
    auto call = [](void *context, int rank) { (*static_cast<F *>(context))(rank); };
    context_ = &body;
    job_ = call;
    start();
    body(0);
    barrier();
  }
  void barrier() {
    if (size_ == 1) return;
    int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++)
      if (spins > 4000) std::this_thread::yield();
  }
  int size() const { return size_; }

 private:
  void start() {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  void work(int rank) {
    for (unsigned seen = 0;;) {
      for (int spins = 0; spins < 20000 && generation_.load(std::memory_order_acquire) == seen; spins++)
        ;
      generation_.wait(seen, std::memory_order_acquire);
      seen++;
      if (!job_) return;
      job_(context_, rank);
      barrier();
    }
  }
  int size_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> arrived_{0}, phase_{0};
  void (*job_)(void *, int) = nullptr;
  void *context_ = nullptr;
  std::vector<std::thread> threads_;
};

struct Part {
  int first, last;
};
inline Part part(int total, int rank, int size) { return {total * rank / size, total * (rank + 1) / size}; }

}  // namespace

// Weights are panels [out / 16][in / 2][16][2] (bf16) or [out / 16][in][16] (fp32); norms, biases and
// RoPE tables are fp32; absent parts are null.
struct Layer {
  const float *attention_norm;
  const void *qkv;
  const float *qkv_bias, *query_norm, *key_norm;
  const void *output;
  const float *output_bias, *mlp_norm;
  const void *gate_up;
  const float *gate_up_bias;
  const void *down;
  const float *down_bias;
};

struct Shape {
  int num_layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, is_bf16, num_threads;
  float epsilon;
};

struct Rows {
  int count, num_slots, max_length;
  const int32_t *ids, *positions, *slots;
  void *keys, *values;      // [layers][slots][kv heads][positions][head_dim]
  const uint8_t *is_skipped;  // [layers][attention, mlp]
  float *hidden;            // [count][hidden], the result
};

// The greedy token after each row and its probability; scratch for logits [count][vocabulary].
struct Greedy {
  int32_t *tokens;
  float *probabilities;
  float *logits;
};

// A draft for each of `rows.count` sequences: at most limits[i] tokens, ended by one that is less
// probable than `confidence`. Row i of `drafted` [count][stride] receives lengths[i] tokens.
struct Chain {
  int stride;
  float confidence;
  const int32_t *limits;
  int32_t *drafted, *lengths;
};

namespace {

struct Model {
  virtual ~Model() = default;
  virtual void forward(const Rows &rows) = 0;
  virtual void logits(int count, const float *hidden, float *out) = 0;
  virtual void greedy(const Rows &rows, const Greedy &greedy) = 0;

  void draft(const Rows &rows, const Greedy &greedy, const Chain &chain) {
    std::vector<int> active;
    for (int i = 0; i < rows.count; i++) {
      chain.lengths[i] = 0;
      if (chain.limits[i] > 0) active.push_back(i);
    }
    std::vector<int32_t> ids(rows.count), positions(rows.count), slots(rows.count);
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
      this->greedy(step, greedy);
      std::vector<int> still_active;
      for (int a = 0; a < step.count; a++) {
        const int i = active[a];
        chain.drafted[i * chain.stride + chain.lengths[i]++] = greedy.tokens[a];
        if (chain.lengths[i] < chain.limits[i] && greedy.probabilities[a] >= chain.confidence) still_active.push_back(i);
      }
      active.swap(still_active);
    }
  }
};

template <class T>
class Decoder final : public Model {
 public:
  Decoder(const Shape &s, const Layer *layers, const float *norm, const void *head, const float *head_bias,
          const void *embeddings, const float *cos, const float *sin)
      : s_(s), layers_(layers, layers + s.num_layers), norm_(norm), head_((const T *)head), head_bias_(head_bias),
        embeddings_((const T *)embeddings), cos_(cos), sin_(sin), team_(s.num_threads) {}

  void forward(const Rows &rows) override {
    resize(rows);
    team_.run([&](int rank) { pass(rows, rank); });
  }

  void logits(int count, const float *hidden, float *out) override {
    normed_.resize(size_t(count) * s_.hidden);
    team_.run([&](int rank) { project(count, hidden, out, rank); });
  }

  void greedy(const Rows &rows, const Greedy &greedy) override {
    resize(rows);
    team_.run([&](int rank) {
      pass(rows, rank);
      project(rows.count, rows.hidden, greedy.logits, rank);
      auto [first, last] = part(rows.count, rank, team_.size());
      for (int r = first; r < last; r++)
        greedy.tokens[r] = best(greedy.logits + size_t(r) * s_.vocabulary, greedy.probabilities[r]);
    });
  }

 private:
  using Activation = typename Pair<T>::Activation;

  static int panels(int outputs) { return (outputs + LANES - 1) / LANES; }
  int qkv_width() const { return (s_.heads + 2 * s_.kv_heads) * s_.head_dim; }

  void pass(const Rows &rows, int rank) {
    embed(rows, rank);
    for (int layer = 0; layer < s_.num_layers; layer++) {
      if (!rows.is_skipped[2 * layer]) attention(rows, layer, rank);
      if (!rows.is_skipped[2 * layer + 1]) mlp(rows, layers_[layer], rank);
    }
    normalise(rows.count, x_.data(), norm_, rows.hidden, rank);
  }

  void project(int count, const float *hidden, float *out, int rank) {
    auto [first, last] = part(count, rank, team_.size());
    for (int i = first * s_.hidden; i < last * s_.hidden; i++) store(&normed_[i], hidden[i]);
    team_.barrier();
    multiply(rank, count, normed_.data(), head_, s_.hidden, panels(s_.vocabulary), [&](int row, int first, f16 acc) {
      float *to = out + size_t(row) * s_.vocabulary + first;
      if (!head_bias_ && first + LANES <= s_.vocabulary) return store16(to, acc);
      for (int i = 0; i < LANES && first + i < s_.vocabulary; i++) to[i] = acc[i] + (head_bias_ ? head_bias_[first + i] : 0);
    });
    team_.barrier();
  }

  // The first of the largest logits, and its probability.
  int best(const float *logits, float &probability) const {
    int token = 0;
    f16 highest = splat(-INFINITY);
    const int whole = s_.vocabulary / LANES * LANES;
    for (int i = 0; i < whole; i += LANES) {
      const f16 block = load(logits + i);
      highest = block > highest ? block : highest;
    }
    float peak = -INFINITY;
    for (int i = 0; i < LANES; i++) peak = std::max(peak, highest[i]);
    for (int i = whole; i < s_.vocabulary; i++) peak = std::max(peak, logits[i]);
    while (token < s_.vocabulary - 1 && logits[token] != peak) token++;
    f16 total{};
    for (int i = 0; i < whole; i += LANES) total += exp16(load(logits + i) - peak);
    float rest = 0;
    for (int i = whole; i < s_.vocabulary; i++) rest += std::exp(logits[i] - peak);
    probability = 1.0f / (sum(total) + rest);
    return token;
  }

  void resize(const Rows &rows) {
    x_.resize(size_t(rows.count) * s_.hidden);
    normed_.resize(x_.size());
    qkv_.resize(size_t(rows.count) * panels(qkv_width()) * LANES);
    mixed_.resize(size_t(rows.count) * s_.heads * s_.head_dim);
    gate_.resize(size_t(rows.count) * s_.intermediate);
    inner_.resize(gate_.size());
    scores_.resize(size_t(team_.size()) * 4 * (rows.max_length + LANES));
  }

  void embed(const Rows &rows, int rank) {
    auto [first, last] = part(rows.count, rank, team_.size());
    for (int r = first; r < last; r++)
      for (int i = 0; i < s_.hidden; i++)
        x_[size_t(r) * s_.hidden + i] = to_float(embeddings_[size_t(rows.ids[r]) * s_.hidden + i]);
    team_.barrier();
  }

  static float inverse_rms(const float *x, int size, float epsilon) {
    float squares = 0;
    int i = 0;
    f16 acc{};
    for (; i + LANES <= size; i += LANES) acc += load(x + i) * load(x + i);
    for (; i < size; i++) squares += x[i] * x[i];
    return 1.0f / std::sqrt((sum(acc) + squares) / size + epsilon);
  }

  template <class Out>
  void normalise(int count, const float *x, const float *weight, Out *out, int rank) {
    auto [first, last] = part(count, rank, team_.size());
    for (int r = first; r < last; r++) {
      const float *row = x + size_t(r) * s_.hidden;
      float scale = inverse_rms(row, s_.hidden, s_.epsilon);
      Out *to = out + size_t(r) * s_.hidden;
      int i = 0;
      for (; i + LANES <= s_.hidden; i += LANES) store16(to + i, load(row + i) * scale * load(weight + i));
      for (; i < s_.hidden; i++) store(to + i, row[i] * scale * weight[i]);
    }
    team_.barrier();
  }

  // Calls finish(row, first output, 16 sums) for every row and this rank's panels. A group of panels
  // stays in the nearest cache while all rows use it.
  template <class F>
  void multiply(int rank, int count, const Activation *x, const T *w, int inputs, int num_panels, F &&finish) {
    auto [p, last] = part(num_panels, rank, team_.size());
    if (count == 1)
      for (; p + 8 <= last; p += 8) block<1, 8>(0, x, w, inputs, p, finish);
    for (; p + 4 <= last; p += 4) rows_of<4>(count, x, w, inputs, p, finish);
    for (; p < last; p++) rows_of<1>(count, x, w, inputs, p, finish);
  }

  template <int P, class F>
  void rows_of(int count, const Activation *x, const T *w, int inputs, int panel, F &finish) {
    const int chunks = (count + 5) / 6;
    for (int c = 0; c < chunks; c++) {
      auto [row, end] = part(count, c, chunks);
      switch (end - row) {
        case 1: block<1, P>(row, x, w, inputs, panel, finish); break;
        case 2: block<2, P>(row, x, w, inputs, panel, finish); break;
        case 3: block<3, P>(row, x, w, inputs, panel, finish); break;
        case 4: block<4, P>(row, x, w, inputs, panel, finish); break;
        case 5: block<5, P>(row, x, w, inputs, panel, finish); break;
        case 6: block<6, P>(row, x, w, inputs, panel, finish); break;
      }
    }
  }

  template <int R, int P, class F>
  void block(int row, const Activation *x, const T *w, int inputs, int panel, F &finish) {
    f16 acc[R][P] = {};
    const Activation *rows = x + size_t(row) * inputs;
    const T *base = w + size_t(panel) * LANES * inputs;
    for (int k = 0; k < inputs; k += 2)
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        Pair<T> pair(base + (size_t(p) * inputs + k) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[r][p] = pair.add(acc[r][p], rows + size_t(r) * inputs + k);
      }
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) finish(row + r, (panel + p) * LANES, acc[r][p]);
  }

  void attention(const Rows &rows, int index, int rank) {
    const Layer &layer = layers_[index];
    const int width = panels(qkv_width()) * LANES;
    normalise(rows.count, x_.data(), layer.attention_norm, normed_.data(), rank);
    multiply(rank, rows.count, normed_.data(), (const T *)layer.qkv, s_.hidden, width / LANES,
             [&](int row, int first, f16 acc) {
               f16 *out = (f16 *)&qkv_[size_t(row) * width + first];
               *out = layer.qkv_bias ? acc + load(layer.qkv_bias + first) : acc;
             });
    team_.barrier();
    place(rows, index, width, rank);
    team_.barrier();
    mix_all(rows, index, width, rank);
    team_.barrier();
    add(rows.count, mixed_.data(), s_.heads * s_.head_dim, (const T *)layer.output, layer.output_bias, rank);
  }

  T *cell(void *cache, const Rows &rows, int layer, int row, int head, int position) const {
    size_t head_index = (size_t(layer) * rows.num_slots + rows.slots[row]) * s_.kv_heads + head;
    return (T *)cache + (head_index * rows.max_length + position) * s_.head_dim;
  }

  // Head norms and RoPE in place; keys and values go to the cache.
  void place(const Rows &rows, int index, int width, int rank) {
    const Layer &layer = layers_[index];
    auto [first, last] = part(rows.count, rank, team_.size());
    for (int r = first; r < last; r++) {
      float *heads = &qkv_[size_t(r) * width];
      const int position = rows.positions[r];
      for (int h = 0; h < s_.heads + s_.kv_heads; h++)
        rotate(heads + h * s_.head_dim, h < s_.heads ? layer.query_norm : layer.key_norm, position);
      for (int h = 0; h < s_.kv_heads; h++) {
        const float *key = heads + (s_.heads + h) * s_.head_dim;
        const float *value = key + s_.kv_heads * s_.head_dim;
        T *key_cell = cell(rows.keys, rows, index, r, h, position);
        T *value_cell = cell(rows.values, rows, index, r, h, position);
        for (int i = 0; i < s_.head_dim; i += LANES) {
          store16(key_cell + i, load(key + i));
          store16(value_cell + i, load(value + i));
        }
      }
    }
  }

  void rotate(float *head, const float *norm, int position) const {
    const int half = s_.head_dim / 2;
    if (norm) {
      float scale = inverse_rms(head, s_.head_dim, s_.epsilon);
      for (int i = 0; i < s_.head_dim; i++) head[i] *= scale * norm[i];
    }
    const float *cos = cos_ + size_t(position) * s_.head_dim, *sin = sin_ + size_t(position) * s_.head_dim;
#pragma GCC ivdep
    for (int i = 0; i < half; i++) {
      float low = head[i], high = head[i + half];
      head[i] = low * cos[i] + high * sin[i];  // `sin` carries the sign of the swapped half
      head[i + half] = high * cos[i + half] + low * sin[i + half];
    }
  }

  // Attention in tiles of queries that read the same keys: the rows of one slot times the heads of
  // one key head. Tiles are dealt to the ranks in turn.
  void mix_all(const Rows &rows, int index, int width, int rank) {
    int item = 0;
    for (int first = 0, last; first < rows.count; first = last) {
      for (last = first + 1; last < rows.count && rows.slots[last] == rows.slots[first];) last++;
      const int queries = (last - first) * groups();
      for (int kv_head = 0; kv_head < s_.kv_heads; kv_head++)
        for (int q = 0; q < queries; q += 4)
          if (item++ % team_.size() == rank) {
            switch (std::min(queries - q, 4)) {
              case 1: mix<1>(rows, index, width, first, q, kv_head, rank); break;
              case 2: mix<2>(rows, index, width, first, q, kv_head, rank); break;
              case 3: mix<3>(rows, index, width, first, q, kv_head, rank); break;
              case 4: mix<4>(rows, index, width, first, q, kv_head, rank); break;
            }
          }
    }
  }

  int groups() const { return s_.heads / s_.kv_heads; }

  // Query i of a tile is head `kv_head * groups + i % groups` of row `first_row + i / groups`.
  template <int Q>
  void mix(const Rows &rows, int index, int width, int first_row, int first_query, int kv_head, int rank) {
    const int dim = s_.head_dim, stride = rows.max_length + LANES;
    const T *keys = cell(rows.keys, rows, index, first_row, kv_head, 0);
    const T *values = cell(rows.values, rows, index, first_row, kv_head, 0);
    float *scores = &scores_[size_t(rank) * 4 * stride];
    const float *query[Q];
    Activation *out[Q];
    int length[Q], longest = 0;
    for (int i = 0; i < Q; i++) {
      const int row = first_row + (first_query + i) / groups();
      const int head = kv_head * groups() + (first_query + i) % groups();
      query[i] = &qkv_[size_t(row) * width + head * dim];
      out[i] = &mixed_[(size_t(row) * s_.heads + head) * dim];
      length[i] = rows.positions[row] + 1;
      longest = std::max(longest, length[i]);
    }
    const float scale = 1.0f / std::sqrt(float(dim));
    for (int t = 0; t < longest; t += LANES) {
      f16 products[Q][LANES];
      for (int j = 0; j < LANES; j++) {
        const T *key = keys + size_t(std::min(t + j, longest - 1)) * dim;
        f16 acc[Q] = {};
        for (int d = 0; d < dim; d += LANES) {
          const f16 part = load(key + d);
#pragma GCC unroll 4
          for (int i = 0; i < Q; i++) acc[i] += load(query[i] + d) * part;
        }
        for (int i = 0; i < Q; i++) products[i][j] = acc[i];
      }
      for (int i = 0; i < Q; i++) *(f16 *)(scores + i * stride + t) = sums(products[i]) * scale;
    }
    f16 share[Q];
    for (int i = 0; i < Q; i++) share[i] = splat(1.0f / soften(scores + i * stride, length[i], longest));
    for (int d = 0; d < dim; d += LANES) {
      f16 acc[Q] = {};
      for (int t = 0; t < longest; t++) {
        const f16 value = load(values + size_t(t) * dim + d);
#pragma GCC unroll 4
        for (int i = 0; i < Q; i++) acc[i] += value * scores[i * stride + t];
      }
      for (int i = 0; i < Q; i++) store16(out[i] + d, acc[i] * share[i]);
    }
  }

  // Turns scores into exponentials, zero from `length` on; returns their sum.
  static float soften(float *scores, int length, int longest) {
    for (int t = length; t < longest + LANES; t++) scores[t] = -INFINITY;
    f16 highest = splat(-INFINITY);
    for (int t = 0; t < length; t += LANES) {
      f16 block = load(scores + t);
      highest = block > highest ? block : highest;
    }
    float peak = highest[0];
    for (int i = 1; i < LANES; i++) peak = std::max(peak, highest[i]);
    f16 total{};
    for (int t = 0; t < longest; t += LANES) {
      const f16 block = load(scores + t);
      const f16 p = block > -INFINITY ? exp16(block - peak) : f16{};
      *(f16 *)(scores + t) = p;
      total += p;
    }
    return sum(total);
  }

  void mlp(const Rows &rows, const Layer &layer, int rank) {
    const int num_panels = s_.intermediate / LANES;
    const T *gate_up = (const T *)layer.gate_up;
    const T *up = gate_up + size_t(s_.intermediate) * s_.hidden;
    normalise(rows.count, x_.data(), layer.mlp_norm, normed_.data(), rank);
    multiply(rank, rows.count, normed_.data(), gate_up, s_.hidden, num_panels, [&](int row, int first, f16 acc) {
      f16 gate = layer.gate_up_bias ? acc + load(layer.gate_up_bias + first) : acc;
      store16(&gate_[size_t(row) * s_.intermediate + first], gate / (exp16(-gate) + 1.0f));
    });
    multiply(rank, rows.count, normed_.data(), up, s_.hidden, num_panels, [&](int row, int first, f16 acc) {
      f16 value = layer.gate_up_bias ? acc + load(layer.gate_up_bias + s_.intermediate + first) : acc;
      const size_t i = size_t(row) * s_.intermediate + first;
      store16(&inner_[i], load(&gate_[i]) * value);
    });
    team_.barrier();
    add(rows.count, inner_.data(), s_.intermediate, (const T *)layer.down, layer.down_bias, rank);
  }

  // x += weight * input, the residual connection.
  void add(int count, const Activation *input, int inputs, const T *weight, const float *bias, int rank) {
    multiply(rank, count, input, weight, inputs, panels(s_.hidden), [&](int row, int first, f16 acc) {
      float *x = &x_[size_t(row) * s_.hidden];
      if (!bias && first + LANES <= s_.hidden) return store16(x + first, load(x + first) + acc);
      for (int i = 0; i < LANES && first + i < s_.hidden; i++) x[first + i] += acc[i] + (bias ? bias[first + i] : 0);
    });
    team_.barrier();
  }

  Shape s_;
  std::vector<Layer> layers_;
  const float *norm_;
  const T *head_;
  const float *head_bias_;
  const T *embeddings_;
  const float *cos_, *sin_;
  std::vector<float> x_, qkv_, gate_, scores_;
  std::vector<Activation> normed_, mixed_, inner_;
  Team team_;
};

}  // namespace

extern "C" {

void *decoder_new(const Shape *shape, const Layer *layers, const float *norm, const void *head, const float *head_bias,
                  const void *embeddings, const float *cos, const float *sin) {
  if (shape->is_bf16) return new Decoder<bf16>(*shape, layers, norm, head, head_bias, embeddings, cos, sin);
  return new Decoder<float>(*shape, layers, norm, head, head_bias, embeddings, cos, sin);
}

void decoder_forward(void *decoder, const Rows *rows) { static_cast<Model *>(decoder)->forward(*rows); }

void decoder_logits(void *decoder, int count, const float *hidden, float *out) {
  static_cast<Model *>(decoder)->logits(count, hidden, out);
}

void decoder_greedy(void *decoder, const Rows *rows, const Greedy *greedy) {
  static_cast<Model *>(decoder)->greedy(*rows, *greedy);
}

void decoder_draft(void *decoder, const Rows *rows, const Greedy *greedy, const Chain *chain) {
  static_cast<Model *>(decoder)->draft(*rows, *greedy, *chain);
}

void decoder_free(void *decoder) { delete static_cast<Model *>(decoder); }
}
