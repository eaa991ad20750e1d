// Sixteen lanes at a time, in the compiler's own vector types: one zmm, two ymm or four plain registers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Everything below has a copy for each instruction set, told apart by this name.
#define QK_JOIN2(a, b) a##_##b
#define QK_JOIN(a, b) QK_JOIN2(a, b)

namespace qk {
namespace QK_ISA {

typedef float F16 __attribute__((vector_size(64), may_alias));
typedef int32_t I16 __attribute__((vector_size(64), may_alias));
typedef uint32_t U16 __attribute__((vector_size(64), may_alias));
typedef float F16u __attribute__((vector_size(64), aligned(1), may_alias));
typedef int32_t I16u __attribute__((vector_size(64), aligned(1), may_alias));

inline F16 load(const float* p) { return *reinterpret_cast<const F16u*>(p); }
inline void store(float* p, F16 x) { *reinterpret_cast<F16u*>(p) = x; }
inline I16 load_bytes(const void* p) { return *static_cast<const I16u*>(p); }
inline F16 splat(float x) { return F16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
inline F16 to_float(I16 x) { return __builtin_convertvector(x, F16); }
inline F16 max(F16 a, F16 b) { return a > b ? a : b; }
inline F16 magnitude(F16 x) { return (F16)((I16)x & 0x7fffffff); }

// a b + c, rounded once where the instruction set can. Nothing else is contracted (-ffp-contract=off): whichever way a
// product goes, the same numbers give the same bits.
inline F16 fused(F16 a, F16 b, F16 c) {
#if defined(__AVX512F__)
  return (F16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < 2; i++) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof z);
  return c;
#else
  return a * b + c;
#endif
}

// A row's last lanes: `count` of them are there, the rest read as 0.
inline F16 load_part(const float* p, int64_t count) {
  if (count >= 16) return load(p);
  F16 x{};
  std::memcpy(&x, p, count * sizeof(float));
  return x;
}

inline void store_part(float* p, F16 x, int64_t count) {
  if (count >= 16) return store(p, x);
  std::memcpy(p, &x, count * sizeof(float));
}

inline float sum(F16 x) {
  float lanes[16];
  std::memcpy(lanes, &x, sizeof lanes);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) lanes[i] += lanes[i + step];
  return lanes[0];
}

inline float largest(F16 x) {
  float lanes[16];
  std::memcpy(lanes, &x, sizeof lanes);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
  return lanes[0];
}

// To the nearest whole number, ties to even, for magnitudes below 2^22.
inline F16 round_even(F16 x) {
  const F16 magic = splat(12582912.f);  // 1.5 * 2^23
  return (x + magic) - magic;
}

// e^x to about an ulp for x up to 88: x = n ln 2 + r, the series of e^r, n added to the exponent. Below -87, e^-87.
inline F16 exp_below(F16 x) {
  x = max(x, splat(-87.f));
  const F16 magic = splat(12582912.f);
  const F16 shifted = fused(x, splat(1.44269504f), magic);
  const I16 n = (I16)shifted - (I16)magic;
  const F16 whole = shifted - magic;
  F16 r = fused(whole, splat(-0.693145752f), x);
  r = fused(whole, splat(-1.42860677e-6f), r);
  F16 p = splat(1.f / 720);
  p = fused(p, r, splat(1.f / 120));
  p = fused(p, r, splat(1.f / 24));
  p = fused(p, r, splat(1.f / 6));
  p = fused(p, r, splat(0.5f));
  p = fused(p, r, splat(1.f));
  p = fused(p, r, splat(1.f));
  return (F16)((I16)p + (n << 23));
}

inline F16 exp(F16 x) { return exp_below(x < splat(88.f) ? x : splat(88.f)); }

// 1 / x to about an ulp, for x that is neither tiny nor huge.
inline F16 reciprocal(F16 x) {
#if defined(__AVX512F__)
  const F16 y = (F16)_mm512_rcp14_ps((__m512)x);
  return y * fused(-x, y, splat(2.f));
#else
  return 1.f / x;
#endif
}

}  // namespace QK_ISA
}  // namespace qk
