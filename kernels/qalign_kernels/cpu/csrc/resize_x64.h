// The resize by AVX2, which takes two taps of 16 bits, and by AVX512-VNNI, which takes four taps of 8 bits.
#pragma once

#include <immintrin.h>

#include "resize_plain.h"

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

namespace {

// Sums have these types because with __m256i GCC 12 copies every sum at every step.
using Eight = int32_t __attribute__((vector_size(32)));
using Sixteen = int32_t __attribute__((vector_size(64)));

// Turns 4 columns of 8 rows into words of 4 bytes, [colour][row].
AVX2 inline void blend_fours(const uint8_t* const* rows, int64_t at, const __m128i (&orders)[4],
                             __m256i (&colours)[3]) {
  __m256i turned[4];
  for (int i = 0; i < 4; ++i) {
    const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + at));
    const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i + 4] + at));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(upper), lower, 1);
    turned[i] = _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(orders[i]));
  }
  const __m256i a = _mm256_blend_epi32(turned[0], turned[1], 0xaa), b = _mm256_blend_epi32(turned[1], turned[0], 0xaa);
  const __m256i c = _mm256_blend_epi32(turned[2], turned[3], 0xaa), d = _mm256_blend_epi32(turned[3], turned[2], 0xaa);
  colours[0] = _mm256_blend_epi32(a, c, 0xcc);
  colours[1] = _mm256_blend_epi32(b, d, 0x99);
  colours[2] = _mm256_blend_epi32(c, a, 0xcc);
}

template <int kTaps>
AVX2 void fill_avx2(const Resize& r, const Strip& strip, int from, int to, uint8_t* blocks) {
  const Range middle = fours(r, from, to);
  const Orders orders(r.channels, kTaps);
  __m128i order[4];
  std::memcpy(order, orders.bytes, 64);
  fill_plain<kTaps, 0>(r, strip, from, middle.from, blocks);
  for (int column = middle.from; column < middle.to; column += 4)
    for (int row = 0; row < kRows * kTaps; row += 8) {
      __m256i colours[3];
      blend_fours(strip.rows + row, column * r.channels, order, colours);
      auto* to = reinterpret_cast<__m256i*>(blocks + (column - from) * kColumn + 4 * row);
      for (int colour = 0; colour < 3; ++colour)
        if constexpr (kTaps == 4) {
          _mm256_store_si256(to + 2 * colour, colours[colour]);
        } else {
          _mm256_store_si256(to + colour, _mm256_and_si256(colours[colour], _mm256_set1_epi16(255)));
          _mm256_store_si256(to + colour + 3, _mm256_srli_epi16(colours[colour], 8));
        }
    }
  fill_plain<kTaps, 0>(r, strip, middle.to, to, blocks + (middle.to - from) * kColumn);
}

// Writes 4 words of each colour into 4 rows.
AVX2 inline void put_words(__m128i red, __m128i green, __m128i blue, __m128i pad, uint8_t* rows, int64_t row_bytes) {
  const __m128i low[2] = {_mm_unpacklo_epi32(red, green), _mm_unpacklo_epi32(blue, pad)};
  const __m128i high[2] = {_mm_unpackhi_epi32(red, green), _mm_unpackhi_epi32(blue, pad)};
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows), _mm_unpacklo_epi64(low[0], low[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + row_bytes), _mm_unpackhi_epi64(low[0], low[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 2 * row_bytes), _mm_unpacklo_epi64(high[0], high[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 3 * row_bytes), _mm_unpackhi_epi64(high[0], high[1]));
}

// The weights are int16 [2][2]: w >> 8, then w & 255, because a weight has 24 bits and products take 16.
AVX2 inline void sum_avx2(const uint8_t* blocks, int64_t stride, int groups, const uint8_t* limbs, int base,
                          Eight (&sums)[3]) {
  Eight high[3] = {}, low[3] = {Eight{} + base, Eight{} + base, Eight{} + base};
  for (int g = 0; g < groups; ++g, blocks += stride, limbs += 8) {
    const __m256i w_high = _mm256_set1_epi32(load_word(limbs)), w_low = _mm256_set1_epi32(load_word(limbs + 4));
    for (int v = 0; v < 3; ++v) {
      const __m256i pixels = _mm256_load_si256(reinterpret_cast<const __m256i*>(blocks + 32 * v));
      high[v] += (Eight)_mm256_madd_epi16(pixels, w_high);
      low[v] += (Eight)_mm256_madd_epi16(pixels, w_low);
    }
  }
  for (int v = 0; v < 3; ++v) sums[v] = ((high[v] << 8) + low[v]) >> kBits;
}

// Writes sums of [colour][8 rows], clipped to 8 bits, into 4 rows of words.
AVX2 inline void put_sums(const Eight (&sums)[3], __m256i pad, uint8_t* rows, int64_t row_bytes) {
  const __m256i zero = _mm256_setzero_si256(), top = _mm256_set1_epi16(255);
  const __m256i green = _mm256_shuffle_epi32((__m256i)sums[1], 0x39);
  __m256i red_green = _mm256_packs_epi32((__m256i)sums[0], green), blue_pad = _mm256_packs_epi32((__m256i)sums[2], pad);
  red_green = _mm256_shuffle_epi32(_mm256_min_epi16(_mm256_max_epi16(red_green, zero), top), 0xd8);
  blue_pad =
      _mm256_shuffle_epi32(_mm256_min_epi16(_mm256_max_epi16(blue_pad, zero), top), 0xc9);  // blue's lanes are rotated
  const __m256i even = _mm256_unpacklo_epi64(red_green, blue_pad), odd = _mm256_unpackhi_epi64(red_green, blue_pad);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows), _mm256_castsi256_si128(even));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + row_bytes), _mm256_castsi256_si128(odd));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 2 * row_bytes), _mm256_extracti128_si256(even, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 3 * row_bytes), _mm256_extracti128_si256(odd, 1));
}

AVX2 void across_avx2(const Axis& axis, const Across& a) {
  const __m256i pad = _mm256_set1_epi32(a.pad);
  for (int x = a.from; x < a.to; ++x) {
    Eight sums[3];
    sum_avx2(a.blocks + axis.first[x] * 96, 96, axis.groups, axis.limbs + x * axis.groups * 8, axis.base[x], sums);
    put_sums(sums, pad, a.rows + 12 * x, a.row_bytes);
  }
}

AVX2 void down_avx2(const Axis& axis, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int i = 0; i < blocks; ++i) {
    Eight sums[3];
    sum_avx2(rows + 96 * i, row_bytes, axis.groups, axis.limbs + y * axis.groups * 8, axis.base[y], sums);
    const __m256i words = _mm256_packs_epi32((__m256i)sums[0], (__m256i)sums[1]);
    const __m256i rest = _mm256_packs_epi32((__m256i)sums[2], (__m256i)sums[2]);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, rest), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 24 * i), bytes);
  }
}

// The weights are int8 [3][4]: digits of base 256, each in -128..127.
AVX512 inline void sum_avx512(const uint8_t* blocks, int64_t stride, int groups, const uint8_t* limbs, int base,
                              Sixteen (&sums)[3]) {
  Sixteen digits[3][3] = {{Sixteen{} + base, Sixteen{} + base, Sixteen{} + base}};
  for (int g = 0; g < groups; ++g, blocks += stride, limbs += 12)
    for (int d = 0; d < 3; ++d) {
      const __m512i weights = _mm512_set1_epi32(load_word(limbs + 4 * d));
      for (int v = 0; v < 3; ++v)
        digits[d][v] = (Sixteen)_mm512_dpbusd_epi32((__m512i)digits[d][v], _mm512_load_si512(blocks + 64 * v), weights);
    }
  for (int v = 0; v < 3; ++v) sums[v] = (digits[0][v] + (digits[1][v] << 8) + (digits[2][v] << 16)) >> kBits;
}

// 16 sums, clipped to 8 bits.
AVX512 inline __m128i cut(__m512i sums) {
  return _mm512_cvtusepi32_epi8(_mm512_max_epi32(sums, _mm512_setzero_si512()));
}

AVX512 void across_avx512(const Axis& axis, const Across& a) {
  const __m128i pad = _mm_set1_epi8(static_cast<int8_t>(a.pad));
  for (int x = a.from; x < a.to; ++x) {
    Sixteen sums[3];
    sum_avx512(a.blocks + axis.first[x] * 192, 192, axis.groups, axis.limbs + x * axis.groups * 12, axis.base[x], sums);
    const __m512i green = _mm512_shuffle_epi32((__m512i)sums[1], _MM_PERM_ADCB);
    const __m512i blue = _mm512_shuffle_epi32((__m512i)sums[2], _MM_PERM_BADC);
    put_words(cut((__m512i)sums[0]), cut(green), cut(blue), pad, a.rows + 12 * x, a.row_bytes);
  }
}

AVX512 void down_avx512(const Axis& axis, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out) {
  for (int i = 0; i < blocks; ++i) {
    Sixteen sums[3];
    sum_avx512(rows + 192 * i, row_bytes, axis.groups, axis.limbs + y * axis.groups * 12, axis.base[y], sums);
    for (int v = 0; v < 3; ++v)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 48 * i + 16 * v), cut((__m512i)sums[v]));
  }
}

constexpr Isa kAvx2 = {2, 0, fill_avx2<2>, across_avx2, down_avx2};
constexpr Isa kVnni = {4, 0, fill_avx2<4>, across_avx512, down_avx512};

}  // namespace
