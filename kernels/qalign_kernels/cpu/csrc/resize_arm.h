// The resize by ARM's dot products, which take four taps of 8 bits. Without them compilers make NEON of the plain code.
#pragma once

#include "resize_plain.h"

#if defined(__ARM_FEATURE_DOTPROD)
#define DOTPROD
#elif !defined(__clang__) || __clang_major__ >= 16  // older compilers hide the intrinsics
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

#ifdef DOTPROD
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif

namespace {

DOTPROD void fill_dotprod(const Resize& r, const Strip& strip, int from, int to, uint8_t* blocks) {
  const Range middle = fours(r, from, to);
  const Orders orders(r.channels, 4);
  const uint32x4_t odd = {0, ~0u, 0, ~0u}, upper = {0, 0, ~0u, ~0u}, outer = {~0u, 0, 0, ~0u};
  fill_plain<4, 128>(r, strip, from, middle.from, blocks);
  for (int column = middle.from; column < middle.to; column += 4)
    for (int row = 0; row < 16; row += 4) {
      uint32x4_t turned[4];
      for (int i = 0; i < 4; ++i) {
        const uint8x16_t four = vld1q_u8(strip.rows[row + i] + column * r.channels);
        const uint8x16_t order = vreinterpretq_u8_s8(vld1q_s8(orders.bytes[i]));
        turned[i] = vreinterpretq_u32_u8(vqtbl1q_u8(veorq_u8(four, vdupq_n_u8(128)), order));
      }
      const uint32x4_t a = vbslq_u32(odd, turned[1], turned[0]), b = vbslq_u32(odd, turned[0], turned[1]);
      const uint32x4_t c = vbslq_u32(odd, turned[3], turned[2]), d = vbslq_u32(odd, turned[2], turned[3]);
      auto* to = reinterpret_cast<uint32_t*>(blocks + (column - from) * kColumn) + row;
      vst1q_u32(to, vbslq_u32(upper, c, a));
      vst1q_u32(to + 16, vbslq_u32(outer, d, b));
      vst1q_u32(to + 32, vbslq_u32(upper, a, c));
    }
  fill_plain<4, 128>(r, strip, middle.to, to, blocks + (middle.to - from) * kColumn);
}

// The sums of half a block, 8 lanes. The weights are int8 [4][4]: three digits of base 256, each in -128..127, and an
// empty one. Both sides are signed, so that pixels are kept minus 128; `base` makes up for that.
DOTPROD inline void sum_dotprod(const uint8_t* blocks, int64_t stride, int groups, const uint8_t* limbs, int base,
                                int32x4_t (&sums)[3][2]) {
  int32x4_t digits[3][3][2] = {};
  for (int g = 0; g < groups; ++g, blocks += stride, limbs += 16) {
    const int8x16_t weights = vld1q_s8(reinterpret_cast<const int8_t*>(limbs));
    for (int v = 0; v < 3; ++v)
      for (int h = 0; h < 2; ++h) {
        const int8x16_t pixels = vld1q_s8(reinterpret_cast<const int8_t*>(blocks + 64 * v + 16 * h));
        digits[0][v][h] = vdotq_laneq_s32(digits[0][v][h], pixels, weights, 0);
        digits[1][v][h] = vdotq_laneq_s32(digits[1][v][h], pixels, weights, 1);
        digits[2][v][h] = vdotq_laneq_s32(digits[2][v][h], pixels, weights, 2);
      }
  }
  for (int v = 0; v < 3; ++v)
    for (int h = 0; h < 2; ++h)
      sums[v][h] = (digits[0][v][h] + (digits[1][v][h] << 8) + (digits[2][v][h] << 16) + base) >> kBits;
}

// 8 sums, clipped to 8 bits.
DOTPROD inline uint8x8_t cut(int32x4_t low, int32x4_t high) {
  return vqmovn_u16(vcombine_u16(vqmovun_s32(low), vqmovun_s32(high)));
}

// Writes the results of 8 rows, which are 2 words of each colour, into 2 rows.
DOTPROD inline void put_words(const int32x4_t (&sums)[3][2], uint32x2_t pad, uint8_t* rows, int64_t row_bytes) {
  uint32x2_t words[3] = {
      vreinterpret_u32_u8(cut(sums[0][0], sums[0][1])),
      vreinterpret_u32_u8(cut(vextq_s32(sums[1][0], sums[1][0], 1), vextq_s32(sums[1][1], sums[1][1], 1))),
      vreinterpret_u32_u8(cut(vextq_s32(sums[2][0], sums[2][0], 2), vextq_s32(sums[2][1], sums[2][1], 2)))};
  for (auto& each : words) each ^= 0x80808080;
  const uint32x2x2_t red_green = vzip_u32(words[0], words[1]), blue_pad = vzip_u32(words[2], pad);
  for (int i = 0; i < 2; ++i)
    vst1q_u8(rows + i * row_bytes, vreinterpretq_u8_u32(vcombine_u32(red_green.val[i], blue_pad.val[i])));
}

DOTPROD void across_dotprod(const Axis& axis, const Across& a) {
  const uint32x2_t pad = vdup_n_u32(0x01010101 * a.pad);
  for (int x = a.from; x < a.to; ++x)
    for (int h = 0; h < 2; ++h) {
      int32x4_t sums[3][2];
      sum_dotprod(a.blocks + axis.first[x] * 192 + 32 * h, 192, axis.groups, axis.limbs + x * axis.groups * 16,
                  axis.base[x], sums);
      put_words(sums, pad, a.rows + 12 * x + 2 * h * a.row_bytes, a.row_bytes);
    }
}

DOTPROD void down_dotprod(const Axis& axis, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out) {
  for (int i = 0; i < blocks; ++i)
    for (int h = 0; h < 2; ++h) {
      int32x4_t sums[3][2];
      sum_dotprod(rows + 192 * i + 32 * h, row_bytes, axis.groups, axis.limbs + y * axis.groups * 16, axis.base[y],
                  sums);
      for (int v = 0; v < 3; ++v) vst1_u8(out + 48 * i + 16 * v + 8 * h, cut(sums[v][0], sums[v][1]));
    }
}

bool has_dotprod() {
#ifdef __linux__
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // all of Apple's CPUs have them
#endif
}

constexpr Isa kDotprod = {4, 128, fill_dotprod, across_dotprod, down_dotprod};

}  // namespace

#endif
