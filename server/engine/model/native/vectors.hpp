// Sixteen numbers at a time, with the vector types of the compiler: each build turns them into the registers that its
// processor has, one of AVX-512 or two of AVX2. Here are loads and stores, which convert from and to bf16, and the
// functions of whole vectors that the decoder needs.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// Aligned as their elements are: tensors of Python begin anywhere.
typedef float f32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t u32x16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(4)));
typedef int8_t i8x16 __attribute__((vector_size(16), aligned(1)));
typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(2)));
constexpr int LANES = 16;

// As many numbers as one register holds, of AVX-512 or of AVX2: what the products are computed with.
#ifdef __AVX512F__
constexpr int WIDTH = 16;
#else
constexpr int WIDTH = 8;
#endif
typedef float floats __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint8_t bytes __attribute__((vector_size(4 * WIDTH), aligned(1)));

// The upper half of a float: its sign, its exponent and 7 bits of its fraction.
struct bf16 {
  uint16_t bits;
};

inline f32x16 splat(float x) { return f32x16{} + x; }

// `WIDTH` of sixteen numbers, from this lane on.
inline floats part(const f32x16& v, int lane) { return *(const floats*)((const float*)&v + lane); }
inline void put(floats v, f32x16* to, int lane) { *(floats*)((float*)to + lane) = v; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline f32x16 load(const float* x) { return *(const f32x16*)x; }

inline void store(float* to, float x) { *to = x; }
inline void store(bf16* to, float x) {  // round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store16(float* to, f32x16 v) { *(f32x16*)to = v; }
inline void store16(bf16* to, f32x16 v) {  // round to nearest even
  u32x16 bits = (u32x16)v;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *(u16x16*)to = __builtin_convertvector(bits, u16x16);
}

// A tree over the lanes: the order is fixed and the latency short.
template <class F>
inline float reduce(f32x16 v, F&& join) {
  typedef float f32x8 __attribute__((vector_size(32)));
  typedef float f32x4 __attribute__((vector_size(16)));
  const f32x8 eight = join(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  const f32x4 four =
      join(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
  return join(join(four[0], four[2]), join(four[1], four[3]));
}

inline float sum(f32x16 v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}

inline float highest(f32x16 v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

// What an RMS norm multiplies `size` numbers by, before their weights.
inline float inverse_rms(const float* x, int size, float epsilon) {
  float squares = 0;
  int i = 0;
  f32x16 acc{};
  for (; i + LANES <= size; i += LANES) acc += load(x + i) * load(x + i);
  for (; i < size; i++) squares += x[i] * x[i];
  return 1.0f / std::sqrt((sum(acc) + squares) / size + epsilon);
}

// The results of `f`, a register's width after the other: where sixteen numbers take two registers, the compiler would
// compare and choose number by number. (The types are no parameters of the template, which would lose their alignment.)
template <class F>
inline f32x16 by_width(F&& f, const f32x16& v) {
  f32x16 out;
  for (int lane = 0; lane < LANES; lane += WIDTH) put(f(part(v, lane)), &out, lane);
  return out;
}

template <class F>
inline f32x16 by_width(F&& f, const f32x16& a, const f32x16& b) {
  f32x16 out;
  for (int lane = 0; lane < LANES; lane += WIDTH) put(f(part(a, lane), part(b, lane)), &out, lane);
  return out;
}

inline f32x16 larger(f32x16 a, f32x16 b) {
  return by_width([](floats a, floats b) { return a > b ? a : b; }, a, b);
}

inline f32x16 magnitude(f32x16 x) { return (f32x16)((u32x16)x & 0x7fffffff); }

// exp with 2e-7 relative error: 2^n by the exponent bits, 2^f by a polynomial on [-0.5, 0.5].
inline floats exp(floats x) {
  floats low = floats{} - 87.0f, high = floats{} + 88.0f;  // beyond these 2^n would leave the exponent's 8 bits
  x = x < low ? low : x;
  x = x > high ? high : x;
  floats t = x * 1.44269504f;
  floats shifted = t + 12582912.0f;  // 1.5 * 2^23: a float of this size has no fraction, so the sum rounds t
  floats n = shifted - 12582912.0f;
  floats f = (x - n * 0.693145751953125f) - n * 1.42860677e-6f;  // ln 2 in two parts, the first exact in few bits
  floats p = floats{} + 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  ints exponent = (__builtin_convertvector(n, ints) + 127) << 23;
  return p * (floats)exponent;
}

inline f32x16 exp16(f32x16 x) {
  return by_width([](floats x) { return exp(x); }, x);
}

// exp, and nothing at all below what it can be told from: of minus infinity too.
inline f32x16 exp16_or_zero(f32x16 x) {
  return by_width([](floats x) { return x < floats{} - 87.0f ? floats{} : exp(x); }, x);
}

}  // namespace
