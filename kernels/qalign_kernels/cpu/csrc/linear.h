// Rows by a weight of any precision. Rows are rounded once; the weight is packed into the cache a few columns at a
// time.
//
// The weight stays as the file has it. Packing costs a few percent at a picture's 77 decoder rows and nothing at its
// 1025 vision rows, and it saves a second copy of every weight. 4-bit weights are packed as the 8-bit ones they stand
// for.
#pragma once

#include <atomic>

#include "block.h"
#include "int4.h"
#include "pack.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

constexpr int64_t kCacheBytes = 256 << 10;  // of packed columns in a task
enum Slot { kRowSlot, kScaleSlot, kSumSlot, kColumnSlot, kTileSlot, kPanelSlot, kTotalSlot };

// The rows of A, rounded, as `block` reads them.
struct RoundedRows {
  const char* data;
  int64_t stride;        // bytes from one to the next
  int64_t units;         // in a row
  const float* scale;    // [M] of whole numbers, else null
  const int32_t* start;  // [M] the number that sums start from, because of kWeightBias; else null
};

// Bytes rounded up to an odd number of lines: rows a power of two apart would share a few sets of the cache.
inline int64_t stride_of(int64_t bytes) { return (up(bytes, kLine) / kLine | 1) * kLine; }

inline RoundedRows whole_rows(const Linear& a) {
  using Item = Whole::Item;
  const int64_t items = up(a.inputs, a.kind == kInt4 ? kBlockInputs : kLineItems);
  const int64_t stride = stride_of(items * sizeof(Item));
  auto* to = static_cast<char*>(scratch(kRowSlot, a.rows * stride));
  auto* scale = static_cast<float*>(scratch(kScaleSlot, a.rows * 4));
  auto* start = static_cast<int32_t*>(scratch(kSumSlot, a.rows * 4));
  each_row(a.rows, [&](int64_t row) {
    quantize(a.x + row * a.inputs, a.inputs, items, reinterpret_cast<Item*>(to + row * stride), scale + row,
             start + row);
    start[row] *= -kWeightBias;
  });
  return {to, stride, items * static_cast<int64_t>(sizeof(Item)) / kUnit, scale, start};
}

// Stores a row in 16- or 32-bit floats, with zeros up to whole lines.
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

inline RoundedRows float_rows(const Linear& a) {
  const bool short_rows = a.kind == kBFloat16 && kShortFloats;
  const int64_t bytes = up(a.inputs * (short_rows ? 2 : 4), kLine), stride = stride_of(bytes);
  auto* to = static_cast<char*>(scratch(kRowSlot, a.rows * stride));
  each_row(a.rows, [&](int64_t row) {
    float_row(a.x + row * a.inputs, a.inputs, bytes, a.kind, short_rows, to + row * stride);
  });
  return {to, stride, bytes / kUnit, nullptr, nullptr};
}

// 16 numbers of 16 bits -> 16 of 32 bits.
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

// The 8-bit weights of a line -> its units, with kWeightBias added.
inline I16 int8_line(const char* bytes) {
#if defined(QK_BYTES)
  return load_bytes(bytes) ^ static_cast<int32_t>(kWeightBias * 0x01010101u);  // adding 128 changes only the upper bit
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

// Packs lines `from` .. `end` - 1, of 16 units each, of the weight's columns first .. first + 15 as a panel.
inline void pack_columns(const Linear& a, int64_t first, int64_t from, int64_t end, char* to) {
  const int64_t rows = least(16, a.outputs - first);
  const auto copy = [](const char* p) { return load_bytes(p); };
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
      return pack(Float32{}, kHalf, 2, [](const char* p) { return as_ints(widen_float16((const uint16_t*)p)); });
    case kBFloat16:
      if (kShortFloats) return pack(BFloat16{}, kWhole, 2, copy);
      return pack(Float32{}, kHalf, 2, [](const char* p) { return widen_shorts(p) << 16; });
    case kInt8:
      return pack(Whole{}, kItems, 1, [](const char* p) { return int8_line(p); });
    case kInt4:
      return pack_int4(a, first, rows, from / kBlockLines, end / kBlockLines, to);
  }
}

// Constants of 32 columns.
struct Columns {
  F16 scale[2], bias[2];
  int64_t count[2];
};

inline Columns columns_of(const Linear& a, int64_t column) {
  Columns c{};
  for (int p = 0; p < 2; p++) {
    const int64_t first = column + 16 * p, count = c.count[p] = least(16, a.outputs - first);
    if (count <= 0) continue;
    if (a.bias) c.bias[p] = load_part(a.bias + first, count);
    if (a.scale) c.scale[p] = load_part(a.scale + first, count);
  }
  return c;
}

// Adds bias, activation and residual to 16 columns of a row, or to as many as there are, and stores them.
inline void finish(const Linear& a, int64_t row, int64_t column, F16 y, const Columns& c, int p) {
  y += c.bias[p];
  if (a.quick_gelu) y = quick_gelu(y);
  const int64_t at = row * a.outputs + column;
  if (a.residual) y += load_part(a.residual + at, c.count[p]);
  store_result(a.out + at, y, c.count[p], a.rows * a.outputs * 4);
}

// A piece of all rows' units. A panel of it stays in the cache while the rows pass by.
struct Piece {
  int64_t first, units;
};

// Rows first .. first + count - 1 by 32 columns, for one piece of their units. `sums` [kBlockRows][kColumns] keeps the
// sums of earlier pieces.
template <class Dot>
void tile(const Linear& a, const RoundedRows& rows, const Piece& piece, int64_t first, int64_t count, int64_t column,
          const Right& packed, const Columns& c, float* sums, Ahead& ahead) {
  constexpr bool kWhole = std::is_same_v<typename Dot::Sum, Ints>;
  const int32_t* start = kStarted && kWhole && piece.first == 0 ? rows.start + first : nullptr;
  const Left left{rows.data + first * rows.stride + piece.first * kUnit, rows.stride, start};
  block<Dot, true>(count, left, packed, piece.units, Store{sums, kColumns, piece.first > 0}, ahead);
  if (piece.first + piece.units < rows.units) return;
  for (int64_t i = 0; i < count; i++)
    for (int p = 0; p < 2 && c.count[p] > 0; p++) {
      const float* sum = sums + i * kColumns + p * 16;
      F16 y = load(sum);
      if (kWhole) {
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
      return blocks_of(a) * kBlockBytes;
  }
  return 0;
}

// How a product is shared out: into `across` times `down` tasks of `columns` by `height`, each in pieces of `piece`
// units.
struct Shares {
  int64_t columns, height, across, down, piece;

  Shares(const Linear& a, const RoundedRows& rows) {
    const int64_t most = kCacheBytes / (2 * kLine), pieces = (rows.units + most - 1) / most;
    piece = up((rows.units + pieces - 1) / pieces, kBlockLines * 16);  // whole blocks of 4-bit weights
    const int64_t fair = up((a.outputs + 4 * threads() - 1) / (4 * threads()), kColumns);
    columns = least(most / piece * kColumns, fair);
    if (columns < kColumns) columns = kColumns;
    across = (a.outputs + columns - 1) / columns;
    const int64_t cuts = across >= 2 * threads() ? 1 : (2 * threads() + across - 1) / across;
    height = up((a.rows + cuts - 1) / cuts, kBlockRows);
    down = (a.rows + height - 1) / height;
  }
};

// One task: packs its columns, then multiplies all its rows. Meanwhile the columns of the thread's next task are
// prefetched.
template <class Dot>
void multiply_share(const Linear& a, const RoundedRows& rows, const Shares& s, int64_t task, int64_t next) {
  const int64_t panel = s.piece * kLine, first = task / s.down * s.columns;
  const int64_t end = least(first + s.columns, a.outputs), pairs = (end - first + kColumns - 1) / kColumns;
  const int64_t top = task % s.down * s.height, bottom = least(top + s.height, a.rows);
  const auto column_of = [&](int64_t j, int p) { return least(first + j * kColumns + p * 16, a.outputs); };
  auto* packed = static_cast<char*>(scratch(kColumnSlot, pairs * 2 * panel));
  auto* constants = static_cast<Columns*>(scratch(kTileSlot, pairs * sizeof(Columns)));
  for (int64_t j = 0; j < pairs; j++) constants[j] = columns_of(a, first + j * kColumns);
  Ahead ahead;
  // with few rows there is no time to prefetch
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
void multiply(const Linear& a, const RoundedRows& rows) {
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
// Few rows by weights that need no packing: the weights are the left operand, as the file has them, and the rows are
// packed instead. The result lies across: 16 outputs by Tiles * 16 rows.
template <class Dot, int Tiles>
void sweep_across(const Linear& a, const RoundedRows& rows, int64_t output, int64_t first, const char* panels,
                  int64_t panel, const Columns& c, int p) {
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
void sweep_up_to(int64_t tiles, const Linear& a, const RoundedRows& rows, int64_t output, int64_t first,
                 const char* panels, int64_t panel, const Columns& c, int p) {
  if (tiles >= Tiles) return sweep_across<Dot, Tiles>(a, rows, output, first, panels, panel, c, p);
  if constexpr (Tiles > 1) sweep_up_to<Dot, Tiles - 1>(tiles, a, rows, output, first, panels, panel, c, p);
}

template <class Dot>
void multiply_across(const Linear& a, const RoundedRows& rows) {
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
