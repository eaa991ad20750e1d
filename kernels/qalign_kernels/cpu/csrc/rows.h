// Operations on single rows: norms, activations, rounding to 8 bits or to a shorter float.
#pragma once

#include "pool.h"
#include "vec.h"

namespace qk {
namespace QK_ISA {

constexpr int64_t kRowsATask = 8;

// f(row) for each row, in parallel.
template <class F>
void each_row(int64_t rows, const F& f) {
  parallel((rows + kRowsATask - 1) / kRowsATask, [&](int64_t task) {
    const int64_t end = (task + 1) * kRowsATask < rows ? (task + 1) * kRowsATask : rows;
    for (int64_t row = task * kRowsATask; row < end; row++) f(row);
  });
}

constexpr int64_t kStreamedBytes = 4 << 20;  // larger results are written past the cache

// Stores 16 numbers, or as many as `count`, of a result that has `bytes` in all.
inline void store_result(float* to, const F16& y, int64_t count, [[maybe_unused]] int64_t bytes) {
#if defined(__AVX2__)
  // memory that the cache would not keep anyway need not be read into it first
  if (count >= 16 && bytes > kStreamedBytes && reinterpret_cast<uintptr_t>(to) % 64 == 0) return store_past(to, y);
#endif
  store_part(to, y, count);
}

// The sum over a row of term(x), four sums at a time.
template <class Term>
inline float sum_row(const float* x, int64_t width, const Term& term) {
  F16 sums[4] = {};
  int64_t i = 0;
  for (; i + 64 <= width; i += 64)
    for (int j = 0; j < 4; j++) sums[j] += term(load(x + i + 16 * j));
  for (; i + 16 <= width; i += 16) sums[0] += term(load(x + i));
  float rest = 0;
  for (; i < width; i++) rest += term(splat(x[i]))[0];
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

inline void layer_norm(const float* x, const float* gain, const float* bias, float eps, int64_t rows, int64_t width,
                       float* out) {
  each_row(rows, [=](int64_t row) {
    const float* in = x + row * width;
    const float mean = sum_row(in, width, [](const F16& v) { return v; }) / width;
    const float variance = sum_row(in, width, [=](const F16& v) { return (v - mean) * (v - mean); }) / width;
    const float scale = 1 / std::sqrt(variance + eps);
    for (int64_t i = 0; i < width; i += 16) {
      const int64_t left = width - i;
      const F16 y = (load_part(in + i, left) - mean) * scale;
      store_part(out + row * width + i, y * load_part(gain + i, left) + load_part(bias + i, left), left);
    }
  });
}

inline void rms_norm(const float* x, const float* gain, float eps, int64_t rows, int64_t width, float* out) {
  each_row(rows, [=](int64_t row) {
    const float* in = x + row * width;
    const float scale = 1 / std::sqrt(sum_row(in, width, [](const F16& v) { return v * v; }) / width + eps);
    for (int64_t i = 0; i < width; i += 16) {
      const int64_t left = width - i;
      store_part(out + row * width + i, load_part(in + i, left) * scale * load_part(gain + i, left), left);
    }
  });
}

inline F16 quick_gelu(const F16& x) { return x * reciprocal(1.f + exp(x * -1.702f)); }

inline void swiglu(const float* gate_up, int64_t rows, int64_t width, float* out) {
  each_row(rows, [=](int64_t row) {
    const float *gate = gate_up + row * 2 * width, *up = gate + width;
    for (int64_t i = 0; i < width; i += 16) {
      const int64_t left = width - i;
      const F16 x = load_part(gate + i, left);
      store_part(out + row * width + i, x * reciprocal(1.f + exp(-x)) * load_part(up + i, left), left);
    }
  });
}

// 16 whole numbers -> 16 of 16 bits.
inline void store_items(int16_t* to, const I16& x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)x.part[0]));
#elif defined(__AVX2__)
  const __m256i both = _mm256_packs_epi32((__m256i)x.part[0], (__m256i)x.part[1]);  // by halves of the registers
  _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(both, 0xd8));
#elif defined(__aarch64__)
  for (int i = 0; i < 4; i++) vst1_s16(to + 4 * i, vmovn_s32((int32x4_t)x.part[i]));
#else
  for (int i = 0; i < 16; i++) to[i] = static_cast<int16_t>(x[i]);
#endif
}

// 16 whole numbers -> 16 of 8 bits.
inline void store_items(int8_t* to, const I16& x) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)x.part[0]));
#else
  int16_t wide[16];
  store_items(wide, x);
#if defined(__SSE2__)
  const auto* halves = (const __m128i*)wide;
  _mm_storeu_si128((__m128i*)to, _mm_packs_epi16(_mm_loadu_si128(halves), _mm_loadu_si128(halves + 1)));
#elif defined(__aarch64__)
  vst1q_s8(to, vcombine_s8(vmovn_s16(vld1q_s16(wide)), vmovn_s16(vld1q_s16(wide + 8))));
#else
  for (int i = 0; i < 16; i++) to[i] = static_cast<int8_t>(wide[i]);
#endif
#endif
}

// x / s to the bit, from the rounded 1 / s: the remainder that a rounded quotient leaves is exact (Markstein). A
// division would take several times as long.
inline F16 divide(const F16& x, const F16& s, const F16& reciprocal) {
#if defined(__FMA__) || defined(__aarch64__)
  const F16 quotient = x * reciprocal;
  return fused(fused(-quotient, s, x), reciprocal, quotient);
#else
  return x / s;
#endif
}

// The largest magnitude of a row.
inline float reach(const float* x, int64_t width) {
  F16 most{};
  for (int64_t i = 0; i < width; i += 16) most = max(most, magnitude(load_part(x + i, width - i)));
  return largest(most);
}

// A row of `width` floats -> whole numbers in -127..127 with zeros up to `padded`, the row's scale, and the sum of its
// whole numbers.
template <class Item>
inline void quantize(const float* x, int64_t width, int64_t padded, Item* to, float* scale, int32_t* total) {
  const float most = reach(x, width);
  *scale = (most > 1e-30f ? most : 1e-30f) / 127;
  const F16 all = splat(*scale), reciprocal = splat(1 / *scale);
  I16 sums{};
  for (int64_t i = 0; i < padded; i += 16) {
    const F16 v = i < width ? load_part(x + i, width - i) : F16{};
    const I16 whole = nearest(divide(v, all, reciprocal));
    store_items(to + i, whole);
    sums += whole;
  }
  *total = 0;
  for (int i = 0; i < 16; i++) *total += sums[i];
}

// The nearest bfloat16, ties to even. Its 16 bits are in the upper half of each lane.
inline I16 to_bfloat16(const F16& x) {
  const I16 bits = as_ints(x);
  return (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
}

// The upper halves of 16 words, 32 bytes.
inline void store_upper(void* to, const I16& x) { store_items(static_cast<int16_t*>(to), x >> 16); }

// Float16 for CPUs and compilers without it, from and to float32. It has a sign, 5 bits of exponent and 10 of fraction.
inline float widen_float16(uint16_t half) {
  constexpr uint32_t kExponents = (127 - 15) << 23;
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fff;
  float size = rest * 0x1p-24f;  // right for numbers below the smallest normal one
  if (rest >= 0x400) {
    const uint32_t bits =
        (rest << 13) + (rest >= 0x7c00 ? 2 * kExponents : kExponents);  // from 0x7c00 on: infinite or NaN
    std::memcpy(&size, &bits, sizeof bits);
  }
  return sign ? -size : size;
}

inline float through_float16(float x) {
  constexpr float kLeast = 0x1p-14f, kEnd = 65520;  // the smallest normal one; halfway from the largest to the next
  const float size = std::fabs(x);
  float rounded = INFINITY;
  if (!(size == size)) return x;
  if (size < kLeast) {
    rounded = (size + 0.5f) - 0.5f;  // to a multiple of 2^-24, which is the last bit of numbers from 0.5 on
  } else if (size < kEnd) {
    uint32_t bits;
    std::memcpy(&bits, &size, sizeof bits);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;  // ties to even
    std::memcpy(&rounded, &bits, sizeof bits);
  }
  return std::copysign(rounded, x);
}

inline F16 widen_float16(const uint16_t* halves) {
#if defined(__AVX512F__)
  return {{(Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)halves))}};
#elif defined(__F16C__)
  return by_part<Floats>([&](int i) { return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)halves + i)); });
#elif defined(__aarch64__)
  return by_part<Floats>([&](int i) { return (Floats)vcvt_f32_f16((float16x4_t)vld1_u16(halves + 4 * i)); });
#else
  F16 y;
  for (int i = 0; i < 16; i++) y[i] = widen_float16(halves[i]);
  return y;
#endif
}

inline F16 through_float16(const F16& x) {
#if defined(__AVX512F__)
  return {{(Floats)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)x.part[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))}};
#elif defined(__F16C__)
  return by_part<Floats>([&](int i) {
    return (Floats)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x.part[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  });
#elif defined(__aarch64__)
  return by_part<Floats>([&](int i) { return (Floats)vcvt_f32_f16(vcvt_f16_f32((float32x4_t)x.part[i])); });
#else
  F16 y;
  for (int i = 0; i < 16; i++) y[i] = through_float16(x[i]);
  return y;
#endif
}

}  // namespace QK_ISA
}  // namespace qk
