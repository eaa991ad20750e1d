// Rows by a weight of any precision: rows rounded once, the weight packed a few columns at a time into the cache.
//
// The weight stays as the file has it: packing costs a few percent at a picture's 77 decoder rows and nothing at its
// 1025 vision rows, and saves a second copy of every weight. 8- and 4-bit weights are taken as unsigned steps from a
// zero point z (128 for 8 bits):  sum_k a_k (w_k - z) = sum_k a_k w_k - z sum_k a_k.
#pragma once

#include "block.h"
#include "pack.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

constexpr int64_t kCacheBytes = 256 << 10;  // of packed columns a task
enum Slot { kRowSlot, kScaleSlot, kSumSlot, kColumnSlot, kTileSlot };

inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The rows of A as `block` reads them.
struct Rows {
  const char* data;
  int64_t stride;       // bytes, a multiple of 64
  int64_t groups;       // G of int4, else 1
  int64_t part;         // units a group
  const float* scale;   // [M, G]
  const int32_t* sums;  // [M, G]
};

inline Rows whole_rows(const Linear& a) {
  const int64_t groups = a.kind == kInt4 ? (a.inputs + a.group - 1) / a.group : 1;
  const int64_t part = a.kind == kInt4 ? a.group : a.inputs, padded = a.kind == kInt4 ? a.group : up(part, kLine);
  const int64_t stride = up(groups * padded, kLine);
  auto* to = static_cast<int8_t*>(scratch(kRowSlot, a.rows * stride));
  auto* scale = static_cast<float*>(scratch(kScaleSlot, a.rows * groups * 4));
  auto* sums = static_cast<int32_t*>(scratch(kSumSlot, a.rows * groups * 4));
  each_row(a.rows, [&](int64_t row) {
    for (int64_t g = 0; g < groups; g++) {
      const int64_t at = row * groups + g;
      quantize(a.x + row * a.inputs + g * part, least(part, a.inputs - g * part), padded, to + row * stride + g * padded,
               scale + at, sums + at);
    }
    std::memset(to + row * stride + groups * padded, 0, stride - groups * padded);
  });
  return {reinterpret_cast<char*>(to), stride, groups, padded / kUnit, scale, sums};
}

// One row in 16- or 32-bit floats, zeros up to whole lines.
inline void float_row(const float* x, int64_t width, int64_t bytes, Kind kind, bool short_rows, char* to) {
  for (int64_t i = 0, at = 0; at < bytes; i += 16) {
    F16 v = i < width ? load_part(x + i, width - i) : F16{};
    if (short_rows) {
      const I16 bits = to_bfloat16(v);
      for (int j = 0; j < 16; j++) reinterpret_cast<uint16_t*>(to + at)[j] = static_cast<uint32_t>(bits[j]) >> 16;
      at += 32;
      continue;
    }
    if (kind == kBFloat16) v = (F16)to_bfloat16(v);
    if (kind == kFloat16) v = through_float16(v);
    store(reinterpret_cast<float*>(to + at), v);
    at += 64;
  }
}

#if defined(__AVX512BF16__)
constexpr bool kShortFloats = true;  // products of bfloat16 as they are
#else
constexpr bool kShortFloats = false;
#endif

inline Rows float_rows(const Linear& a) {
  const bool short_rows = a.kind == kBFloat16 && kShortFloats;
  const int64_t stride = up(a.inputs * (short_rows ? 2 : 4), kLine);
  if (a.kind == kFloat32 && stride == a.inputs * 4) return {reinterpret_cast<const char*>(a.x), stride, 1, stride / kUnit, nullptr, nullptr};
  auto* to = static_cast<char*>(scratch(kRowSlot, a.rows * stride));
  each_row(a.rows, [&](int64_t row) {
    float_row(a.x + row * a.inputs, a.inputs, stride, a.kind, short_rows, to + row * stride);
  });
  return {to, stride, 1, stride / kUnit, nullptr, nullptr};
}

// `bytes` of a row from `at` on, zeros past its end, as a line.
inline I16 line_of(const char* row, int64_t at, int64_t bytes) {
  if (at + kLine <= bytes) return load_bytes(row + at);
  I16 line{};
  if (at < bytes) std::memcpy(&line, row + at, bytes - at);
  return line;
}

inline I16 widen_float16(const char* row, int64_t at, int64_t count) {
  I16 line{};
  uint16_t halves[16] = {};
  if (at < count) std::memcpy(halves, row + at * 2, least(16, count - at) * 2);
#if defined(__AVX512F__)
  line = (I16)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
#else
  for (int i = 0; i < 16; i++) {
    _Float16 half;
    std::memcpy(&half, halves + i, 2);
    const float x = static_cast<float>(half);
    std::memcpy(reinterpret_cast<char*>(&line) + i * 4, &x, 4);
  }
#endif
  return line;
}

inline I16 widen_bfloat16(const char* row, int64_t at, int64_t count) {
  uint16_t halves[16] = {};
  if (at < count) std::memcpy(halves, row + at * 2, least(16, count - at) * 2);
  I16 line;
  for (int i = 0; i < 16; i++) line[i] = static_cast<int32_t>(static_cast<uint32_t>(halves[i]) << 16);
  return line;
}

// 32 bytes of two 4-bit weights each, the even one in the low half -> 64 bytes in order.
inline I16 widen_nibbles(const char* row, int64_t at, int64_t bytes) {
  char pairs[32] = {};
  std::memcpy(pairs, row + at, least(32, bytes - at));
#if defined(__AVX512BW__)
  const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)));
  return (I16)_mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
#else
  uint8_t steps[64];
  for (int i = 0; i < 32; i++) {
    steps[2 * i] = static_cast<uint8_t>(pairs[i]) & 15;
    steps[2 * i + 1] = static_cast<uint8_t>(pairs[i]) >> 4;
  }
  return load_bytes(steps);
#endif
}

// Columns first .. first + 15 of the weight, as a panel of `lines` * 16 units.
inline void pack_columns(const Linear& a, int64_t first, int64_t lines, char* to) {
  const char* weight = static_cast<const char*>(a.weight);
  const int64_t rows = least(16, a.outputs - first), k = a.inputs;
  const auto row_at = [&](int64_t row, int64_t bytes) { return weight + (first + row) * bytes; };
  switch (a.kind) {
    case kFloat32:
      return pack_panel([&](int64_t r, int64_t l) { return line_of(row_at(r, k * 4), l * kLine, k * 4); }, rows, lines, to);
    case kFloat16:
      return pack_panel([&](int64_t r, int64_t l) { return widen_float16(row_at(r, k * 2), l * 16, k); }, rows, lines, to);
    case kBFloat16:
      if (kShortFloats)
        return pack_panel([&](int64_t r, int64_t l) { return line_of(row_at(r, k * 2), l * kLine, k * 2); }, rows, lines, to);
      return pack_panel([&](int64_t r, int64_t l) { return widen_bfloat16(row_at(r, k * 2), l * 16, k); }, rows, lines, to);
    case kInt8:  // two's complement, 128 up
      return pack_panel([&](int64_t r, int64_t l) { return line_of(row_at(r, k), l * kLine, k) ^ (int32_t)0x80808080; }, rows, lines, to);
    case kInt4: {
      const int64_t bytes = up(k, a.group) / 2;
      return pack_panel([&](int64_t r, int64_t l) { return widen_nibbles(row_at(r, bytes), l * 32, bytes); }, rows, lines, to);
    }
  }
}

inline F16 zero_points(const Linear& a, int64_t column, int64_t count, int64_t group, int64_t groups) {
  F16 z = splat(128);
  if (a.kind != kInt4) return z;
  const int64_t bytes = (groups + 1) / 2;
  for (int64_t i = 0; i < count; i++) {
    const uint8_t pair = a.zero[(column + i) * bytes + group / 2];
    z[i] = group % 2 ? pair >> 4 : pair & 15;
  }
  return z;
}

// What the product becomes: bias, activation, residual; 16 columns of one row.
inline void finish(const Linear& a, int64_t row, int64_t column, int64_t count, F16 y) {
  if (a.bias) y += load_part(a.bias + column, count);
  if (a.quick_gelu) y = quick_gelu(y);
  const int64_t at = row * a.outputs + column;
  if (a.residual) y += load_part(a.residual + at, count);
  store_part(a.out + at, y, count);
}

// Constants of 32 columns of one group.
struct Columns {
  F16 scale[2], zero[2];
  int64_t count[2];
};

inline Columns columns_of(const Linear& a, int64_t column, int64_t group, int64_t groups) {
  Columns c{};
  for (int p = 0; p < 2; p++) {
    const int64_t first = column + 16 * p, count = c.count[p] = least(16, a.outputs - first);
    if (count <= 0 || !a.scale) continue;
    c.zero[p] = zero_points(a, first, count, group, groups);
    for (int64_t i = 0; i < count; i++) c.scale[p][i] = a.scale[(first + i) * groups + group];
  }
  return c;
}

// Whole sums -> their values: (sum - z Σa) · row scale · column scale.
inline F16 value(I16 sums, const Rows& rows, int64_t at, F16 zero, F16 scale) {
  // whole numbers below 2^24 times 2^8 are exact only as integers
  const I16 whole = sums - __builtin_convertvector(zero, I16) * rows.sums[at];
  return to_float(whole) * rows.scale[at] * scale;
}

// Rows first .. first + count - 1 by 32 columns.
template <class Dot>
void tile(const Linear& a, const Rows& rows, int64_t first, int64_t count, int64_t column, const char* panels,
          int64_t panel, const Columns* columns) {
  alignas(64) int32_t sums[kBlockRows * kColumns];
  alignas(64) float totals[kBlockRows * kColumns];
  const char* from = rows.data + first * rows.stride;
  const int64_t part = rows.part;
  for (int64_t g = 0; g < rows.groups; g++) {
    block<Dot>(count, from + g * part * kUnit, rows.stride, panels + g * part * kLine, panel, part, sums, kColumns);
    for (int64_t i = 0; i < count; i++)
      for (int p = 0; p < 2; p++) {
        const int64_t at = i * kColumns + p * 16;
        const int64_t scale_at = (first + i) * rows.groups + g;
        F16 y;
        if constexpr (std::is_same_v<Dot, Int8>)
          y = value(load_bytes(sums + at), rows, scale_at, columns[g].zero[p], columns[g].scale[p]);
        else
          y = (F16)load_bytes(sums + at);
        if (g) y += load(totals + at);
        if (g + 1 < rows.groups)
          store(totals + at, y);
        else if (columns[g].count[p] > 0)
          finish(a, first + i, column + p * 16, columns[g].count[p], y);
      }
  }
}

template <class Dot>
void multiply(const Linear& a, const Rows& rows) {
  const int64_t units = rows.stride / kUnit, panel = units * kLine, lines = units / 16;
  int64_t columns = kCacheBytes / panel / 2 * kColumns;  // a task's, packed together
  columns = columns < kColumns ? kColumns : least(columns, up((a.outputs + 4 * threads() - 1) / (4 * threads()), kColumns));
  const int64_t across = (a.outputs + columns - 1) / columns;
  int64_t down = across >= 2 * threads() ? 1 : least((2 * threads() + across - 1) / across, (a.rows + 63) / 64);
  const int64_t height = up((a.rows + down - 1) / down, kBlockRows);
  down = (a.rows + height - 1) / height;
  parallel(across * down, [&](int64_t task) {
    const Blocks scope;
    const int64_t first = task / down * columns, end = least(first + columns, a.outputs);
    const int64_t top = task % down * height, bottom = least(top + height, a.rows);
    const int64_t pairs = (end - first + kColumns - 1) / kColumns;
    auto* packed = static_cast<char*>(scratch(kColumnSlot, pairs * 2 * panel));
    auto* constants = static_cast<Columns*>(scratch(kTileSlot, pairs * rows.groups * sizeof(Columns)));
    for (int64_t j = 0; j < pairs; j++) {
      const int64_t column = first + j * kColumns;
      for (int p = 0; p < 2; p++) pack_columns(a, least(column + p * 16, a.outputs), lines, packed + (2 * j + p) * panel);
      for (int64_t g = 0; g < rows.groups; g++) constants[j * rows.groups + g] = columns_of(a, column, g, rows.groups);
    }
    for (int64_t row = top; row < bottom; row += kBlockRows)
      for (int64_t j = 0; j < pairs; j++)
        tile<Dot>(a, rows, row, least(kBlockRows, bottom - row), first + j * kColumns, packed + 2 * j * panel, panel,
                  constants + j * rows.groups);
  });
}

inline void linear(const Linear& a) {
  if (a.kind == kInt8 || a.kind == kInt4) return multiply<Int8>(a, whole_rows(a));
  if (a.kind == kBFloat16 && kShortFloats) return multiply<BFloat16>(a, float_rows(a));
  multiply<Float32>(a, float_rows(a));
}

}  // namespace QK_ISA
}  // namespace qk
