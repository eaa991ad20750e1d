// Rows by a weight of any precision: rows rounded once, the weight packed a few columns at a time into the cache.
//
// The weight stays as the file has it: packing costs a few percent at a picture's 77 decoder rows and nothing at its
// 1025 vision rows, and saves a second copy of every weight. 8- and 4-bit weights are taken as unsigned steps from a
// zero point z (128 for 8 bits):  sum_k a_k (w_k - z) = sum_k a_k w_k - z sum_k a_k.
#pragma once

#include <atomic>

#include "block.h"
#include "pack.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

constexpr int64_t kCacheBytes = 256 << 10;   // of packed columns a task
constexpr int64_t kStreamedBytes = 4 << 20;  // results from this size on go past the cache
enum Slot { kRowSlot, kScaleSlot, kSumSlot, kColumnSlot, kTileSlot, kPanelSlot };

inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The rows of A as `block` reads them.
struct Rows {
  const char* data;
  int64_t stride;       // bytes from one to the next
  int64_t units;        // in a row
  int64_t groups;       // G of int4, else 1
  int64_t part;         // units a group
  const float* scale;   // [M, G]
  const int32_t* sums;  // [M, G]
};

// Whole lines, an odd number of them: rows a power of two apart would share a few sets of the cache.
inline int64_t stride_of(int64_t bytes) { return (up(bytes, kLine) / kLine | 1) * kLine; }

inline Rows whole_rows(const Linear& a) {
  const int64_t groups = a.kind == kInt4 ? (a.inputs + a.group - 1) / a.group : 1;
  const int64_t part = a.kind == kInt4 ? a.group : a.inputs, padded = a.kind == kInt4 ? a.group : up(part, kLine);
  const int64_t bytes = up(groups * padded, kLine), stride = stride_of(bytes);
  auto* to = static_cast<int8_t*>(scratch(kRowSlot, a.rows * stride));
  auto* scale = static_cast<float*>(scratch(kScaleSlot, a.rows * groups * 4));
  auto* sums = static_cast<int32_t*>(scratch(kSumSlot, a.rows * groups * 4));
  each_row(a.rows, [&](int64_t row) {
    for (int64_t g = 0; g < groups; g++) {
      const int64_t at = row * groups + g;
      quantize(a.x + row * a.inputs + g * part, least(part, a.inputs - g * part), padded,
               to + row * stride + g * padded, scale + at, sums + at);
    }
    std::memset(to + row * stride + groups * padded, 0, bytes - groups * padded);
  });
  return {reinterpret_cast<char*>(to), stride, bytes / kUnit, groups, padded / kUnit, scale, sums};
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
  const int64_t bytes = up(a.inputs * (short_rows ? 2 : 4), kLine), stride = stride_of(bytes);
  auto* to = static_cast<char*>(scratch(kRowSlot, a.rows * stride));
  each_row(a.rows, [&](int64_t row) {
    float_row(a.x + row * a.inputs, a.inputs, bytes, a.kind, short_rows, to + row * stride);
  });
  return {to, stride, bytes / kUnit, 1, bytes / kUnit, nullptr, nullptr};
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
      return pack_panel([&](int64_t r, int64_t l) { return line_of(row_at(r, k * 4), l * kLine, k * 4); }, rows, lines,
                        to);
    case kFloat16:
      return pack_panel([&](int64_t r, int64_t l) { return widen_float16(row_at(r, k * 2), l * 16, k); }, rows, lines,
                        to);
    case kBFloat16:
      if (kShortFloats)
        return pack_panel([&](int64_t r, int64_t l) { return line_of(row_at(r, k * 2), l * kLine, k * 2); }, rows,
                          lines, to);
      return pack_panel([&](int64_t r, int64_t l) { return widen_bfloat16(row_at(r, k * 2), l * 16, k); }, rows, lines,
                        to);
    case kInt8:  // two's complement, 128 up
      return pack_panel([&](int64_t r, int64_t l) { return line_of(row_at(r, k), l * kLine, k) ^ (int32_t)0x80808080; },
                        rows, lines, to);
    case kInt4: {
      const int64_t bytes = up(k, a.group) / 2;
      return pack_panel([&](int64_t r, int64_t l) { return widen_nibbles(row_at(r, bytes), l * 32, bytes); }, rows,
                        lines, to);
    }
  }
}

// Constants of 32 columns, of one group.
struct Columns {
  F16 scale[2], bias[2];
  I16 zero[2];
  int64_t count[2];
};

inline I16 zero_points(const Linear& a, int64_t column, int64_t count, int64_t group, int64_t groups) {
  I16 z{};
  for (int64_t i = 0; i < count; i++) {
    const uint8_t pair = a.zero[(column + i) * ((groups + 1) / 2) + group / 2];
    z[i] = group % 2 ? pair >> 4 : pair & 15;
  }
  return z;
}

inline Columns columns_of(const Linear& a, int64_t column, int64_t group, int64_t groups) {
  Columns c{};
  for (int p = 0; p < 2; p++) {
    const int64_t first = column + 16 * p, count = c.count[p] = least(16, a.outputs - first);
    if (count <= 0) continue;
    if (a.bias) c.bias[p] = load_part(a.bias + first, count);
    if (a.kind == kInt4) c.zero[p] = zero_points(a, first, count, group, groups);
    for (int64_t i = 0; a.scale && i < count; i++) c.scale[p][i] = a.scale[(first + i) * groups + group];
  }
  return c;
}

// Sums of a group -> its part of the product: (sum - z Σa) · row scale · column scale of whole numbers.
template <class Dot>
inline F16 value(const Linear& a, const Rows& rows, int64_t at, const int32_t* sums, const Columns& c, int p) {
  const I16 x = load_bytes(sums);
  if constexpr (!std::is_same_v<Dot, Int8>) return (F16)x;
  const I16 shift = a.kind == kInt8 ? I16{} + rows.sums[at] * 128 : c.zero[p] * rows.sums[at];
  return to_float(x - shift) * rows.scale[at] * c.scale[p];
}

// What the product becomes: bias, activation, residual; 16 columns of one row, or the `count` that are there.
inline void finish(const Linear& a, int64_t row, int64_t column, F16 y, const Columns& c, int p) {
  y += c.bias[p];
  if (a.quick_gelu) y = quick_gelu(y);
  const int64_t at = row * a.outputs + column;
  if (a.residual) y += load_part(a.residual + at, c.count[p]);
#if defined(__AVX512F__)
  // what the cache would not keep anyway need not be read into it first
  const bool whole_line = c.count[p] == 16 && reinterpret_cast<uintptr_t>(a.out + at) % kLine == 0;
  if (whole_line && a.rows * a.outputs * 4 > kStreamedBytes) return _mm512_stream_ps(a.out + at, (__m512)y);
#endif
  store_part(a.out + at, y, c.count[p]);
}

// Rows first .. first + count - 1 by 32 columns.
template <class Dot>
void tile(const Linear& a, const Rows& rows, int64_t first, int64_t count, int64_t column, const char* panels,
          int64_t panel, const Columns* columns, Ahead& ahead) {
  alignas(64) int32_t sums[kBlockRows * kColumns];
  alignas(64) float totals[kBlockRows * kColumns];
  const char* from = rows.data + first * rows.stride;
  for (int64_t g = 0; g < rows.groups; g++) {
    const Columns& c = columns[g];
    const int64_t skip = g * rows.part;
    block<Dot>(count, from + skip * kUnit, rows.stride, panels + skip * kLine, panel, rows.part, sums, kColumns, ahead);
    for (int64_t i = 0; i < count; i++)
      for (int p = 0; p < 2 && c.count[p] > 0; p++) {
        const int64_t at = i * kColumns + p * 16;
        F16 y = value<Dot>(a, rows, (first + i) * rows.groups + g, sums + at, c, p);
        if (g) y += load(totals + at);
        if (g + 1 < rows.groups)
          store(totals + at, y);
        else
          finish(a, first + i, column + p * 16, y, c, p);
      }
  }
}

inline int64_t column_bytes(const Linear& a) {
  switch (a.kind) {
    case kFloat32:
      return a.inputs * 4;
    case kFloat16:
    case kBFloat16:
      return a.inputs * 2;
    case kInt8:
      return a.inputs;
    case kInt4:
      return up(a.inputs, a.group) / 2;
  }
  return 0;
}

// How a product is shared out: `across` times `down` tasks of `columns` by `height`.
struct Shares {
  int64_t columns, height, across, down;

  Shares(const Linear& a, int64_t panel) {
    const int64_t fair = up((a.outputs + 4 * threads() - 1) / (4 * threads()), kColumns);
    columns = least(kCacheBytes / panel / 2 * kColumns, fair);
    if (columns < kColumns) columns = kColumns;
    across = (a.outputs + columns - 1) / columns;
    const int64_t cuts = across >= 2 * threads() ? 1 : (2 * threads() + across - 1) / across;
    height = up((a.rows + cuts - 1) / cuts, kBlockRows);
    down = (a.rows + height - 1) / height;
  }
};

// One task: its columns packed, then all its rows; meanwhile the columns of the thread's next task come into the cache.
template <class Dot>
void multiply_share(const Linear& a, const Rows& rows, const Shares& s, int64_t task, int64_t next) {
  const int64_t panel = rows.units * kLine, first = task / s.down * s.columns;
  const int64_t end = least(first + s.columns, a.outputs), pairs = (end - first + kColumns - 1) / kColumns;
  const int64_t top = task % s.down * s.height, bottom = least(top + s.height, a.rows);
  auto* packed = static_cast<char*>(scratch(kColumnSlot, pairs * 2 * panel));
  auto* constants = static_cast<Columns*>(scratch(kTileSlot, pairs * rows.groups * sizeof(Columns)));
  for (int64_t j = 0; j < pairs; j++) {
    const int64_t column = first + j * kColumns;
    for (int p = 0; p < 2; p++)
      pack_columns(a, least(column + p * 16, a.outputs), rows.units / 16, packed + (2 * j + p) * panel);
    for (int64_t g = 0; g < rows.groups; g++) constants[j * rows.groups + g] = columns_of(a, column, g, rows.groups);
  }
  Ahead ahead;
  // where few rows are computed, there is no time to fetch in
  if (const int64_t after = next / s.down * s.columns; after != first && after < a.outputs && a.rows > 2 * kRows) {
    const int64_t passes = (bottom - top + kRows - 1) / kRows * pairs * 2 / kPanels * rows.units;
    ahead.next = static_cast<const char*>(a.weight) + after * column_bytes(a);
    ahead.step = least(s.columns, a.outputs - after) * column_bytes(a) / passes + 1;
  }
  for (int64_t row = top; row < bottom; row += kBlockRows)
    for (int64_t j = 0; j < pairs; j++)
      tile<Dot>(a, rows, row, least(kBlockRows, bottom - row), first + j * kColumns, packed + 2 * j * panel, panel,
                constants + j * rows.groups, ahead);
}

template <class Dot>
void multiply(const Linear& a, const Rows& rows) {
  const Shares s(a, rows.units * kLine);
  std::atomic<int64_t> free{0};
  parallel(threads(), [&](int64_t) {
    const Blocks scope;
    for (int64_t task = free++, next; task < s.across * s.down; task = next) {
      next = free++;
      multiply_share<Dot>(a, rows, s, task, next);
    }
  });
}

#if defined(__AMX_INT8__)
// Few rows by weights that need no unpacking: the weights are the left operand, as the file has them, and the rows are
// packed instead. What comes out lies across: 16 outputs by Tiles * 16 rows.
template <class Dot, int Tiles>
void sweep_across(const Linear& a, const Rows& rows, int64_t output, int64_t first, const char* panels, int64_t panel,
                  const Columns& c, int p) {
  alignas(64) int32_t sums[16 * Tiles * 16];
  alignas(64) I16 lines[16];
  alignas(64) char turned[16 * kLine];
  const int64_t bytes = column_bytes(a);
  sweep<Dot, Tiles>(static_cast<const char*>(a.weight) + output * bytes, bytes, panels, panel, rows.units, sums);
  for (int64_t t = 0; t < Tiles; t++) {
    for (int64_t i = 0; i < 16; i++) lines[i] = load_bytes(sums + (i * Tiles + t) * 16);
    transpose(lines, turned);
    const int64_t top = first + t * 16;
    for (int64_t row = top; row < least(top + 16, a.rows); row++) {
      const I16 x = load_bytes(turned + (row - top) * kLine);
      finish(a, row, output, std::is_same_v<Dot, Int8> ? to_float(x) * rows.scale[row] * c.scale[p] : (F16)x, c, p);
    }
  }
}

template <class Dot, int Tiles = 5>
void sweep_up_to(int64_t tiles, const Linear& a, const Rows& rows, int64_t output, int64_t first, const char* panels,
                 int64_t panel, const Columns& c, int p) {
  if (tiles >= Tiles) return sweep_across<Dot, Tiles>(a, rows, output, first, panels, panel, c, p);
  if constexpr (Tiles > 1) sweep_up_to<Dot, Tiles - 1>(tiles, a, rows, output, first, panels, panel, c, p);
}

template <class Dot>
void multiply_across(const Linear& a, const Rows& rows) {
  const int64_t panel = rows.units * kLine, count = up(a.rows, 16) / 16;
  const int64_t sweeps = (count + 4) / 5, tiles = (count + sweeps - 1) / sweeps;
  auto* panels = static_cast<char*>(scratch(kPanelSlot, count * panel));
  parallel(count, [&](int64_t p) {
    const auto line = [&](int64_t r, int64_t l) {
      return load_bytes(rows.data + (p * 16 + r) * rows.stride + l * kLine);
    };
    pack_panel(line, least(16, a.rows - p * 16), rows.units / 16, panels + p * panel);
  });
  parallel(a.outputs / kColumns, [&](int64_t task) {
    const Blocks scope;
    const Columns c = columns_of(a, task * kColumns, 0, 1);
    for (int p = 0; p < 2; p++)
      for (int64_t t = 0; t < count; t += tiles)
        sweep_up_to<Dot>(least(tiles, count - t), a, rows, task * kColumns + p * 16, t * 16, panels + t * panel, panel,
                         c, p);
  });
}

constexpr int64_t kFewRows = 256;

inline bool goes_across(const Linear& a) {
  return a.rows <= kFewRows && a.outputs % kColumns == 0 && column_bytes(a) % kLine == 0;
}
#endif

inline void linear(const Linear& a) {
#if defined(__AMX_INT8__)
  if (a.kind == kInt8 && goes_across(a)) return multiply_across<Int8>(a, whole_rows(a));
  if (a.kind == kBFloat16 && goes_across(a)) return multiply_across<BFloat16>(a, float_rows(a));
#endif
  if (a.kind == kInt8 || a.kind == kInt4) return multiply<Int8>(a, whole_rows(a));
  if (a.kind == kBFloat16 && kShortFloats) return multiply<BFloat16>(a, float_rows(a));
  multiply<Float32>(a, float_rows(a));
}

}  // namespace QK_ISA
}  // namespace qk
