// Rows by a weight of any precision: rows rounded once, the weight packed a few columns at a time into the cache.
//
// The weight stays as the file has it: packing costs a few percent at a picture's 77 decoder rows and nothing at its
// 1025 vision rows, and saves a second copy of every weight. 4-bit weights are packed less their zero points.
#pragma once

#include <atomic>

#include "block.h"
#include "pack.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

constexpr int64_t kCacheBytes = 256 << 10;  // of packed columns a task
constexpr int kInt8Bias = kUnsignedWeights ? 128 : 0, kInt4Bias = kUnsignedWeights ? 16 : 0;
enum Slot { kRowSlot, kScaleSlot, kSumSlot, kColumnSlot, kTileSlot, kPanelSlot, kTotalSlot };

// The rows of A as `block` reads them.
struct Rows {
  const char* data;
  int64_t stride;        // bytes from one to the next
  int64_t units;         // in a row
  int64_t groups;        // G of int4, else 1
  int64_t part;          // units a group
  const float* scale;    // [M, G]
  const int32_t* start;  // [M, G] what sums of products start from, for the weights' bias
};

// Whole lines, an odd number of them: rows a power of two apart would share a few sets of the cache.
inline int64_t stride_of(int64_t bytes) { return (up(bytes, kLine) / kLine | 1) * kLine; }

inline Rows whole_rows(const Linear& a) {
  using Item = Whole::Item;
  constexpr int64_t kItems = kLine / sizeof(Item);
  const int64_t groups = a.kind == kInt4 ? (a.inputs + a.group - 1) / a.group : 1;
  const int64_t part = a.kind == kInt4 ? a.group : a.inputs, padded = a.kind == kInt4 ? a.group : up(part, kItems);
  const int64_t items = up(groups * padded, kItems), stride = stride_of(items * sizeof(Item));
  const int32_t bias = a.kind == kInt4 ? kInt4Bias : kInt8Bias;
  auto* to = static_cast<char*>(scratch(kRowSlot, a.rows * stride));
  auto* scale = static_cast<float*>(scratch(kScaleSlot, a.rows * groups * 4));
  auto* start = static_cast<int32_t*>(scratch(kSumSlot, a.rows * groups * 4));
  each_row(a.rows, [&](int64_t row) {
    auto* item = reinterpret_cast<Item*>(to + row * stride);
    for (int64_t g = 0; g < groups; g++) {
      const int64_t at = row * groups + g;
      quantize(a.x + row * a.inputs + g * part, least(part, a.inputs - g * part), padded, item + g * padded, scale + at,
               start + at);
      start[at] *= -bias;
    }
    std::memset(item + groups * padded, 0, (items - groups * padded) * sizeof(Item));
  });
  const int64_t unit = kUnit / sizeof(Item);  // items a unit
  return {to, stride, items / unit, groups, padded / unit, scale, start};
}

// One row in 16- or 32-bit floats, zeros up to whole lines.
inline void float_row(const float* x, int64_t width, int64_t bytes, Kind kind, bool short_rows, char* to) {
  for (int64_t i = 0, at = 0; at < bytes; i += 16) {
    const F16 v = i < width ? load_part(x + i, width - i) : F16{};
    if (short_rows) {
      store_upper(to + at, to_bfloat16(v));
      at += 32;
      continue;
    }
    F16 rounded = v;
    if (kind == kBFloat16) rounded = as_floats(to_bfloat16(v));
    if (kind == kFloat16) rounded = through_float16(v);
    store(reinterpret_cast<float*>(to + at), rounded);
    at += 64;
  }
}

inline Rows float_rows(const Linear& a) {
  const bool short_rows = a.kind == kBFloat16 && kShortFloats;
  const int64_t bytes = up(a.inputs * (short_rows ? 2 : 4), kLine), stride = stride_of(bytes);
  auto* to = static_cast<char*>(scratch(kRowSlot, a.rows * stride));
  each_row(a.rows, [&](int64_t row) {
    float_row(a.x + row * a.inputs, a.inputs, bytes, a.kind, short_rows, to + row * stride);
  });
  return {to, stride, bytes / kUnit, 1, bytes / kUnit, nullptr, nullptr};
}

// 16 numbers of 16 bits -> of 32.
inline I16 widen_shorts(const char* shorts) {
#if defined(__AVX512F__)
  return {{(Ints)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)shorts))}};
#elif defined(__AVX2__)
  return by_part<Ints>([&](int i) { return (Ints)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)shorts + i)); });
#elif defined(__aarch64__)
  return by_part<Ints>([&](int i) { return (Ints)vmovl_s16(vld1_s16((const int16_t*)shorts + 4 * i)); });
#else
  int16_t x[16];
  std::memcpy(x, shorts, sizeof x);
  I16 y;
  for (int i = 0; i < 16; i++) y[i] = x[i];
  return y;
#endif
}

constexpr int kLineItems = kLine / sizeof(Whole::Item);  // whole numbers a line
constexpr int kZeros = kLineItems / 16;                  // zero points a line: a group has no fewer than 16 weights

// A line's 8-bit weights -> its units, kInt8Bias up.
inline I16 int8_line(const char* bytes) {
#if defined(QK_BYTES)
  return load_bytes(bytes) ^ static_cast<int32_t>(kInt8Bias * 0x01010101u);  // 128 up: the upper bit alone changes
#elif defined(__AVX2__)
  return by_part<Ints>([&](int i) { return (Ints)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)bytes + i)); });
#elif defined(__aarch64__)
  return by_part<Ints>([&](int i) { return (Ints)vmovl_s8(vld1_s8((const int8_t*)bytes + 8 * i)); });
#else
  int16_t wide[kLineItems];
  for (int i = 0; i < kLineItems; i++) wide[i] = static_cast<int8_t>(bytes[i]);
  return load_bytes(wide);
#endif
}

// A line's 4-bit weights, two a byte, the even one in the low half -> its units, less the zero point of each 16
// weights. Alike: those are the same throughout.
template <bool Alike>
inline I16 int4_line(const char* pairs, const int8_t* zeros) {
#if defined(__AVX512BW__)
  const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)pairs));
  const __m512i steps = _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
  int32_t points;
  std::memcpy(&points, zeros, sizeof points);
  const __m512i which = _mm512_set_epi64(0x0303030303030303, 0x0303030303030303, 0x0202020202020202, 0x0202020202020202,
                                         0x0101010101010101, 0x0101010101010101, 0, 0);
  const __m512i all = _mm512_set1_epi32(points);
  return {{(Ints)_mm512_sub_epi8(steps, Alike ? all : _mm512_shuffle_epi8(all, which))}};
#elif defined(__AVX2__)
  const auto bytes = [&](int i) {  // 32 of them
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)pairs + i));
    const __m256i steps = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), _mm256_set1_epi8(15));
    const __m256i zero = _mm256_setr_m128i(_mm_set1_epi8(zeros[2 * i]), _mm_set1_epi8(zeros[2 * i + 1]));
    return _mm256_sub_epi8(steps, zero);
  };
#if defined(QK_BYTES)
  return by_part<Ints>([&](int i) { return (Ints)bytes(i); });
#else
  const __m256i all = bytes(0);
  return {{(Ints)_mm256_cvtepi8_epi16(_mm256_castsi256_si128(all)),
           (Ints)_mm256_cvtepi8_epi16(_mm256_extracti128_si256(all, 1))}};
#endif
#elif defined(__aarch64__) && defined(QK_BYTES)
  return by_part<Ints>([&](int i) {
    const uint8x8_t bytes = vld1_u8((const uint8_t*)pairs + 8 * i);
    const uint8x8x2_t steps = vzip_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4));
    return (Ints)vsubq_s8((int8x16_t)vcombine_u8(steps.val[0], steps.val[1]), vdupq_n_s8(zeros[i]));
  });
#else
  alignas(kLine) int8_t steps[kLineItems];
  for (int i = 0; i < kLineItems; i++)
    steps[i] = static_cast<int8_t>((static_cast<uint8_t>(pairs[i / 2]) >> i % 2 * 4 & 15) - zeros[i / 16]);
#if defined(QK_BYTES)
  return load_bytes(steps);
#else
  return int8_line(reinterpret_cast<const char*>(steps));
#endif
#endif
}

// Columns first .. first + rows - 1 of a 4-bit weight, lines `from` .. `end` - 1 of them as a panel, as many lines at a
// time as share their groups.
template <bool Alike>
inline void pack_int4(const Linear& a, int64_t first, int64_t rows, int64_t from, int64_t end, char* to) {
  const int64_t groups = (a.inputs + a.group - 1) / a.group, bytes = groups * a.group / 2;
  const int64_t step = Alike ? a.group / kLineItems : 1;
  const char* weight = static_cast<const char*>(a.weight) + first * bytes;
  const uint8_t* points = a.zero + first * ((groups + 1) / 2);
  for (int64_t line = from; line < end; line += step) {
    int8_t zeros[16][kZeros] = {};  // less the bias
    for (int i = 0; i < kZeros; i += Alike ? kZeros : 1) {
      const int64_t g = least((line * kLineItems + i * 16) / a.group, groups - 1);
      for (int64_t r = 0; r < rows; r++) {
        const int zero = (points[r * ((groups + 1) / 2) + g / 2] >> g % 2 * 4 & 15) - kInt4Bias;
        std::memset(zeros[r] + i, zero, Alike ? kZeros : 1);
      }
    }
    constexpr int kSource = kLineItems / 2;
    pack_rows<Whole, kSource>(
        weight + line * kSource, bytes, rows, bytes - line * kSource, least(step, end - line),
        [&](const char* pairs, int64_t r) { return int4_line<Alike>(pairs, zeros[r]); },
        to + (line - from) * 16 * kLine);
  }
}

// Columns first .. first + 15 of the weight, lines `from` .. `end` - 1 of them, 16 units each, as a panel.
inline void pack_columns(const Linear& a, int64_t first, int64_t from, int64_t end, char* to) {
  const int64_t rows = least(16, a.outputs - first);
  const auto copy = [](const char* p, int64_t) { return load_bytes(p); };
  const auto pack = [&](auto dot, auto source, int64_t size, const auto& widen) {
    const int64_t bytes = a.inputs * size, skip = from * source;
    pack_rows<decltype(dot), source>(static_cast<const char*>(a.weight) + first * bytes + skip, bytes, rows,
                                     bytes - skip, end - from, widen, to);
  };
  constexpr std::integral_constant<int, kLine> kWhole;
  constexpr std::integral_constant<int, kLine / 2> kHalf;
  constexpr std::integral_constant<int, kLineItems> kItems;
  switch (a.kind) {
    case kFloat32:
      return pack(Float32{}, kWhole, 4, copy);
    case kFloat16:
      return pack(Float32{}, kHalf, 2,
                  [](const char* p, int64_t) { return as_ints(widen_float16((const uint16_t*)p)); });
    case kBFloat16:
      if (kShortFloats) return pack(BFloat16{}, kWhole, 2, copy);
      return pack(Float32{}, kHalf, 2, [](const char* p, int64_t) { return widen_shorts(p) << 16; });
    case kInt8:
      return pack(Whole{}, kItems, 1, [](const char* p, int64_t) { return int8_line(p); });
    case kInt4:
      return a.group % kLineItems ? pack_int4<false>(a, first, rows, from, end, to)
                                  : pack_int4<true>(a, first, rows, from, end, to);
  }
}

// Constants of 32 columns.
struct Columns {
  F16 scale[2], bias[2];  // the scale where there is one a column
  int64_t count[2];
  const float* group_scale[2];  // [G, 16] of int4
};

inline Columns columns_of(const Linear& a, int64_t column) {
  Columns c{};
  for (int p = 0; p < 2; p++) {
    const int64_t first = column + 16 * p, count = c.count[p] = least(16, a.outputs - first);
    if (count <= 0) continue;
    if (a.bias) c.bias[p] = load_part(a.bias + first, count);
    if (a.kind == kInt8) c.scale[p] = load_part(a.scale + first, count);
  }
  return c;
}

// Scales [N, G] of 16 columns -> [G, 16], up to a multiple of 16 groups.
inline void pack_scales(const Linear& a, int64_t first, int64_t groups, float* to) {
  const int64_t bytes = groups * 4, rows = least(16, a.outputs - first);
  const auto copy = [](const char* p, int64_t) { return load_bytes(p); };
  pack_rows<Float32, kLine>(reinterpret_cast<const char*>(a.scale + first * groups), bytes, rows, bytes,
                            up(groups, 16) / 16, copy, reinterpret_cast<char*>(to));
}

// What the product becomes: bias, activation, residual; 16 columns of one row, or the `count` that are there.
inline void finish(const Linear& a, int64_t row, int64_t column, F16 y, const Columns& c, int p) {
  y += c.bias[p];
  if (a.quick_gelu) y = quick_gelu(y);
  const int64_t at = row * a.outputs + column;
  if (a.residual) y += load_part(a.residual + at, c.count[p]);
  store_result(a.out + at, y, c.count[p], a.rows * a.outputs * 4);
}

// A group's sums, times both its scales, into the totals of all groups [..][kColumns].
struct AddGroup {
  float* totals;
  const float* scale;  // of the rows, `groups` apart
  const int32_t* start;
  int64_t groups;
  bool is_first;
  F16 column_scale[2];

  void operator()(int64_t row, int64_t column, Ints sum) const {
    if (kUnsignedWeights && !kStarted) sum += start[row * groups];
    float* to = totals + row * kColumns + column;
    const Floats both = column_scale[column / 16].part[column % 16 / (kVector / 4)] * scale[row * groups];
    const Floats y = fused(__builtin_convertvector(sum, Floats), both, is_first ? Floats{} : load_floats(to));
    std::memcpy(to, &y, sizeof y);
  }

  AddGroup moved(int64_t row, int64_t column) const {
    return {totals + row * kColumns + column,
            scale + row * groups,
            start + row * groups,
            groups,
            is_first,
            {column_scale[column / 16], column_scale[1]}};
  }
};

// A piece of all rows' units: a panel of it is kept while rows pass by.
struct Piece {
  int64_t first, units;
};

// Rows first .. first + count - 1 by 32 columns, a piece of them; `sums` [kBlockRows][kColumns] keeps what earlier
// pieces came to.
template <class Dot>
void tile(const Linear& a, const Rows& rows, const Piece& piece, int64_t first, int64_t count, int64_t column,
          const Right& packed, const Columns& c, float* sums, Ahead& ahead) {
  constexpr bool kWhole = std::is_same_v<typename Dot::Sum, Ints>;
  const bool grouped = rows.groups > 1 || a.kind == kInt4;
  const int64_t end = piece.first + piece.units;
  const char* from = rows.data + first * rows.stride;
  if constexpr (kWhole)
    for (int64_t unit = piece.first, g = unit / rows.part; grouped && unit < end; unit += rows.part, g++) {
      const int64_t at = first * rows.groups + g;
      const Left left{from + unit * kUnit, rows.stride, kStarted ? rows.start + at : nullptr, rows.groups};
      const F16 scale[2] = {load(c.group_scale[0] + g * 16), load(c.group_scale[1] + g * 16)};
      const AddGroup add{sums, rows.scale + at, rows.start + at, rows.groups, g == 0, {scale[0], scale[1]}};
      block<Dot>(count, left, {packed.data + (unit - piece.first) * kLine, packed.panel}, rows.part, add, ahead);
    }
  if (!grouped) {
    const int32_t* start = kStarted && kWhole && piece.first == 0 ? rows.start + first : nullptr;
    const Left left{from + piece.first * kUnit, rows.stride, start, 1};
    block<Dot>(count, left, packed, piece.units, Store{sums, kColumns, piece.first > 0}, ahead);
  }
  if (end < rows.units) return;
  for (int64_t i = 0; i < count; i++)
    for (int p = 0; p < 2 && c.count[p] > 0; p++) {
      const float* sum = sums + i * kColumns + p * 16;
      F16 y = load(sum);
      if (kWhole && !grouped) {
        I16 x = load_bytes(sum);
        if (kUnsignedWeights && !kStarted) x = x + rows.start[first + i];
        y = to_floats(x) * rows.scale[first + i] * c.scale[p];
      }
      finish(a, first + i, column + p * 16, y, c, p);
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

// How a product is shared out: `across` times `down` tasks of `columns` by `height`, their units by `piece`.
struct Shares {
  int64_t columns, height, across, down, piece;

  Shares(const Linear& a, const Rows& rows) {
    const int64_t most = kCacheBytes / (2 * kLine), pieces = (rows.units + most - 1) / most;
    const int64_t step = rows.groups > 1 ? rows.part : 16;  // a piece has whole groups, and whole lines
    piece = step % 16 ? rows.units : up((rows.units + pieces - 1) / pieces, step);
    const int64_t fair = up((a.outputs + 4 * threads() - 1) / (4 * threads()), kColumns);
    columns = least(most / piece * kColumns, fair);
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
  const int64_t panel = s.piece * kLine, first = task / s.down * s.columns;
  const int64_t end = least(first + s.columns, a.outputs), pairs = (end - first + kColumns - 1) / kColumns;
  const int64_t top = task % s.down * s.height, bottom = least(top + s.height, a.rows);
  const auto column_of = [&](int64_t j, int p) { return least(first + j * kColumns + p * 16, a.outputs); };
  auto* packed = static_cast<char*>(scratch(kColumnSlot, pairs * 2 * panel));
  const int64_t scales = a.kind == kInt4 ? up(rows.groups, 16) * 16 : 0;  // a panel
  auto* constants = static_cast<Columns*>(scratch(kTileSlot, pairs * (sizeof(Columns) + 2 * scales * 4)));
  auto* scale = reinterpret_cast<float*>(constants + pairs);
  for (int64_t j = 0; j < pairs; j++) {
    constants[j] = columns_of(a, first + j * kColumns);
    for (int p = 0; p < 2; p++, scale += scales) {
      constants[j].group_scale[p] = scale;
      if (scales) pack_scales(a, column_of(j, p), rows.groups, scale);
    }
  }
  Ahead ahead;
  // where few rows are computed, there is no time to fetch in
  if (const int64_t after = next / s.down * s.columns; after != first && after < a.outputs && a.rows > 2 * kRows) {
    const int64_t passes = (bottom - top + kRows - 1) / kRows * pairs * 2 / kPanels * rows.units / kStride;
    ahead.next = static_cast<const char*>(a.weight) + after * column_bytes(a);
    ahead.step = least(s.columns, a.outputs - after) * column_bytes(a) / passes + 1;
  }
  constexpr int64_t kTile = kBlockRows * kColumns;
  const int64_t kept = s.piece < rows.units ? up(bottom - top, kBlockRows) / kBlockRows * pairs : 1;  // tiles of sums
  auto* sums = static_cast<float*>(scratch(kTotalSlot, kept * kTile * 4));
  for (int64_t unit = 0; unit < rows.units; unit += s.piece) {
    const Piece piece{unit, least(s.piece, rows.units - unit)};
    for (int64_t j = 0; j < pairs; j++)
      for (int p = 0; p < 2; p++)
        pack_columns(a, column_of(j, p), unit / 16, (unit + piece.units) / 16, packed + (2 * j + p) * panel);
    int64_t at = 0;
    for (int64_t row = top; row < bottom; row += kBlockRows)
      for (int64_t j = 0; j<pairs; j++, at += kept> 1)
        tile<Dot>(a, rows, piece, row, least(kBlockRows, bottom - row), first + j * kColumns,
                  {packed + 2 * j * panel, panel}, constants[j], sums + at * kTile, ahead);
  }
}

template <class Dot>
void multiply(const Linear& a, const Rows& rows) {
  const Shares s(a, rows);
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
      const bool whole = std::is_same_v<Dot, Bytes>;
      finish(a, row, output, whole ? to_floats(x) * rows.scale[row] * c.scale[p] : as_floats(x), c, p);
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
    pack_panel<Dot>(line, least(16, a.rows - p * 16), rows.units / 16, panels + p * panel);
  });
  parallel(a.outputs / kColumns, [&](int64_t task) {
    const Blocks scope;
    const Columns c = columns_of(a, task * kColumns);
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
  if (a.kind == kInt8 && goes_across(a)) return multiply_across<Bytes>(a, whole_rows(a));
  if (a.kind == kBFloat16 && goes_across(a)) return multiply_across<BFloat16>(a, float_rows(a));
#endif
  if (a.kind == kInt8 || a.kind == kInt4) return multiply<Whole>(a, whole_rows(a));
  if (a.kind == kBFloat16 && kShortFloats) return multiply<BFloat16>(a, float_rows(a));
  multiply<Float32>(a, float_rows(a));
}

}  // namespace QK_ISA
}  // namespace qk
