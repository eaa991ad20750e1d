// AVX512's product of bfloat16 for a CPU that has AVX512 without it: included before the kernels' sources, which find
// the instruction set there and its intrinsic as plain C++.
#pragma once

#include <immintrin.h>

#define __AVX512BF16__ 1
#define _mm512_dpbf16_ps stand_in::products

namespace stand_in {

inline __m512 products(__m512 sum, __m512bh a, __m512bh b) {
  const auto odd = [](__m512bh x) { return (__m512)_mm512_and_si512((__m512i)x, _mm512_set1_epi32(0xffff0000)); };
  const auto even = [](__m512bh x) { return (__m512)_mm512_slli_epi32((__m512i)x, 16); };
  return _mm512_fmadd_ps(even(a), even(b), _mm512_fmadd_ps(odd(a), odd(b), sum));
}

}  // namespace stand_in
