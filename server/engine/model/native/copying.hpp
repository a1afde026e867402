// Copies of single outputs from one matrix to another of the same kind: the head of a draft is made of rows of the
// model's. An output keeps its bits, so its products are those that it had.

#pragma once

#include "matrix.hpp"

namespace {

// What an output has in a tensor [panels][count][16], of which T is one element.
template <class T>
inline void copy_lane(const void* from, int output, const void* to, int place, int count) {
  if (!from) return;
  const T* source = (const T*)from + size_t(output / LANES) * count * LANES + output % LANES;
  T* target = (T*)to + size_t(place / LANES) * count * LANES + place % LANES;
  for (int i = 0; i < count; i++) target[i * LANES] = source[i * LANES];
}

// Scales of groups, or minima: fp16, or integers in units.
inline void copy_scales(const Matrix& w, const void* from, const void* from_units, int output, const void* to,
                        const void* to_units, int place) {
  const int groups = w.inputs / w.group;
  if (!from_units) return copy_lane<uint16_t>(from, output, to, place, groups);
  copy_lane<int8_t>(from, output, to, place, groups);
  copy_lane<uint16_t>(from_units, output, to_units, place, w.inputs / UNIT);
}

// A lane of 32 bits holds one number or two.
template <class T>
inline void copy_weights(Dense<T>, const Matrix& from, int output, const Matrix& to, int place) {
  copy_lane<uint32_t>(from.weights, output, to.weights, place, from.inputs * int(sizeof(T)) / 4);
}

// Of a block the output has four bytes of each quad or pair of quads, and half a byte of each word in the planes.
template <int BITS, int GROUP>
inline void copy_weights(Codes<BITS, GROUP>, const Matrix& from, int output, const Matrix& to, int place) {
  constexpr size_t PLANES = BITS == 8 ? block_bytes(8) : 256;  // where they begin
  const size_t panel_bytes = from.inputs / BLOCK * block_bytes(BITS);
  const uint8_t* source = (const uint8_t*)from.weights + output / LANES * panel_bytes;
  uint8_t* target = (uint8_t*)to.weights + place / LANES * panel_bytes;
  const int lane = output % LANES, own = place % LANES;
  for (int b = 0; b < from.inputs / BLOCK; b++, source += block_bytes(BITS), target += block_bytes(BITS)) {
    for (size_t i = 0; i < PLANES; i += 4 * LANES) std::memcpy(target + i + 4 * own, source + i + 4 * lane, 4);
    for (size_t i = PLANES; i < block_bytes(BITS); i += LANES / 2) {
      const int bits = source[i + lane / 2] >> 4 * (lane % 2) & 15, shift = 4 * (own % 2);
      uint8_t& byte = target[i + own / 2];
      byte = uint8_t((byte & ~(15 << shift)) | bits << shift);
    }
  }
}

inline void copy_output(const Matrix& from, int output, const Matrix& to, int place) {
  with_kind(from, [&](auto kind) { copy_weights(kind, from, output, to, place); });
  copy_lane<float>(from.bias, output, to.bias, place, 1);
  if (!from.group) return;
  copy_scales(from, from.scales, from.scale_units, output, to.scales, to.scale_units, place);
  copy_scales(from, from.minima, from.minimum_units, output, to.minima, to.minimum_units, place);
}

}  // namespace
