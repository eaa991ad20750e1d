// Rows of pixels in, resized pixels [side, side, 3] out: both passes of an antialiased resize in whole numbers, over
// rows as they arrive. kernels/qalign_kernels/cpu/resize.py has the formula and makes the tables.
//
// A word is 32 bits: the 1, 2 or 4 inputs ("taps") that one instruction of an instruction set (isa) multiplies and
// adds. Inputs are counted in groups of so many. A block is a group for many sums, [3][lanes] words, with 4 lanes for
// each tap. Columns are resized first: a strip of as many rows as lanes becomes blocks of [colour][row]. Its results
// are 4 rows of words, [side][colour], whose taps are rows. Read along, a row of words is blocks again.

#if defined(__x86_64__) && defined(__GNUC__)
#define QK_X64 1
#include "resize_x64.h"
#elif defined(__aarch64__) && defined(__GNUC__)
#include "resize_arm.h"
#else
#include "resize_plain.h"
#endif

#define QK_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr Isa kIsas[] = {
    kPlain,
#ifdef QK_X64
    kAvx2,
    kVnni,
#elif defined(DOTPROD)
    kPlain,  // in the places of x86's sets
    kPlain,
    kDotprod,
#endif
};

// The last rows of words. Each is kept in two places, so that any `size` successive rows follow one another in memory.
// After them comes a row of padding.
struct Ring {
  uint8_t* words;
  int64_t row_bytes;
  int size, taps;

  Ring(const Isa& isa, const Resize& r, uint8_t* memory) : words(memory), taps(isa.taps) {
    row_bytes =
        static_cast<int64_t>(isa.blocks(r.side)) * isa.block_bytes() + 64;  // 64 for what Across::pad writes beyond
    size = (r.rows.groups + 2 * kRows - 2) / kRows * kRows;
  }
  int64_t bytes() const { return (2 * size + 1) * row_bytes; }
  uint8_t* at(int group) const { return words + group % size * row_bytes; }
  uint8_t* padding() const { return words + 2 * size * row_bytes; }
  void put_twice(int group) const { std::memcpy(at(group) + size * row_bytes, at(group), kRows * row_bytes); }

  void fill(const uint8_t* pad) const {
    const uint32_t ones = taps == 4 ? 0x01010101 : taps == 2 ? 0x00010001 : 1;
    auto* word = reinterpret_cast<uint32_t*>(padding());
    for (int64_t i = 0; i < row_bytes / 4; ++i) word[i] = pad[i % 3] * ones;
    for (int i = 0; i < 2 * size; ++i) std::memcpy(words + i * row_bytes, padding(), row_bytes);
  }

  // Fills the strip's rows from `row` on with padding.
  void pad(int group, int row) const {
    for (; row < kRows * taps; ++row) {
      const uint32_t tap = (~0u >> (32 - 32 / taps)) << (32 / taps * (row % taps));
      auto* word = reinterpret_cast<uint32_t*>(at(group) + row / taps * row_bytes);
      const auto* from = reinterpret_cast<const uint32_t*>(padding());
      for (int64_t i = 0; i < row_bytes / 4; ++i) word[i] = (word[i] & ~tap) | (from[i] & tap);
    }
  }
};

// The outputs that read the picture. All others are padding.
Range seen(const Axis& axis, int side) {
  Range outputs = {0, side};
  while (axis.first[outputs.from] + axis.groups <= axis.start) ++outputs.from;
  while (axis.first[outputs.to - 1] >= axis.start + axis.count) --outputs.to;
  return outputs;
}

// How many groups outputs read at a time, at most. Blocks are filled for 4 columns at once, so that some lie before and
// some after.
int room(const Isa& isa, const Axis& columns) { return std::max(kStrip / isa.block_bytes(), columns.groups + kRows); }

// Turns a strip into 4 rows of words, some outputs at a time.
void across(const Isa& isa, const Resize& r, Range outputs, const Strip& strip, uint8_t* blocks, uint8_t* rows,
            int64_t row_bytes) {
  const Axis& axis = r.columns;
  const int four = 4 / isa.taps, most = room(isa, axis);
  for (int x = outputs.from; x < outputs.to;) {
    const int first = axis.first[x] / four * four;
    int next = x, last = first;
    for (; next < outputs.to && axis.first[next] + axis.groups <= first + most; ++next)
      last = (axis.first[next] + axis.groups + four - 1) / four * four;
    isa.fill(r, strip, (first - axis.start) * isa.taps, (last - axis.start) * isa.taps, blocks);
    isa.across(axis, {x, next, blocks - static_cast<int64_t>(first) * isa.block_bytes(), rows, row_bytes, r.pad[0]});
    x = next;
  }
}

// Writes output rows from..to, which read only padding, and some bytes beyond.
void put_padding(const Resize& r, int from, int to, uint8_t* out) {
  const int64_t row = 3 * r.side;
  for (int64_t y = from; y < to; ++y)
    for (int64_t i = 0; i < row; i += 48) std::memcpy(out + y * row + i, r.pad, 48);
}

}  // namespace

// The best isa of this CPU: 0 plain, 1 AVX2, 2 AVX512-VNNI, 3 ARM's dot products. An x86 CPU also has those below its
// best; an ARM CPU also has 0.
QK_EXPORT int32_t qk_resize_isa() {
#ifdef QK_X64
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2")) return 1;
#endif
#ifdef DOTPROD
  if (has_dotprod()) return 3;
#endif
  return 0;
}

// Bytes of working memory that a resize needs.
QK_EXPORT int64_t qk_resize_work(const Resize* resize, int32_t isa_index) {
  const Isa& isa = kIsas[isa_index];
  const int64_t groups = room(isa, resize->columns) + kRows;
  return Ring(isa, *resize, nullptr).bytes() + groups * isa.block_bytes();
}

// Takes the next `count` rows of the picture, from row `begin` on. `begin` is a multiple of 16, and so is every count
// but the last. `work` is aligned to 64 bytes and must be kept from call to call. After the picture's last row all of
// out [side, side, 3] is written; it needs 64 bytes more, which are overwritten too.
QK_EXPORT void qk_resize_rows(const Resize* resize, int32_t isa_index, const uint8_t* pixels, int64_t stride,
                              int32_t begin, int32_t count, uint8_t* work, uint8_t* out) {
  const Isa& isa = kIsas[isa_index];
  Resize r = *resize;
  for (auto& each : r.pad) each ^= isa.flip;
  const Ring ring(isa, r, work);
  const Range columns = seen(r.columns, r.side), rows = seen(r.rows, r.side);
  int group = r.rows.start + begin / isa.taps, y = rows.from;
  const auto ends = [&] { return y < rows.to && r.rows.first[y] + r.rows.groups <= group; };
  const auto drain = [&] {
    for (; ends(); ++y)
      isa.down(r.rows, y, ring.at(r.rows.first[y]), ring.row_bytes, isa.blocks(r.side), out + y * int64_t{3} * r.side);
  };

  if (begin == 0) {
    ring.fill(r.pad);
    put_padding(*resize, 0, rows.from, out);
  }
  while (ends()) ++y;  // these rows were written by earlier calls
  for (int row = 0; row < count; row += isa.lanes()) {
    const Strip strip(pixels + row * stride, stride, count - row);
    across(isa, r, columns, strip, work + ring.bytes(), ring.at(group), ring.row_bytes);
    ring.pad(group, count - row);
    ring.put_twice(group);
    group += kRows;
    drain();
  }
  if (begin + count < r.height) return;
  while (y < rows.to) {  // padding below
    ring.pad(group, 0);
    ring.put_twice(group);
    group += kRows;
    drain();
  }
  put_padding(*resize, y, r.side, out);
}
