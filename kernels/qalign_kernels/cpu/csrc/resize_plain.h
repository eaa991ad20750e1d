// What the resize shares between instruction sets, and its plain code. csrc/resize.cpp says what words and blocks are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

// One direction of the resize. Groups are counted so that the picture begins at a multiple of 16 inputs.
struct Axis {
  const int32_t* first;  // [side] the first group that an output reads
  const uint8_t* limbs;  // [side][groups] its weights, as the isa reads them
  const int32_t* base;   // [side] what its sum starts from
  int32_t groups;        // how many an output reads
  int32_t start, count;  // the picture's groups; all others are padding
};

struct Resize {
  Axis columns, rows;
  int32_t width, height, side, channels;  // channels: bytes a pixel, 3 or 4
  uint8_t pad[48];                        // 16 pixels of padding
};

constexpr int kBits = 22;         // of a weight's fraction
constexpr int kRows = 4;          // of words, made from a strip
constexpr int kColumn = 48;       // bytes of blocks for a column
constexpr int kStrip = 16 << 10;  // bytes of blocks made at a time, so that they stay in the first cache

struct Range {
  int from, to;
};

// A strip's rows of the picture. Where the picture has no more rows, the last one is repeated.
struct Strip {
  const uint8_t* rows[16];

  Strip(const uint8_t* pixels, int64_t stride, int count) {
    for (int i = 0; i < 16; ++i) rows[i] = pixels + std::min(i, count - 1) * stride;
  }
};

// The outputs from..to of a strip, to be written into 4 rows of words.
struct Across {
  int from, to;
  const uint8_t* blocks;  // where group 0's block would be
  uint8_t* rows;
  int64_t row_bytes;
  int pad;  // the first colour's padding: each output writes a word of it where the next output or the padding begins
};

struct Isa {
  int taps;
  int flip;  // pixels are kept with these bits inverted
  void (*fill)(const Resize&, const Strip&, int from, int to, uint8_t* blocks);  // from..to are columns, multiples of 4
  void (*across)(const Axis&, const Across&);
  // Writes output row y from the first of its rows of words: 3 bytes for each lane of its blocks, and some bytes
  // beyond.
  void (*down)(const Axis&, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out);

  int lanes() const { return kRows * taps; }
  int block_bytes() const { return 3 * 4 * lanes(); }
  int blocks(int side) const { return (side + lanes() - 1) / lanes(); }  // in a row of words
};

int32_t load_word(const uint8_t* at) {
  int32_t word;
  std::memcpy(&word, at, 4);
  return word;
}

// Where a row lies among a colour's lanes. Each 4 lanes are rotated by the colour, so that blending makes blocks.
constexpr int lane_of(int row, int colour) { return (row & ~3) | ((row + colour) & 3); }

// Fills blocks column by column, with the picture's pixels or with padding.
template <int kTaps, int kFlip>
void fill_plain(const Resize& r, const Strip& strip, int from, int to, uint8_t* blocks) {
  constexpr int lanes = kRows * kTaps, bytes = 4 / kTaps;
  for (int column = from; column < to; ++column) {
    uint8_t* block = blocks + (column - from) / kTaps * 12 * lanes + (column - from) % kTaps * bytes;
    const bool inside = column >= 0 && column < r.width;
    for (int row = 0; row < lanes; ++row)
      for (int colour = 0; colour < 3; ++colour) {
        const int at = column * r.channels + colour;
        const uint32_t value = inside ? strip.rows[row][at] ^ kFlip : r.pad[colour];
        std::memcpy(block + 4 * (colour * lanes + lane_of(row, colour)), &value, bytes);
      }
  }
}

using Four = int32_t __attribute__((vector_size(16)));

// The sums of a block. The weights are int32.
inline void sum_plain(const uint8_t* blocks, int64_t stride, int groups, const uint8_t* limbs, int base,
                      int (&sums)[12]) {
  Four four[3] = {Four{} + base, Four{} + base, Four{} + base};
  for (int g = 0; g < groups; ++g, blocks += stride, limbs += 4) {
    Four pixels[3];
    std::memcpy(pixels, blocks, 48);
    for (int v = 0; v < 3; ++v) four[v] += pixels[v] * load_word(limbs);
  }
  std::memcpy(sums, four, 48);
  for (auto& each : sums) each = std::clamp(each >> kBits, 0, 255);
}

void across_plain(const Axis& axis, const Across& a) {
  for (int x = a.from; x < a.to; ++x) {
    int sums[12];
    sum_plain(a.blocks + axis.first[x] * 48, 48, axis.groups, axis.limbs + x * axis.groups * 4, axis.base[x], sums);
    for (int row = 0; row < 4; ++row)
      for (int colour = 0; colour < 3; ++colour)
        std::memcpy(a.rows + row * a.row_bytes + 12 * x + 4 * colour, &sums[4 * colour + lane_of(row, colour)], 4);
  }
}

void down_plain(const Axis& axis, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out) {
  for (int i = 0; i < blocks; ++i) {
    int sums[12];
    sum_plain(rows + 48 * i, row_bytes, axis.groups, axis.limbs + y * axis.groups * 4, axis.base[y], sums);
    for (int j = 0; j < 12; ++j) out[12 * i + j] = static_cast<uint8_t>(sums[j]);
  }
}

constexpr Isa kPlain = {1, 0, fill_plain<1, 0>, across_plain, down_plain};

// The columns among from..to that can be taken 4 at once, because loads of 16 bytes stay within the row.
inline Range fours(const Resize& r, int from, int to) {
  const int begin = std::min(std::max(0, from), to);
  const int end = std::min(to, r.width - (r.channels == 4 ? 3 : 5));
  return {begin, begin + std::max(end - begin + 3, 0) / 4 * 4};
}

// Which bytes of a row's 4 pixels make the words of each colour. With two taps, the bytes of two groups alternate.
struct Orders {
  alignas(16) int8_t bytes[4][16];

  Orders(int channels, int taps) {
    std::memset(bytes, -1, sizeof bytes);
    for (int row = 0; row < 4; ++row)
      for (int colour = 0; colour < 3; ++colour)
        for (int i = 0; i < 4; ++i) {
          const int pixel = taps == 2 ? i % 2 * 2 + i / 2 : i;
          bytes[row][4 * lane_of(row, colour) + i] = static_cast<int8_t>(pixel * channels + colour);
        }
  }
};

}  // namespace
