// Rows of 4-byte units in, panels [units][16] out: what `block` reads as B.
#pragma once

#include "vec.h"

namespace qk {
namespace QK_ISA {

// lines[r] holds 16 units of row r -> to[u] holds unit u of 16 rows.
inline void transpose(const I16* lines, char* to) {
#if defined(__AVX512F__)
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
#else
  for (int u = 0; u < 16; u++)
    for (int r = 0; r < 16; r++)
      std::memcpy(to + (u * 16 + r) * 4, reinterpret_cast<const char*>(lines + r) + u * 4, 4);
#endif
}

// read(row, line) gives 16 units of a row; rows past `rows` are zeros. Writes lines * 16 units of 16 rows.
template <class Read>
inline void pack_panel(const Read& read, int64_t rows, int64_t lines, char* to) {
  I16 buffer[16];
  for (int64_t line = 0; line < lines; line++) {
    for (int64_t row = 0; row < 16; row++) buffer[row] = row < rows ? read(row, line) : I16{};
    transpose(buffer, to + line * 16 * 64);
  }
}

}  // namespace QK_ISA
}  // namespace qk
