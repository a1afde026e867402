// The tiles of AMX: eight registers of up to 16 rows of 64 bytes, of which one instruction multiplies two. They have to
// be lent by the system, and are given their shapes before they are used.

#pragma once

#include <cstdint>
#include <initializer_list>
#include <utility>

#ifdef __AMX_TILE__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#ifdef __AMX_TILE__

constexpr int TILE_ROWS = 16;
constexpr int TILE_BYTES = 64;  // of a row

inline bool may_use_tiles() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool is_lent = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return is_lent;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(std::initializer_list<int> tiles, int height, int bytes) {
    for (int tile : tiles) rows[tile] = uint8_t(height), row_bytes[tile] = uint16_t(bytes);
  }

  void load() const {
    asm volatile("" : : "r"(this) : "memory");  // GCC 12 takes the first eight bytes for all that is read
    _tile_loadconfig(this);
  }
};

inline void give_tiles_back() { _tile_release(); }

// As the intrinsics, which want a tile's number as a literal.
template <int T>
[[gnu::always_inline]] inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

// Rows of memory that lie `stride` bytes apart.
template <int T>
[[gnu::always_inline]] inline void load_tile(const void* from, long stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
[[gnu::always_inline]] inline void store_tile(void* to, long stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}

// Adds the products of numbers in bf16.
template <int SUMS, int ROWS, int PAIRS>
[[gnu::always_inline]] inline void multiply_halves() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(ROWS), "i"(PAIRS));
}

// Adds the products of signed bytes and unsigned ones.
template <int SUMS, int SIGNED, int UNSIGNED>
[[gnu::always_inline]] inline void multiply_tiles() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(SIGNED), "i"(UNSIGNED));
}

#else

constexpr bool may_use_tiles() { return false; }
inline void give_tiles_back() {}

#endif

// Calls body(0), body(1), ... with constants, so that an array of sums can live in registers.
template <int N, class F>
[[gnu::always_inline]] inline void each_of(F&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>());
}

}  // namespace
