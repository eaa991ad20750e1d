// AMX for a CPU that has AVX512 without it, as avx512bf16.h does it: eight tiles a thread, in memory. What the CPU
// would refuse ends the program: tiles that are not set, or whose sizes do not fit.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "avx512bf16.h"

#define __AMX_INT8__ 1
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig stand_in::set
#define _tile_release stand_in::release
#define _tile_zero stand_in::zero
#define _tile_loadd stand_in::load
#define _tile_stored stand_in::store
#define _tile_dpbsud stand_in::multiply_bytes<uint8_t>
#define _tile_dpbssd stand_in::multiply_bytes<int8_t>
#define _tile_dpbf16ps stand_in::multiply_shorts

namespace stand_in {

struct Tile {
  int rows, bytes;  // none before they are set
  alignas(64) char row[16][64];
};

inline thread_local Tile tiles[8];

inline void need(bool fits, const char* what) {
  if (fits) return;
  std::fprintf(stderr, "AMX would refuse this: %s\n", what);
  std::abort();
}

inline Tile& tile(int i) {
  need(tiles[i].rows, "a tile that is not set");
  return tiles[i];
}

inline void release() { std::memset(tiles, 0, sizeof tiles); }

inline void set(const void* from) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } wanted;
  std::memcpy(&wanted, from, sizeof wanted);
  need(wanted.palette == 1 && wanted.start == 0, "the palette or the row to start from");
  release();
  for (int i = 0; i < 16; i++) {
    const int rows = wanted.rows[i], bytes = wanted.bytes[i];
    need(i < 8 ? rows <= 16 && bytes <= 64 && !rows == !bytes : !rows && !bytes, "sizes");
    if (i < 8) tiles[i].rows = rows, tiles[i].bytes = bytes;
  }
}

inline void zero(int i) { std::memset(tile(i).row, 0, sizeof tiles[i].row); }

inline void load(int i, const void* from, int64_t stride) {
  zero(i);
  for (int r = 0; r < tiles[i].rows; r++)
    std::memcpy(tiles[i].row[r], static_cast<const char*>(from) + r * stride, tiles[i].bytes);
}

inline void store(int i, void* to, int64_t stride) {
  for (int r = 0; r < tile(i).rows; r++)
    std::memcpy(static_cast<char*>(to) + r * stride, tiles[i].row[r], tiles[i].bytes);
}

inline void need_fit(const Tile& sums, const Tile& a, const Tile& b) {
  need(sums.rows == a.rows && sums.bytes == b.bytes && a.bytes == b.rows * 4, "sizes of a product");
}

template <class B>
inline void multiply_bytes(int to, int left, int right) {
  Tile &sums = tile(to), &a = tile(left), &b = tile(right);
  need_fit(sums, a, b);
  for (int m = 0; m < sums.rows; m++) {
    auto* sum = reinterpret_cast<int32_t*>(sums.row[m]);
    for (int k = 0; k < a.bytes; k++)
      for (int n = 0; n < sums.bytes / 4; n++)
        sum[n] += static_cast<int8_t>(a.row[m][k]) * static_cast<B>(b.row[k / 4][n * 4 + k % 4]);
  }
}

inline float number(const char* x) {  // a bfloat16
  const char bytes[4] = {0, 0, x[0], x[1]};
  float y;
  std::memcpy(&y, bytes, sizeof y);
  return y;
}

// Even and odd products are summed apart.
inline void multiply_shorts(int to, int left, int right) {
  Tile &sums = tile(to), &a = tile(left), &b = tile(right);
  need_fit(sums, a, b);
  for (int m = 0; m < sums.rows; m++) {
    float parts[2][16] = {};
    for (int k = 0; k < a.bytes / 2; k++)
      for (int n = 0; n < sums.bytes / 4; n++)
        parts[k % 2][n] += number(a.row[m] + k * 2) * number(b.row[k / 2] + n * 4 + k % 2 * 2);
    auto* sum = reinterpret_cast<float*>(sums.row[m]);
    for (int n = 0; n < sums.bytes / 4; n++) sum[n] += parts[0][n] + parts[1][n];
  }
}

}  // namespace stand_in
