// The inner block of every product: a few rows of A and 32 columns of B, packed in panels, in; 32-bit sums out.
//
// B lies in panels of 16 columns, [K in units][16]. A unit is 4 bytes: four 8-bit, two 16-bit or one float32 weight of
// a column. A's rows are not rearranged. One layout serves the vector instructions and the matrix instructions (AMX).
#pragma once

#include "vec.h"

namespace qk {
namespace QK_ISA {

// Rows and panels at a time. Their sums, a line of the panels and a number of A take nearly all registers.
#if defined(__AVX512F__)
constexpr int kRows = 12, kPanels = 2;  // 24 sums of 32 registers
#elif defined(__AVX2__)
constexpr int kRows = 6, kPanels = 1;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kRows = 6, kPanels = 1;  // 24 of 32
#else
constexpr int kRows = 2, kPanels = 1;  // 8 of 16
#endif
#if defined(__AMX_INT8__)
constexpr int kBlockRows = 32;
#else
constexpr int kBlockRows = kRows;
#endif
constexpr int kColumns = 32;
constexpr int kUnit = 4, kLine = 64;
constexpr int kVectors = kPanels * kParts;  // registers that a line of the panels takes
// How many lines ahead panels are prefetched. They lie in the second cache, and AVX512 would have to wait for it.
constexpr int kSoon = kVector == 64 ? 32 : 0;

struct Float32 {
  using Sum = Floats;
  using Number = Floats;  // a unit of a row, repeated in every lane

  static Number number(const char* a) {
    float x;
    std::memcpy(&x, a, sizeof x);
    return all_of(x);
  }

  static Sum dot(Sum sum, Number a, Ints b) { return fused(a, (Floats)b, sum); }
};

inline Ints unit_of(const char* a) {
  int32_t x;
  std::memcpy(&x, a, sizeof x);
  return all_of(x);
}

// Four signed bytes of a row by four bytes of a weight.
struct Bytes {
  using Sum = Ints;
  using Number = Ints;
  using Item = int8_t;

  static Number number(const char* a) { return unit_of(a); }

  static Sum dot(Sum sum, Number a, Ints b) {
#if defined(__AVX512VNNI__)
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)b, (__m512i)a);
#elif defined(__AVXVNNI__)
    return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)b, (__m256i)a);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (Sum)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
#else
    return sum + a + b;                // not used here
#endif
  }

#if defined(__ARM_FEATURE_MATMUL_INT8)
  static Sum square(Sum sum, Ints a, Ints b) { return (Sum)vmmlaq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b); }
#endif
};

// Two numbers of 16 bits each. 8-bit numbers are widened to these where products of bytes would saturate.
struct Pairs {
  using Sum = Ints;
  using Number = Ints;
  using Item = int16_t;

  static Number number(const char* a) { return unit_of(a); }

  static Sum dot(Sum sum, Number a, Ints b) {
#if defined(__AVX512VNNI__)
    return (Sum)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    return (Sum)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return sum + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

// What whole numbers are multiplied as. Where weights must be unsigned, kWeightBias is added to them when they are
// packed: sum_k a_k w_k = sum_k a_k (w_k + bias) - bias sum_k a_k. The sums then start from -bias sum_k a_k.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define QK_BYTES
constexpr bool kUnsignedWeights = true;
#elif defined(__ARM_FEATURE_DOTPROD)
#define QK_BYTES
constexpr bool kUnsignedWeights = false;
#else
constexpr bool kUnsignedWeights = false;
#endif
#if defined(QK_BYTES)
using Whole = Bytes;
#else
using Whole = Pairs;
#endif
constexpr int kWeightBias = kUnsignedWeights ? 128 : 0;
constexpr int kLineItems = kLine / sizeof(Whole::Item);  // whole numbers in a line

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool kShortFloats = true;  // bfloat16 is multiplied without being widened

struct BFloat16 {
  using Sum = Floats;
  using Number = Ints;

  static Number number(const char* a) { return unit_of(a); }

  static Sum dot(Sum sum, Number a, Ints b) {
#if defined(__AVX512BF16__)
    return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return (Sum)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#endif
  }

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  static Sum square(Sum sum, Ints a, Ints b) {
    return (Sum)vbfmmlaq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
  }
#endif
};
#else
constexpr bool kShortFloats = false;
using BFloat16 = Float32;
#endif

// Whether ARM multiplies two rows by two columns at a time, in half the instructions. The panels then keep two units of
// a column together, [K in two units][16][2], and have an even number of units.
#if defined(__ARM_FEATURE_MATMUL_INT8)
template <class Dot>
constexpr bool kSquares = std::is_same_v<Dot, Bytes> || (kShortFloats && std::is_same_v<Dot, BFloat16>);
#else
template <class Dot>
constexpr bool kSquares = false;
#endif

constexpr int kStride = kVector == 64 ? 2 : 16;  // units

inline const char kNowhere[kLine] = {};  // a valid address to prefetch in vain: invalid ones take long

// Memory that will be read next is prefetched a little at a time: `step` bytes with every kStride units. Meanwhile
// vector instructions leave the ways to memory idle; matrix instructions need them.

struct Ahead {
  const char* next = kNowhere;
  int64_t step = 0;
};

// Rows of A, `stride` bytes apart, and the number that each one's sums start from (null means zeros).
struct Left {
  const char* data;
  int64_t stride;
  const int32_t* start = nullptr;
};

struct Right {
  const char* data;
  int64_t panel;  // bytes from one to the next
};

// Where sums are stored, or added to what is there, in rows that are `pitch` numbers apart.
struct Store {
  void* to;
  int64_t pitch;
  bool add = false;

  template <class Sum>
  void operator()(int64_t row, int64_t column, Sum sum) const {
    char* at = static_cast<char*>(to) + (row * pitch + column) * 4;
    if (add) {
      Sum there;
      std::memcpy(&there, at, sizeof there);
      sum += there;
    }
    std::memcpy(at, &sum, sizeof sum);
  }

  Store moved(int64_t row, int64_t column) const {
    return {static_cast<char*>(to) + (row * pitch + column) * 4, pitch, add};
  }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
// As block_of, in squares of two rows by two columns.
template <class Dot, int Rows, class Out>
inline void block_of_squares(const Left& a, const Right& b, int64_t units, const Out& out, Ahead& ahead) {
  constexpr int kPairs = (Rows + 1) / 2, kSquare = 2 * kUnit;  // bytes of a row in a square
  typename Dot::Sum sums[kPairs][2 * kVectors] = {};
  const char *next = ahead.next, *row = a.data, *line = b.data;
  const int64_t stride = a.stride;
  for (int64_t u = 0; u < units; u += 2, row += kSquare, line += 2 * kLine) {
    if (u % kStride == 0) {
      __builtin_prefetch(next, 0, 2);
      next += ahead.step;
    }
    Ints pair[kPairs];
#pragma GCC unroll 16
    for (int i = 0; i < kPairs; i++) {
      const char *first = row + 2 * i * stride, *second = first + (2 * i + 1 < Rows ? stride : 0);
      pair[i] = (Ints)vld1q_lane_s64((const int64_t*)second, vld1q_dup_s64((const int64_t*)first), 1);
    }
#pragma GCC unroll 16
    for (int v = 0; v < 2 * kVectors; v++) {
      const Ints columns = load_ints(line + v * kVector);
#pragma GCC unroll 16
      for (int i = 0; i < kPairs; i++) sums[i][v] = Dot::square(sums[i][v], pair[i], columns);
      asm volatile(
          "" ::
              : "memory");  // without this the compiler loads all columns first, into more registers than there are
    }
  }
  ahead.next = next;
#pragma GCC unroll 16
  for (int i = 0; i < kPairs; i++)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      const auto left = (int64x2_t)sums[i][2 * v], right = (int64x2_t)sums[i][2 * v + 1];
      out(2 * i, v * (kVector / 4), (typename Dot::Sum)vzip1q_s64(left, right));
      if (2 * i + 1 < Rows) out(2 * i + 1, v * (kVector / 4), (typename Dot::Sum)vzip2q_s64(left, right));
    }
}
#endif

// Rows of A times kPanels panels -> out(row, column, register of sums).
template <class Dot, int Rows, class Out>
inline void block_of(const Left& a, const Right& b, int64_t units, const Out& out, Ahead& ahead) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (kSquares<Dot>) return block_of_squares<Dot, Rows>(a, b, units, out, ahead);
#endif
  typename Dot::Sum sums[Rows][kVectors] = {};
  if constexpr (std::is_same_v<typename Dot::Sum, Ints>)
    if (kUnsignedWeights && a.start)
      for (int i = 0; i < Rows; i++)
        for (int v = 0; v < kVectors; v++) sums[i][v] += a.start[i];
  const char *next = ahead.next, *row = a.data, *line = b.data;
  for (int64_t left = units; left > 0; left -= kStride) {
    __builtin_prefetch(next, 0, 2);
    next += ahead.step;
    const int64_t some = left < kStride ? left : kStride;
#pragma GCC unroll 4
    for (int64_t u = 0; u < some; u++, row += kUnit, line += kLine) {
      if constexpr (kSoon > 0)
        for (int p = 0; p < kPanels; p++) __builtin_prefetch(line + p * b.panel + kSoon * kLine, 0, 3);
      Ints lines[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) lines[v] = load_ints(line + v / kParts * b.panel + v % kParts * kVector);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; i++) {
        const auto number = Dot::number(row + i * a.stride);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) sums[i][v] = Dot::dot(sums[i][v], number, lines[v]);
      }
    }
  }
  ahead.next = next;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) out(i, v * (kVector / 4), sums[i][v]);
}

// The same for many units by AVX512. If it were inlined, the addresses of its 12 rows would be kept in memory, which is
// an eighth slower. Alignment makes its loop equally fast wherever it lies in the library.
template <class Dot, int Rows>
__attribute__((noinline, flatten, aligned(64))) void long_block_of(const Left& a, const Right& b, int64_t units,
                                                                   const Store& out, Ahead& ahead) {
  block_of<Dot, Rows>(a, b, units, out, ahead);
}

template <class Dot, bool Long, int Rows, class Out>
inline void block_up_to(int64_t rows, const Left& a, const Right& b, int64_t units, const Out& out, Ahead& ahead) {
  if constexpr (Rows > 1)
    if (rows < Rows) return block_up_to<Dot, Long, Rows - 1>(rows, a, b, units, out, ahead);
  if constexpr (Long && kVector == 64)
    long_block_of<Dot, Rows>(a, b, units, out, ahead);
  else
    block_of<Dot, Rows>(a, b, units, out, ahead);
}

#if defined(__AMX_INT8__)
struct Tiles {  // the layout ldtilecfg reads
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The number of rows that this thread's tiles are set for. Another library may change the tiles between two operations.
inline thread_local int64_t tile_rows = 0;

// Tiles 0-3 hold sums of two halves of the rows by two panels; 4 and 5 hold rows; 6 and 7 hold panels.
inline void set_tiles(int64_t rows) {
  if (tile_rows == rows) return;
  alignas(64) Tiles tiles;
  const uint8_t upper = rows < 16 ? rows : 16, lower = rows > 16 ? rows - 16 : 1;
  for (int i = 0; i < 8; i++) tiles.row_bytes[i] = 64, tiles.rows[i] = 16;
  tiles.rows[0] = tiles.rows[1] = tiles.rows[4] = upper;
  tiles.rows[2] = tiles.rows[3] = tiles.rows[5] = lower;
  _tile_loadconfig(&tiles);
  tile_rows = rows;
}

template <class Dot>
inline void tile_dot(bool lower) {
  if constexpr (std::is_same_v<Dot, Bytes>) {
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
inline void block_tiles(int64_t rows, const Left& a, const Right& b, int64_t units, const Store& out) {
  set_tiles(rows);
  const bool lower = rows > 16;
  char* to = static_cast<char*>(out.to);
  const int64_t pitch = out.pitch * 4;
  if (out.add) {
    _tile_loadd(0, to, pitch);
    _tile_loadd(1, to + 64, pitch);
    if (lower) {
      _tile_loadd(2, to + 16 * pitch, pitch);
      _tile_loadd(3, to + 16 * pitch + 64, pitch);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t u = 0; u < units; u += 16) {
    _tile_loadd(6, b.data + u * kLine, kLine);
    _tile_loadd(7, b.data + b.panel + u * kLine, kLine);
    _tile_loadd(4, a.data + u * kUnit, a.stride);
    if (lower) _tile_loadd(5, a.data + 16 * a.stride + u * kUnit, a.stride);
    tile_dot<Dot>(lower);
  }
  _tile_stored(0, to, pitch);
  _tile_stored(1, to + 64, pitch);
  if (lower) {
    _tile_stored(2, to + 16 * pitch, pitch);
    _tile_stored(3, to + 16 * pitch + 64, pitch);
  }
}

// 16 rows of weights, as the file has them, by Tiles panels of 16 rows of A -> sums [16][Tiles * 16]. Every weight is
// loaded once, so that memory and multiplier work at the same time. Both sides are signed bytes, or bfloat16.
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
    if constexpr (std::is_same_v<Dot, Bytes>)                    \
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

// Must exist while one thread computes blocks: it releases the tiles at the end.
struct Blocks {
#if defined(__AMX_INT8__)
  Blocks() { tile_rows = 0; }
  ~Blocks() { _tile_release(); }
#else
  Blocks() {}
#endif
};

// Whether sums of whole numbers start from `Left::start`. If not, the caller adds it to them.
#if defined(__AMX_INT8__)
constexpr bool kStarted = false;
#else
constexpr bool kStarted = kUnsignedWeights;
#endif

// At most kBlockRows rows by 32 columns. Matrix instructions are used where units are a multiple of 16.
template <class Dot, bool Long = false, class Out>
inline void block(int64_t rows, const Left& a, const Right& b, int64_t units, const Out& out, Ahead& ahead) {
#if defined(__AMX_INT8__)
  if constexpr (!std::is_same_v<Dot, Float32> && std::is_same_v<Out, Store>)
    if (units % 16 == 0) return block_tiles<Dot>(rows, a, b, units, out);
#endif
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t here = rows - first < kRows ? rows - first : kRows;
    const Left some{a.data + first * a.stride, a.stride, a.start ? a.start + first : nullptr};
    for (int p = 0; p < 2; p += kPanels)
      block_up_to<Dot, Long, kRows>(here, some, {b.data + p * b.panel, b.panel}, units, out.moved(first, p * 16),
                                    ahead);
  }
}

}  // namespace QK_ISA
}  // namespace qk
