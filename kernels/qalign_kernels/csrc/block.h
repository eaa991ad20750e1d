// The inner block of every product: a few rows of A, 32 columns of B packed in panels, 32-bit sums out.
//
// B lies in panels of 16 columns, [K in units][16], where a unit is 4 bytes: four 8-bit, two bfloat16 or one float32
// weight of a column. A's rows lie as they are. One layout serves the vector and the matrix (AMX) instructions.
#pragma once

#include <type_traits>

#include "vec.h"

namespace qk {
namespace QK_ISA {

#if defined(__AVX512F__)
constexpr int kRows = 12, kPanels = 2;  // 24 sums, 2 panels' vectors, of 32 registers
#else
constexpr int kRows = 4, kPanels = 1;
#endif
#if defined(__AMX_INT8__)
constexpr int kBlockRows = 32;
#else
constexpr int kBlockRows = kRows;
#endif
constexpr int kColumns = 32;
constexpr int kUnit = 4, kLine = 64;

struct Float32 {
  using Sum = F16;
  static Sum dot(Sum sum, const char* a, const char* b) {
    float x;
    std::memcpy(&x, a, sizeof x);
    return fused(splat(x), load(reinterpret_cast<const float*>(b)), sum);
  }
};

// Signed rows times unsigned weights: what vpdpbusd takes with the row's unit broadcast from memory.
struct Int8 {
  using Sum = I16;
  static Sum dot(Sum sum, const char* a, const char* b) {
    int32_t x;
    std::memcpy(&x, a, sizeof x);
#if defined(__AVX512VNNI__)
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)load_bytes(b), _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    // Two halves of 16-bit pairs: vpmaddubsw alone would saturate.
    const __m256i low = _mm256_set1_epi16(0xff), rows = _mm256_set1_epi32(x);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(rows, 8), 8), odd = _mm256_srai_epi16(rows, 8);
    __m256i sums[2];
    std::memcpy(sums, &sum, sizeof sums);
    for (int i = 0; i < 2; i++) {
      const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b) + i);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_and_si256(w, low), even));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
    }
    std::memcpy(&sum, sums, sizeof sums);
    return sum;
#else
    const I16 w = load_bytes(b);
    sum += (w & 255) * static_cast<int8_t>(x);
    sum += ((w >> 8) & 255) * static_cast<int8_t>(x >> 8);
    sum += ((w >> 16) & 255) * static_cast<int8_t>(x >> 16);
    return sum + ((w >> 24) & 255) * static_cast<int8_t>(x >> 24);
#endif
  }
};

struct BFloat16 {
  using Sum = F16;
  static Sum dot(Sum sum, const char* a, const char* b) {
#if defined(__AVX512BF16__)
    int32_t x;
    std::memcpy(&x, a, sizeof x);
    return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)load_bytes(b));
#else
    uint32_t x;
    std::memcpy(&x, a, sizeof x);
    const I16 w = load_bytes(b);
    const uint32_t low = x << 16, high = x & 0xffff0000u;
    float even, odd;
    std::memcpy(&even, &low, sizeof even);
    std::memcpy(&odd, &high, sizeof odd);
    sum = fused(splat(even), (F16)(w << 16), sum);
    return fused(splat(odd), (F16)(w & (int32_t)0xffff0000), sum);
#endif
  }
};

// Memory that will be read next, asked for a little with every unit: a step of bytes each. Vector instructions leave
// the ways to memory idle meanwhile; the matrix instructions need them for themselves.
inline const char kNowhere[kLine] = {};  // a place that is there: looking for one that is not takes long

struct Ahead {
  const char* next = kNowhere;
  int64_t step = 0;
};

// rows of A, `stride` bytes apart, times kPanels panels `panel` bytes apart -> out [rows][..], `pitch` sums apart.
template <class Dot, int Rows>
inline void block_of(const char* a, int64_t stride, const char* b, int64_t panel, int64_t units, void* out,
                     int64_t pitch, Ahead& ahead) {
  typename Dot::Sum sums[Rows][kPanels] = {};
  const char* next = ahead.next;
  for (int64_t u = 0; u < units; u++) {
    __builtin_prefetch(next, 0, 2);
    next += ahead.step;
#pragma GCC unroll 16
    for (int i = 0; i < Rows; i++)
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; p++)
        sums[i][p] = Dot::dot(sums[i][p], a + i * stride + u * kUnit, b + p * panel + u * kLine);
  }
  ahead.next = next;
  char* to = static_cast<char*>(out);
  for (int i = 0; i < Rows; i++)
    for (int p = 0; p < kPanels; p++) std::memcpy(to + (i * pitch + p * 16) * 4, &sums[i][p], kLine);
}

template <class Dot, int Rows>
inline void block_up_to(int64_t rows, const char* a, int64_t stride, const char* b, int64_t panel, int64_t units,
                        void* out, int64_t pitch, Ahead& ahead) {
  if (rows == Rows) return block_of<Dot, Rows>(a, stride, b, panel, units, out, pitch, ahead);
  if constexpr (Rows > 1) block_up_to<Dot, Rows - 1>(rows, a, stride, b, panel, units, out, pitch, ahead);
}

#if defined(__AMX_INT8__)
struct Tiles {  // the layout ldtilecfg reads
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// How many rows this thread's tiles are set for; another library may set them between two operations.
inline thread_local int64_t tile_rows = 0;

// Tiles 0-3: sums of two row halves by two panels; 4, 5: rows; 6, 7: panels.
inline void set_tiles(int64_t rows) {
  if (tile_rows == rows) return;
  alignas(64) Tiles tiles;
  const uint8_t upper = rows < 16 ? rows : 16, lower = rows > 16 ? rows - 16 : 1;
  for (int i = 0; i < 8; i++) tiles.row_bytes[i] = 64, tiles.rows[i] = 16;
  tiles.rows[0] = tiles.rows[1] = tiles.rows[4] = upper;
  tiles.rows[2] = tiles.rows[3] = tiles.rows[5] = lower;
  __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
  tile_rows = rows;
}

template <class Dot>
inline void tile_dot(bool lower) {
  if constexpr (std::is_same_v<Dot, Int8>) {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if (lower) {
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  } else {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (lower) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

template <class Dot>
inline void block_tiles(int64_t rows, const char* a, int64_t stride, const char* b, int64_t panel, int64_t units,
                        void* out, int64_t pitch) {
  set_tiles(rows);
  const bool lower = rows > 16;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t u = 0; u < units; u += 16) {
    _tile_loadd(6, b + u * kLine, kLine);
    _tile_loadd(7, b + panel + u * kLine, kLine);
    _tile_loadd(4, a + u * kUnit, stride);
    if (lower) _tile_loadd(5, a + 16 * stride + u * kUnit, stride);
    tile_dot<Dot>(lower);
  }
  char* to = static_cast<char*>(out);
  _tile_stored(0, to, pitch * 4);
  _tile_stored(1, to + 64, pitch * 4);
  if (lower) {
    _tile_stored(2, to + 16 * pitch * 4, pitch * 4);
    _tile_stored(3, to + 16 * pitch * 4 + 64, pitch * 4);
  }
}

// 16 rows of weights, as a file has them, by Tiles panels of 16 rows of A -> sums [16][Tiles * 16]. Every weight is
// loaded once, so that memory and multiplier work at the same time. Signed by signed, or bfloat16.
template <class Dot, int Tiles>
inline void sweep(const char* weights, int64_t stride, const char* panels, int64_t panel, int64_t units,
                  int32_t* sums) {
  static_assert(Tiles >= 1 && Tiles <= 5);
  set_tiles(kBlockRows);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
#define QK_TILE(sum, right)                                      \
  if constexpr (Tiles > sum) {                                   \
    _tile_loadd(right, panels + sum * panel + u * kLine, kLine); \
    if constexpr (std::is_same_v<Dot, Int8>)                     \
      _tile_dpbssd(sum, 6, right);                               \
    else                                                         \
      _tile_dpbf16ps(sum, 6, right);                             \
  }
  for (int64_t u = 0; u < units; u += 16) {
    _tile_loadd(6, weights + u * kUnit, stride);
    QK_TILE(0, 5)
    QK_TILE(1, 7)
    QK_TILE(2, 5)
    QK_TILE(3, 7)
    QK_TILE(4, 5)
  }
#undef QK_TILE
  constexpr int64_t kPitch = Tiles * kLine;
  if constexpr (Tiles > 0) _tile_stored(0, sums, kPitch);
  if constexpr (Tiles > 1) _tile_stored(1, sums + 16, kPitch);
  if constexpr (Tiles > 2) _tile_stored(2, sums + 32, kPitch);
  if constexpr (Tiles > 3) _tile_stored(3, sums + 48, kPitch);
  if constexpr (Tiles > 4) _tile_stored(4, sums + 64, kPitch);
}
#endif

// Around the blocks that one thread computes.
struct Blocks {
#if defined(__AMX_INT8__)
  Blocks() { tile_rows = 0; }
  ~Blocks() { _tile_release(); }
#else
  Blocks() {}
#endif
};

// At most kBlockRows rows by 32 columns; the matrix instructions take units by 16.
template <class Dot>
inline void block(int64_t rows, const char* a, int64_t stride, const char* b, int64_t panel, int64_t units, void* out,
                  int64_t pitch, Ahead& ahead) {
#if defined(__AMX_INT8__)
  if constexpr (!std::is_same_v<Dot, Float32>)
    if (units % 16 == 0) return block_tiles<Dot>(rows, a, stride, b, panel, units, out, pitch);
#endif
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t here = rows - first < kRows ? rows - first : kRows;
    for (int p = 0; p < 2; p += kPanels)
      block_up_to<Dot, kRows>(here, a + first * stride, stride, b + p * panel, panel, units,
                              static_cast<char*>(out) + (first * pitch + p * 16) * 4, pitch, ahead);
  }
}

}  // namespace QK_ISA
}  // namespace qk
