// Rows of 4-byte units in, panels [units][16] out, which `block` reads as B.
#pragma once

#include "block.h"

namespace qk {
namespace QK_ISA {

inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#if defined(__AVX512F__)
inline void transpose(const I16* lines, char* to) {
  __m512i a[16], b[16];
  const __m512i* in = reinterpret_cast<const __m512i*>(lines);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    a[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
  }
  __m512i* out = reinterpret_cast<__m512i*>(to);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_si512(out + i, _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88));
    _mm512_storeu_si512(out + i + 8, _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd));
    _mm512_storeu_si512(out + i + 4, _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88));
    _mm512_storeu_si512(out + i + 12, _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd));
  }
}
#else

// A register of units from each of as many rows -> a register of rows for each unit. Those are kLine bytes apart.
#if defined(__AVX2__)
inline void transpose_square(const Ints* in, int64_t step, char* to) {
  for (int half = 0; half < 2; half++, to += 4 * kLine) {  // 4 units of all rows
    const auto row = [&](int i) { return _mm_loadu_si128((const __m128i*)(in + i * step) + half); };
    __m256i a[4], b[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1);
    b[0] = _mm256_unpacklo_epi32(a[0], a[1]), b[1] = _mm256_unpackhi_epi32(a[0], a[1]);
    b[2] = _mm256_unpacklo_epi32(a[2], a[3]), b[3] = _mm256_unpackhi_epi32(a[2], a[3]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      _mm256_storeu_si256((__m256i*)(to + 2 * i * kLine), _mm256_unpacklo_epi64(b[i], b[i + 2]));
      _mm256_storeu_si256((__m256i*)(to + (2 * i + 1) * kLine), _mm256_unpackhi_epi64(b[i], b[i + 2]));
    }
  }
}
#elif defined(__aarch64__)
inline void transpose_square(const Ints* in, int64_t step, char* to) {
  const auto row = [&](int i) { return (int32x4_t)in[i * step]; };
  const int64x2_t a = (int64x2_t)vzip1q_s32(row(0), row(1)), b = (int64x2_t)vzip2q_s32(row(0), row(1));
  const int64x2_t c = (int64x2_t)vzip1q_s32(row(2), row(3)), d = (int64x2_t)vzip2q_s32(row(2), row(3));
  vst1q_s64((int64_t*)to, vzip1q_s64(a, c));
  vst1q_s64((int64_t*)(to + kLine), vzip2q_s64(a, c));
  vst1q_s64((int64_t*)(to + 2 * kLine), vzip1q_s64(b, d));
  vst1q_s64((int64_t*)(to + 3 * kLine), vzip2q_s64(b, d));
}
#else
inline void transpose_square(const Ints* in, int64_t step, char* to) {
  for (int u = 0; u < 4; u++)
    for (int r = 0; r < 4; r++) std::memcpy(to + u * kLine + r * kUnit, (const char*)&in[r * step] + u * kUnit, kUnit);
}
#endif

inline void transpose(const I16* lines, char* to) {
  constexpr int kSide = kVector / kUnit;
#pragma GCC unroll 4
  for (int units = 0; units < kParts; units++)
#pragma GCC unroll 4
    for (int rows = 0; rows < kParts; rows++)
      transpose_square(&lines[rows * kSide].part[units], kParts, to + units * kSide * kLine + rows * kVector);
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
// The same for pairs of units: to[u / 2] holds units u and u + 1 of row 0, then of row 1, and so on.
inline void transpose_twos(const I16* lines, char* to) {
  for (int part = 0; part < kParts; part++, to += 4 * kLine)
    for (int r = 0; r < 16; r += 2) {
      const auto even = (int64x2_t)lines[r].part[part], odd = (int64x2_t)lines[r + 1].part[part];
      vst1q_s64((int64_t*)(to + r * 2 * kUnit), vzip1q_s64(even, odd));
      vst1q_s64((int64_t*)(to + r * 2 * kUnit + 2 * kLine), vzip2q_s64(even, odd));
    }
}
#endif

// transpose(lines, to): lines[r] holds 16 units of row r -> to[u] holds unit u of 16 rows. Here in the order that `Dot`
// reads.
template <class Dot>
inline void transpose_for(const I16* lines, char* to) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (kSquares<Dot>) return transpose_twos(lines, to);
#endif
  transpose(lines, to);
}

// Writes lines * 16 units of 16 rows. read(row, line) gives 16 units of a row; rows from `rows` on are zeros.
template <class Dot, class Read>
inline void pack_panel(const Read& read, int64_t rows, int64_t lines, char* to) {
  I16 buffer[16];
  for (int64_t line = 0; line < lines; line++) {
    for (int64_t row = 0; row < 16; row++) buffer[row] = row < rows ? read(row, line) : I16{};
    transpose_for<Dot>(buffer, to + line * 16 * kLine);
  }
}

// The same for rows of `bytes` that are `stride` apart. widen(p) makes 16 units from `Source` bytes; units past a row's
// end are zeros.
template <class Dot, int Source, class Widen>
inline void pack_rows(const char* from, int64_t stride, int64_t rows, int64_t bytes, int64_t lines, const Widen& widen,
                      char* to) {
  const int64_t whole = rows == 16 ? least(bytes / Source, lines) : 0;
  for (int64_t line = 0; line < whole; line++) {
    I16 buffer[16];
#pragma GCC unroll 16
    for (int64_t row = 0; row < 16; row++) buffer[row] = widen(from + row * stride + line * Source);
    transpose_for<Dot>(buffer, to + line * 16 * kLine);
  }
  const auto read = [&](int64_t row, int64_t line) {
    alignas(kLine) char piece[Source] = {};
    const int64_t at = (whole + line) * Source;
    if (at < bytes) std::memcpy(piece, from + row * stride + at, least(Source, bytes - at));
    return widen(piece);
  };
  pack_panel<Dot>(read, rows, lines - whole, to + whole * 16 * kLine);
}

}  // namespace QK_ISA
}  // namespace qk
