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
  static int element(int parity, int output) { return parity * LANES + output; }
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
  static int element(int parity, int output) { return 2 * output + parity; }
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
  static int element(int parity, int output) { return 2 * output + parity; }
};
#endif

// Adds the products of R rows with P panels; `x_stride` apart are the rows, `pair_stride` the pairs of inputs in a panel.
// The panels behind these may be fetched meanwhile: the processor's own prefetching ends at each page of 4 KB.
template <bool FETCH_NEXT, int R, int P, class T, class Activation>
inline void accumulate(f16 (&acc)[R][P], const Activation *x, size_t x_stride, const T *w, size_t pair_stride,
                       size_t panel_stride, int inputs) {
  for (int k = 0; k < inputs; k += 2, w += pair_stride)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      if constexpr (FETCH_NEXT) __builtin_prefetch(w + (P + p) * panel_stride);
      Pair<T> pair(w + p * panel_stride);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][p] = pair.add(acc[r][p], x + r * x_stride + k);
    }
}

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
  // Apart, so that those who wait do not slow those who arrive.
  alignas(64) std::atomic<unsigned> generation_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
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
  void *keys, *values;        // [layers][slots][kv heads][max_length * head_dim], see `place`
  const uint8_t *is_skipped;  // [layers][attention, mlp]
  float *hidden;            // [count][hidden], the result
};

// The greedy token after each row and, unless null, its probability; scratch for logits [count][vocabulary].
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
    team_.run([&](int rank) {
      sublayers(rows, rank);
      normalise(part(rows.count, rank, team_.size()), norm_, rows.hidden);
    });
  }

  void logits(int count, const float *hidden, float *out) override {
    normed_.resize(size_t(count) * s_.hidden);
    team_.run([&](int rank) {
      auto [first, last] = part(count, rank, team_.size());
      for (int i = first * s_.hidden; i < last * s_.hidden; i++) store(&normed_[i], hidden[i]);
      team_.barrier();
      head(count, normed_.data(), out, rank);
    });
  }

  void greedy(const Rows &rows, const Greedy &greedy) override {
    resize(rows);
    picks_.resize(size_t(team_.size()) * rows.count);
    team_.run([&](int rank) {
      sublayers(rows, rank);
      const Part own = head(rows.count, normalised(rows.count, norm_, rank), greedy.logits, rank);
      for (int r = 0; r < rows.count; r++)
        picks_[rank * rows.count + r] = pick(greedy.logits + size_t(r) * s_.vocabulary, own, greedy.probabilities);
      team_.barrier();
      if (rank == 0)
        for (int r = 0; r < rows.count; r++) settle(rows.count, r, greedy);
    });
  }

 private:
  using Activation = typename Pair<T>::Activation;
  static constexpr int TILE = 6;      // rows of activations that fit the registers beside four panels
  static constexpr int FEW_ROWS = 8;  // so few that normalising them twice is cheaper than one barrier

  static int panels(int outputs) { return (outputs + LANES - 1) / LANES; }
  int qkv_width() const { return (s_.heads + 2 * s_.kv_heads) * s_.head_dim; }

  int groups() const { return s_.heads / s_.kv_heads; }

  void sublayers(const Rows &rows, int rank) {
    embed(rows, rank);
    for (int layer = 0; layer < s_.num_layers; layer++) {
      if (!rows.is_skipped[2 * layer]) attention(rows, layer, rank);
      if (!rows.is_skipped[2 * layer + 1]) mlp(rows, layers_[layer], rank);
    }
  }

  // Logits of this rank's share of the vocabulary, which it returns.
  Part head(int count, const Activation *x, float *out, int rank) {
    const Part own = part(panels(s_.vocabulary), rank, team_.size());
    multiply(own, count, x, head_, s_.hidden, [&](int row, int first, f16 acc) {
      float *to = out + size_t(row) * s_.vocabulary + first;
      if (!head_bias_ && first + LANES <= s_.vocabulary) return store16(to, acc);
      for (int i = 0; i < LANES && first + i < s_.vocabulary; i++) to[i] = acc[i] + (head_bias_ ? head_bias_[first + i] : 0);
    });
    return {own.first * LANES, std::min(own.last * LANES, s_.vocabulary)};
  }

  // The first of the largest logits of a share, and the sum of exponentials relative to it.
  struct Pick {
    float logit, total;
    int token;
  };

  static Pick pick(const float *logits, Part share, bool is_summing) {
    f16 highest = splat(-INFINITY);
    i16 where = i16{} + share.first;
    const int whole = share.first + (share.last - share.first) / LANES * LANES;
    for (int i = share.first; i < whole; i += LANES) {
      const f16 block = load(logits + i);
      where = block > highest ? i16{} + i : where;
      highest = block > highest ? block : highest;
    }
    Pick best{-INFINITY, 0, share.last};
    for (int i = 0; i < LANES; i++)
      if (highest[i] > best.logit || (highest[i] == best.logit && where[i] + i < best.token))
        best.logit = highest[i], best.token = where[i] + i;
    for (int i = whole; i < share.last; i++)
      if (logits[i] > best.logit) best.logit = logits[i], best.token = i;
    if (!is_summing) return best;
    f16 total{};
    for (int i = share.first; i < whole; i += LANES) total += exp16(load(logits + i) - best.logit);
    best.total = sum(total);
    for (int i = whole; i < share.last; i++) best.total += std::exp(logits[i] - best.logit);
    return best;
  }

  // The best of all ranks' picks for a row.
  void settle(int count, int row, const Greedy &greedy) const {
    Pick best = picks_[row];
    for (int rank = 1; rank < team_.size(); rank++)
      if (const Pick &other = picks_[rank * count + row]; other.logit > best.logit) best = other;
    greedy.tokens[row] = best.token;
    if (!greedy.probabilities) return;
    float total = 0;
    for (int rank = 0; rank < team_.size(); rank++) {
      const Pick &other = picks_[rank * count + row];
      total += other.total * std::exp(other.logit - best.logit);
    }
    greedy.probabilities[row] = 1.0f / total;
  }

  void resize(const Rows &rows) {
    const size_t count = rows.count, tiles = size_t(team_.size()) * TILE;
    x_.resize(count * s_.hidden);
    normed_.resize(std::max(count, size_t(team_.size()) * FEW_ROWS) * s_.hidden);
    qkv_.resize(count * panels(qkv_width()) * LANES);
    queries_.resize(count * s_.heads * s_.head_dim);
    mixed_.resize(queries_.size());
    gate_.resize(count * s_.intermediate);
    inner_.resize(gate_.size());
    scores_.resize(tiles * (rows.max_length + LANES));
    shares_.resize(scores_.size());
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
  void normalise(Part some, const float *weight, Out *out) const {
    for (int r = some.first; r < some.last; r++) {
      const float *row = &x_[size_t(r) * s_.hidden];
      float scale = inverse_rms(row, s_.hidden, s_.epsilon);
      Out *to = out + size_t(r) * s_.hidden;
      int i = 0;
      for (; i + LANES <= s_.hidden; i += LANES) store16(to + i, load(row + i) * scale * load(weight + i));
      for (; i < s_.hidden; i++) store(to + i, row[i] * scale * weight[i]);
    }
  }

  // All rows normalised, for this rank to read: its own copy where they are few, else a shared one.
  const Activation *normalised(int count, const float *weight, int rank) {
    if (count > FEW_ROWS) {
      normalise(part(count, rank, team_.size()), weight, normed_.data());
      team_.barrier();
      return normed_.data();
    }
    Activation *own = &normed_[size_t(rank) * FEW_ROWS * s_.hidden];
    normalise(Part{0, count}, weight, own);
    return own;
  }

  // Calls finish(row, first output, 16 sums) for every row and some panels. A group of panels stays
  // in the nearest cache while all rows use it.
  template <class F>
  void multiply(Part some, int count, const Activation *x, const T *w, int inputs, F &&finish) const {
    auto [p, last] = some;
    if (count == 1)
      for (; p + 8 <= last; p += 8) block<1, 8>(0, x, w, inputs, p, finish);
    for (; p + 4 <= last; p += 4) rows_of<4>(count, x, w, inputs, p, finish);
    for (; p < last; p++) rows_of<1>(count, x, w, inputs, p, finish);
  }

  template <int P, class F>
  void rows_of(int count, const Activation *x, const T *w, int inputs, int panel, F &finish) const {
    const int chunks = (count + TILE - 1) / TILE;
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
  void block(int row, const Activation *x, const T *w, int inputs, int panel, F &finish) const {
    f16 acc[R][P] = {};
    const size_t panel_size = size_t(inputs) * LANES;
    accumulate<(R > 1)>(acc, x + size_t(row) * inputs, inputs, w + panel * panel_size, 2 * LANES, panel_size, inputs);
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) finish(row + r, (panel + p) * LANES, acc[r][p]);
  }

  // Where key heads can be dealt out evenly, a rank goes all the way from the norm to its own heads'
  // mixture without waiting for the others.
  void attention(const Rows &rows, int index, int rank) {
    const Layer &layer = layers_[index];
    const int ranks = team_.size(), width = panels(qkv_width()) * LANES, dim = s_.head_dim;
    const bool is_alone = s_.kv_heads % ranks == 0;
    const Part kv = is_alone ? part(s_.kv_heads, rank, ranks) : Part{0, s_.kv_heads};
    const Part some = is_alone ? Part{0, rows.count} : part(rows.count, rank, ranks);
    const Activation *x = normalised(rows.count, layer.attention_norm, rank);
    auto project = [&](int first, int last) {
      multiply({first / LANES, last / LANES}, rows.count, x, (const T *)layer.qkv, s_.hidden, [&](int row, int i, f16 acc) {
        store16(&qkv_[size_t(row) * width + i], layer.qkv_bias ? acc + load(layer.qkv_bias + i) : acc);
      });
    };
    if (is_alone) {
      project(kv.first * groups() * dim, kv.last * groups() * dim);
      for (int before : {s_.heads, s_.heads + s_.kv_heads}) project((before + kv.first) * dim, (before + kv.last) * dim);
    } else {
      const Part own = part(width / LANES, rank, ranks);
      project(own.first * LANES, own.last * LANES);
      team_.barrier();
    }
    place(rows, index, width, some, kv);
    if (!is_alone) team_.barrier();
    mix_all(rows, index, kv, is_alone ? 0 : rank, is_alone ? 1 : ranks, rank);
    team_.barrier();
    add(rows.count, mixed_.data(), s_.heads * dim, (const T *)layer.output, layer.output_bias, rank);
  }

  // Keys or values of one head: panels, as those of weights, so that a cache is multiplied like one.
  T *head_cache(void *cache, const Rows &rows, int layer, int row, int head) const {
    size_t head_index = (size_t(layer) * rows.num_slots + rows.slots[row]) * s_.kv_heads + head;
    return (T *)cache + head_index * rows.max_length * s_.head_dim;
  }

  // Head norms and RoPE. Keys go to panels [positions / 16][dims / 2] of 16 positions, values to
  // panels [positions / 2][dims / 16] of 16 dimensions. The place beside a last value is read, with
  // weight zero, so a number must stand there.
  void place(const Rows &rows, int index, int width, Part some, Part kv) {
    const Layer &layer = layers_[index];
    const int dim = s_.head_dim;
    for (int r = some.first; r < some.last; r++)
      for (int h = kv.first; h < kv.last; h++) {
        const int position = rows.positions[r];
        const bool is_last = r + 1 == rows.count || rows.slots[r + 1] != rows.slots[r];
        const bool is_unpaired = is_last && position % 2 == 0;
        float *query = &qkv_[size_t(r) * width + h * groups() * dim];
        Activation *activation = &queries_[(size_t(h) * rows.count + r) * groups() * dim];
        for (int g = 0; g < groups(); g++) rotate(query + g * dim, layer.query_norm, position);
        for (int i = 0; i < groups() * dim; i += LANES) store16(activation + i, load(query + i));
        float *key = &qkv_[size_t(r) * width + (s_.heads + h) * dim];
        const float *value = key + s_.kv_heads * dim;
        rotate(key, layer.key_norm, position);
        T *keys = head_cache(rows.keys, rows, index, r, h) + position / LANES * LANES * dim;
        T *values = head_cache(rows.values, rows, index, r, h) + position / 2 * 2 * dim;
        for (int i = 0; i < dim; i++) {
          store(keys + i / 2 * 2 * LANES + Pair<T>::element(i % 2, position % LANES), key[i]);
          store(values + i / LANES * 2 * LANES + Pair<T>::element(position % 2, i % LANES), value[i]);
          if (is_unpaired) store(values + i / LANES * 2 * LANES + Pair<T>::element(1, i % LANES), 0.0f);
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
  // one key head. Tiles are dealt to `sharers` in turn.
  void mix_all(const Rows &rows, int index, Part kv, int turn, int sharers, int rank) {
    int item = 0;
    for (int first = 0, last; first < rows.count; first = last) {
      for (last = first + 1; last < rows.count && rows.slots[last] == rows.slots[first];) last++;
      const int queries = (last - first) * groups(), tiles = (queries + TILE - 1) / TILE;
      for (int kv_head = kv.first; kv_head < kv.last; kv_head++)
        for (int tile = 0; tile < tiles; tile++) {
          if (item++ % sharers != turn) continue;
          auto [q, end] = part(queries, tile, tiles);
          switch (end - q) {
            case 1: mix<1>(rows, index, first, q, kv_head, rank); break;
            case 2: mix<2>(rows, index, first, q, kv_head, rank); break;
            case 3: mix<3>(rows, index, first, q, kv_head, rank); break;
            case 4: mix<4>(rows, index, first, q, kv_head, rank); break;
            case 5: mix<5>(rows, index, first, q, kv_head, rank); break;
            case 6: mix<6>(rows, index, first, q, kv_head, rank); break;
          }
        }
    }
  }

  // Query i of a tile is head `kv_head * groups + i % groups` of row `first_row + i / groups`, counted from `first_query`.
  template <int Q>
  void mix(const Rows &rows, int index, int first_row, int first_query, int kv_head, int rank) {
    const int dim = s_.head_dim, stride = rows.max_length + LANES;
    const T *keys = head_cache(rows.keys, rows, index, first_row, kv_head);
    const T *values = head_cache(rows.values, rows, index, first_row, kv_head);
    const Activation *queries = &queries_[((size_t(kv_head) * rows.count + first_row) * groups() + first_query) * dim];
    float *scores = &scores_[size_t(rank) * TILE * stride];
    Activation *shares = &shares_[size_t(rank) * TILE * stride];
    const auto row = [&](int i) { return first_row + (first_query + i) / groups(); };
    const int longest = rows.positions[row(Q - 1)] + 1, num_panels = panels(longest);
    int p = 0;
    for (; p + 4 <= num_panels; p += 4) score<Q, 4>(queries, keys, p, scores, stride);
    for (; p < num_panels; p++) score<Q, 1>(queries, keys, p, scores, stride);
    f16 scale[Q];
    for (int i = 0; i < Q; i++) {
      const float total = soften(scores + i * stride, rows.positions[row(i)] + 1, longest, shares + i * stride);
      scale[i] = splat(1.0f / total);
    }
    Activation *out[Q];
    for (int i = 0; i < Q; i++)
      out[i] = &mixed_[(size_t(row(i)) * s_.heads + kv_head * groups() + (first_query + i) % groups()) * dim];
    for (p = 0; p + 4 <= dim / LANES; p += 4) gather<Q, 4>(shares, stride, values, p, longest, scale, out);
    for (; p < dim / LANES; p++) gather<Q, 1>(shares, stride, values, p, longest, scale, out);
  }

  template <int Q, int P>
  void score(const Activation *queries, const T *keys, int panel, float *scores, int stride) const {
    const int dim = s_.head_dim;
    const float scale = 1.0f / std::sqrt(float(dim));
    f16 acc[Q][P] = {};
    accumulate<false>(acc, queries, dim, keys + size_t(panel) * LANES * dim, 2 * LANES, size_t(LANES) * dim, dim);
    for (int i = 0; i < Q; i++)
      for (int p = 0; p < P; p++) store16(scores + i * stride + (panel + p) * LANES, acc[i][p] * scale);
  }

  template <int Q, int P>
  void gather(const Activation *shares, int stride, const T *values, int panel, int longest, const f16 (&scale)[Q],
              Activation *const (&out)[Q]) const {
    f16 acc[Q][P] = {};
    accumulate<false>(acc, shares, stride, values + panel * 2 * LANES, 2 * s_.head_dim, 2 * LANES, longest);
    for (int i = 0; i < Q; i++)
      for (int p = 0; p < P; p++) store16(out[i] + (panel + p) * LANES, acc[i][p] * scale[i]);
  }

  // Exponentials of the scores before `length`, zeros from there on; returns their sum.
  static float soften(float *scores, int length, int longest, Activation *shares) {
    const int end = panels(longest) * LANES;
    for (int t = length; t < end; t++) scores[t] = -INFINITY;
    f16 highest = splat(-INFINITY);
    for (int t = 0; t < length; t += LANES) {
      f16 block = load(scores + t);
      highest = block > highest ? block : highest;
    }
    float peak = highest[0];
    for (int i = 1; i < LANES; i++) peak = std::max(peak, highest[i]);
    f16 total{};
    for (int t = 0; t < end; t += LANES) {
      const f16 block = load(scores + t);
      const f16 p = block > -INFINITY ? exp16(block - peak) : f16{};
      store16(shares + t, p);
      total += p;
    }
    return sum(total);
  }

  void mlp(const Rows &rows, const Layer &layer, int rank) {
    const Part own = part(s_.intermediate / LANES, rank, team_.size());
    const T *gate_up = (const T *)layer.gate_up;
    const T *up = gate_up + size_t(s_.intermediate) * s_.hidden;
    const Activation *x = normalised(rows.count, layer.mlp_norm, rank);
    multiply(own, rows.count, x, gate_up, s_.hidden, [&](int row, int first, f16 acc) {
      f16 gate = layer.gate_up_bias ? acc + load(layer.gate_up_bias + first) : acc;
      store16(&gate_[size_t(row) * s_.intermediate + first], gate / (exp16(-gate) + 1.0f));
    });
    multiply(own, rows.count, x, up, s_.hidden, [&](int row, int first, f16 acc) {
      f16 value = layer.gate_up_bias ? acc + load(layer.gate_up_bias + s_.intermediate + first) : acc;
      const size_t i = size_t(row) * s_.intermediate + first;
      store16(&inner_[i], load(&gate_[i]) * value);
    });
    team_.barrier();
    add(rows.count, inner_.data(), s_.intermediate, (const T *)layer.down, layer.down_bias, rank);
  }

  // x += weight * input, the residual connection.
  void add(int count, const Activation *input, int inputs, const T *weight, const float *bias, int rank) {
    const Part own = part(panels(s_.hidden), rank, team_.size());
    multiply(own, count, input, weight, inputs, [&](int row, int first, f16 acc) {
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
  std::vector<Activation> normed_, queries_, shares_, mixed_, inner_;
  std::vector<Pick> picks_;
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
