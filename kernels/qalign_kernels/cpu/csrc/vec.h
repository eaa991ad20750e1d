// Vectors of sixteen lanes in the compiler's own vector types: one zmm, two ymm or four registers of 16 bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AMXINT8__) && !defined(__AMX_INT8__)
#define __AMX_INT8__ 1  // clang 14 defines the other name
#endif

// Everything below exists once for each instruction set, in a namespace of its own name.
#define QK_JOIN2(a, b) a##_##b
#define QK_JOIN(a, b) QK_JOIN2(a, b)

// If they were called instead, these functions would pass their registers through memory.
#define QK_INLINE inline __attribute__((always_inline))

namespace qk {
namespace QK_ISA {

#if defined(__AVX512F__)
constexpr int kVector = 64;  // bytes of a register
#elif defined(__AVX2__)
constexpr int kVector = 32;
#else
constexpr int kVector = 16;
#endif
constexpr int kParts = 64 / kVector;

typedef float Floats __attribute__((vector_size(kVector), may_alias));
typedef int32_t Ints __attribute__((vector_size(kVector), may_alias));
typedef float FloatsThere __attribute__((vector_size(kVector), aligned(1), may_alias));  // at any address
typedef int32_t IntsThere __attribute__((vector_size(kVector), aligned(1), may_alias));

template <class Part>
using LaneOf = std::conditional_t<std::is_same_v<Part, Floats>, float, int32_t>;

// Separate registers, not one long vector: GCC would split that, and pass the parts through memory.
template <class Part>
struct Wide {
  using Lane = LaneOf<Part>;
  typedef Lane Lanes __attribute__((may_alias));

  Part part[kParts];

  Lanes& operator[](int i) { return reinterpret_cast<Lanes*>(part)[i]; }
  Lane operator[](int i) const { return reinterpret_cast<const Lanes*>(part)[i]; }
};

using F16 = Wide<Floats>;
using I16 = Wide<Ints>;

// f(i) for every part.
template <class Part, class F>
QK_INLINE Wide<Part> by_part(const F& f) {
  Wide<Part> out;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) out.part[i] = f(i);
  return out;
}

#define QK_OPERATOR(op)                                               \
  template <class P>                                                  \
  QK_INLINE Wide<P> operator op(const Wide<P>& a, const Wide<P>& b) { \
    return by_part<P>([&](int i) { return a.part[i] op b.part[i]; }); \
  }                                                                   \
  template <class P>                                                  \
  QK_INLINE Wide<P> operator op(const Wide<P>& a, LaneOf<P> b) {      \
    return by_part<P>([&](int i) { return a.part[i] op b; });         \
  }                                                                   \
  template <class P>                                                  \
  QK_INLINE Wide<P> operator op(LaneOf<P> a, const Wide<P>& b) {      \
    return by_part<P>([&](int i) { return a op b.part[i]; });         \
  }
QK_OPERATOR(+)
QK_OPERATOR(-)
QK_OPERATOR(*)
QK_OPERATOR(/)
QK_OPERATOR(&)
QK_OPERATOR(|)
QK_OPERATOR(^)
QK_OPERATOR(<<)
QK_OPERATOR(>>)
#undef QK_OPERATOR

template <class P>
QK_INLINE Wide<P>& operator+=(Wide<P>& a, const Wide<P>& b) {
  return a = a + b;
}

QK_INLINE F16 operator-(const F16& x) {
  return by_part<Floats>([&](int i) { return -x.part[i]; });
}

QK_INLINE F16 as_floats(const I16& x) {  // the bits
  return by_part<Floats>([&](int i) { return (Floats)x.part[i]; });
}

QK_INLINE I16 as_ints(const F16& x) {  // the bits
  return by_part<Ints>([&](int i) { return (Ints)x.part[i]; });
}

QK_INLINE F16 to_floats(const I16& x) {  // the numbers
  return by_part<Floats>([&](int i) { return __builtin_convertvector(x.part[i], Floats); });
}

QK_INLINE I16 to_ints(const F16& x) {  // the numbers
  return by_part<Ints>([&](int i) { return __builtin_convertvector(x.part[i], Ints); });
}

QK_INLINE Floats load_floats(const void* p) { return *static_cast<const FloatsThere*>(p); }
QK_INLINE Ints load_ints(const void* p) { return *static_cast<const IntsThere*>(p); }

QK_INLINE F16 load(const float* p) {
  return by_part<Floats>([&](int i) { return load_floats(p + i * (kVector / 4)); });
}

QK_INLINE I16 load_bytes(const void* p) {
  return by_part<Ints>([&](int i) { return load_ints(static_cast<const char*>(p) + i * kVector); });
}

QK_INLINE void store(float* p, const F16& x) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) *reinterpret_cast<FloatsThere*>(p + i * (kVector / 4)) = x.part[i];
}

#if defined(__AVX2__)
// Stores past the cache. p is a multiple of 64 bytes.
QK_INLINE void store_past(float* p, const F16& x) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++)
#if defined(__AVX512F__)
    _mm512_stream_ps(p + i * 16, (__m512)x.part[i]);
#else
    _mm256_stream_ps(p + i * 8, (__m256)x.part[i]);
#endif
}
#endif

QK_INLINE void store_bytes(void* p, const I16& x) { store(static_cast<float*>(p), as_floats(x)); }

QK_INLINE Floats all_of(float x) { return x - Floats{}; }  // not 0 + x, which turns -0 into 0
QK_INLINE Ints all_of(int32_t x) { return x - Ints{}; }

QK_INLINE F16 splat(float x) {
  return by_part<Floats>([&](int) { return all_of(x); });
}

QK_INLINE Floats max(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

QK_INLINE F16 max(const F16& a, const F16& b) {
  return by_part<Floats>([&](int i) { return max(a.part[i], b.part[i]); });
}

QK_INLINE F16 min(const F16& a, const F16& b) {
  return by_part<Floats>([&](int i) { return a.part[i] < b.part[i] ? a.part[i] : b.part[i]; });
}

QK_INLINE F16 magnitude(const F16& x) { return as_floats(as_ints(x) & 0x7fffffff); }

// a b + c, rounded once where the instruction set can do that. Nothing else is contracted (-ffp-contract=off), so that
// the same numbers give the same bits whichever way a product takes.
QK_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

QK_INLINE F16 fused(const F16& a, const F16& b, const F16& c) {
  return by_part<Floats>([&](int i) { return fused(a.part[i], b.part[i], c.part[i]); });
}

// The last lanes of a row: `count` of them are read, the others are 0.
QK_INLINE F16 load_part(const float* p, int64_t count) {
  if (count >= 16) return load(p);
  F16 x{};
  std::memcpy(&x, p, count * sizeof(float));
  return x;
}

QK_INLINE void store_part(float* p, const F16& x, int64_t count) {
  if (count >= 16) return store(p, x);
  std::memcpy(p, &x, count * sizeof(float));
}

// Joins all 16 lanes into one number, pairwise: the upper half with the lower half, and so on.
template <class Join>
QK_INLINE float reduce(const F16& x, const Join& join) {
  typedef float Four __attribute__((vector_size(16)));
  Four by4[4];
  std::memcpy(by4, &x, sizeof by4);
  const Four all = join(join(by4[0], by4[2]), join(by4[1], by4[3]));
  return join(join(all[0], all[2]), join(all[1], all[3]));
}

QK_INLINE float sum(const F16& x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}

QK_INLINE float largest(const F16& x) {
  return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

// To the nearest whole number, ties to even, for magnitudes below 2^22.
QK_INLINE F16 round_even(const F16& x) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

// The nearest whole numbers, ties to even, for magnitudes below 2^22.
QK_INLINE I16 nearest(const F16& x) {
#if defined(__AVX512F__)
  return {{(Ints)_mm512_cvtps_epi32((__m512)x.part[0])}};
#elif defined(__AVX2__)
  return by_part<Ints>([&](int i) { return (Ints)_mm256_cvtps_epi32((__m256)x.part[i]); });
#else
  return to_ints(round_even(x));
#endif
}

// e^x to 4e-7 of itself for x up to 88; e^-87 for x below -87. x = n ln 2 + r: e^r is approximated by the nearest
// polynomial of degree 5, and n is added to the exponent.
QK_INLINE F16 exp_below(F16 x) {
  x = max(x, splat(-87.f));
  const F16 magic = splat(12582912.f);
  const F16 shifted = fused(x, splat(1.44269504f), magic), whole = shifted - magic;
  const F16 r = fused(whole, splat(-0.693147181f), x);
  F16 p = splat(0.00831250101f);
  p = fused(p, r, splat(0.0418903306f));
  p = fused(p, r, splat(0.166671157f));
  p = fused(p, r, splat(0.499992311f));
  p = fused(p, r, splat(1.f));
  p = fused(p, r, splat(1.f));
  return as_floats(as_ints(p) + (as_ints(shifted) << 23));  // the shift leaves nothing but n
}

QK_INLINE F16 exp(const F16& x) { return exp_below(min(x, splat(88.f))); }

// 1 / x to about an ulp, for x that is neither tiny nor huge.
QK_INLINE F16 reciprocal(const F16& x) {
#if defined(__AVX512F__)
  const F16 y{{(Floats)_mm512_rcp14_ps((__m512)x.part[0])}};
  return y * fused(-x, y, splat(2.f));
#else
  return 1.f / x;
#endif
}

}  // namespace QK_ISA
}  // namespace qk
