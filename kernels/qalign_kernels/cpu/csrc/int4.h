// 4-bit weights in, panels of the 8-bit weights that they stand for out: k (w - z), 128 inputs of 16 columns at a time.
//
// The weight stays as the file has it. The 64 bytes that a block has of each column are transposed before they are
// spread: the low halves of a transposed unit become one unit of a panel, and its high halves become the unit 64 inputs
// later.
#pragma once

#include "pack.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

constexpr int kBlockInputs = 128, kBlockBytes = 64, kGroupsABlock = 4;
constexpr int kBlockLines = kBlockInputs / kLineItems;  // lines of a panel
constexpr int kItemBytes = sizeof(Whole::Item);
constexpr int kTwos = kSquares<Whole> ? 2 : 1;  // units of a column that lie side by side in a panel

typedef uint16_t Shorts __attribute__((vector_size(kVector), may_alias));
typedef std::conditional_t<kItemBytes == 1, uint8_t, uint16_t> Items __attribute__((vector_size(kVector), may_alias));

inline int64_t blocks_of(const Linear& a) { return (a.inputs + kBlockInputs - 1) / kBlockInputs; }

// Products of 16-bit numbers. Also right for pairs of 8-bit numbers by an 8-bit b, where no product is over 255: then
// nothing is carried.
QK_INLINE I16 times(const I16& a, const I16& b) {
  return by_part<Ints>([&](int i) { return (Ints)((Shorts)a.part[i] * (Shorts)b.part[i]); });
}

QK_INLINE I16 items_less(const I16& a, const I16& b) {
  return by_part<Ints>([&](int i) { return (Ints)((Items)a.part[i] - (Items)b.part[i]); });
}

// What the codes of each lane are multiplied by, and what is then subtracted, for every item. They come from the
// groups' bytes, which are the lowest of the lanes.
struct Group {
  I16 multiplier, offset;

  explicit QK_INLINE Group(const I16& bytes) {
    const I16 k = (bytes >> 4 & 15) + 1, kz = times(k, bytes & 15);
    multiplier = k | k << 16;
    offset = kz | kz << 16;
    if (kItemBytes == 1) offset = (offset | offset << 8) ^ static_cast<int32_t>(kWeightBias * 0x01010101u);
  }
};

// A transposed line -> the weights whose codes begin at bit `shift` of its bytes, or of its pairs of bytes where a
// weight takes two.
QK_INLINE I16 spread(const I16& line, int shift, const Group& group) {
  const I16 codes = line >> shift & (kItemBytes == 1 ? 0x0f0f0f0f : 0x000f000f);
  return items_less(times(codes, group.multiplier), group.offset);
}

// A line of a column. Where a weight takes two bytes, the first and the third byte of a unit become a unit of a panel,
// so that the two bytes in the middle change places.
QK_INLINE I16 by_halves(const char* bytes) {
  const I16 x = load_bytes(bytes);
  if (kItemBytes == 1) return x;
  return (x & static_cast<int32_t>(0xff0000ff)) | (x & 0xff00) << 8 | (x >> 8 & 0xff00);
}

// A block's transposed lines, and the group bytes of each lane in `kTwos` lines -> the block's lines of a panel.
inline void spread_block(const char* turned, const char* groups, char* to) {
#pragma GCC unroll 4
  for (int g = 0; g < kGroupsABlock; g++)
#pragma GCC unroll 2
    for (int two = 0; two < kTwos; two++) {
      const Group group(load_bytes(groups + two * kLine) >> 8 * g);
      const int half = g / 2, first = g % 2 * 8;
#pragma GCC unroll 8
      for (int i = two; i < 8; i += kTwos) {
        const I16 line = load_bytes(turned + (first + i) * kLine);
        char* at = to + (half * 16 + first + i) * kItemBytes * kLine;
#pragma GCC unroll 2
        for (int j = 0; j < kItemBytes; j++) store_bytes(at + j * kLine, spread(line, 4 * half + 8 * j, group));
      }
    }
}

// Columns first .. first + rows - 1 of the weight, blocks `from` .. `end` - 1 of them, as a panel.
inline void pack_int4(const Linear& a, int64_t first, int64_t rows, int64_t from, int64_t end, char* to) {
  const int64_t blocks = blocks_of(a);
  const char* weight = static_cast<const char*>(a.weight) + first * blocks * kBlockBytes;
  const uint8_t* groups = a.groups + first * blocks * kGroupsABlock;
  alignas(kLine) char turned[16 * kLine];
  alignas(kLine) int32_t words[16 * kTwos] = {};
  for (int64_t b = from; b < end; b++, to += kBlockLines * 16 * kLine) {
    for (int64_t r = 0; r < rows; r++)
      for (int two = 0; two < kTwos; two++)
        std::memcpy(words + r * kTwos + two, groups + (r * blocks + b) * kGroupsABlock, kGroupsABlock);
    pack_rows<Whole, kBlockBytes>(weight + b * kBlockBytes, blocks * kBlockBytes, rows, kBlockBytes, 1, by_halves,
                                  turned);
    spread_block(turned, reinterpret_cast<const char*>(words), to);
  }
}

}  // namespace QK_ISA
}  // namespace qk
