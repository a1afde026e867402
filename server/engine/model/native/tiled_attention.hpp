// Attention in tiles: up to sixteen queries go through keys and values for about the time of one. One query takes this
// way too, for a tile's instruction adds in another order than those of vectors.

#pragma once

#include <type_traits>

#include "tiled_halves.hpp"

namespace {

#ifdef __AMX_BF16__

template <class T>
inline bool attends_in_tiles() {
  return std::is_same_v<T, bf16> && may_use_tiles();
}

struct TiledAttention : TiledHalves {
  // Writes the products of `height` queries [dim] with some panels of keys, times `scale`; keys(panel) is where one
  // lies. Scores of a query are `stride` apart from those of the next.
  template <class F>
  static void score(int height, const bf16* queries, int dim, Part panels, F&& keys, float scale, float* scores,
                    size_t stride) {
    shape(height, dim % STEP);
    int p = panels.first;
    const auto next = [&](int panel) { return keys(std::min(panel, panels.last - 1)); };
    const auto write = [&](auto count) {
      clear<count>();
      for (int k = 0; k < dim; k += STEP) {
        const bool is_whole = k + STEP <= dim;
        load_rows(is_whole, queries + k, dim);
        each_of<count>([&](auto i) __attribute__((always_inline)) {
          const bf16* ahead = next(p + count + i) + size_t(k) * LANES;
          for (int line = 0; line < TILE_ROWS; line++) __builtin_prefetch(ahead + line * 2 * LANES);
          add<i>(is_whole, keys(p + i) + size_t(k) * LANES, 2 * LANES);
        });
      }
      store<count>(scores + p * LANES, LANES, stride);
      for (int i = 0; i < height; i++)
        for (int t = p * LANES; t < (p + count) * LANES; t += LANES)
          store16(scores + i * stride + t, load(scores + i * stride + t) * scale);
      p += count;
    };
    while (p + WIDE <= panels.last) write(std::integral_constant<int, WIDE>());
    while (p < panels.last) write(std::integral_constant<int, 1>());
    give_tiles_back();
  }

  // Sums some panels of dimensions of the values at `positions`, whole blocks and the beginning of one, by the shares
  // of `height` queries; values(block) is where those of 32 positions lie. Sums behind others go on from
  // begun(query, panel). finish(query, panel, 16 sums) receives them.
  template <class F, class G, class H>
  static void gather(int height, const bf16* shares, size_t stride, Part positions, int dim, Part panels, F&& values,
                     G&& begun, H&& finish) {
    const int length = positions.last;
    // A last single value has a zero beside it.
    shape(height, (length + length % 2) % STEP);
    alignas(64) float sums[TILE_ROWS][WIDE * LANES];
    int p = panels.first;
    const auto write = [&](auto count) {
      clear<count>();
      if (positions.first) {
        for (int i = 0; i < height; i++)
          for (int own = 0; own < count; own++) store16(sums[i] + own * LANES, begun(i, p + own));
        resume<count>(sums[0], LANES, WIDE * LANES);
      }
      for (int t = positions.first; t < length; t += STEP) {
        const bool is_whole = t + STEP <= length + length % 2;
        const bf16 *block = values(t / STEP), *ahead = values(std::min(t / STEP + 1, (length - 1) / STEP));
        load_rows(is_whole, shares + t, stride);
        each_of<count>([&](auto i) __attribute__((always_inline)) {
          const int panel = (p + i) * 2 * LANES;
          for (int line = 0; line < TILE_ROWS; line++) __builtin_prefetch(ahead + panel + size_t(line) * 2 * dim);
          add<i>(is_whole, block + panel, 2 * dim);
        });
      }
      store<count>(sums[0], LANES, WIDE * LANES);
      for (int i = 0; i < height; i++)
        for (int own = 0; own < count; own++) finish(i, p + own, load(sums[i] + own * LANES));
      p += count;
    };
    while (p + WIDE <= panels.last) write(std::integral_constant<int, WIDE>());
    while (p < panels.last) write(std::integral_constant<int, 1>());
    give_tiles_back();
  }
};

#else

template <class T>
constexpr bool attends_in_tiles() {
  return false;
}

#endif

}  // namespace
