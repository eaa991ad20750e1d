// Rows of pixels in, resized pixels [side, side, 3] out: both passes of an antialiased resize, in whole numbers, rows
// as they come. kernels/qalign_kernels/cpu/resize.py has the formula and makes the tables.
//
// A word is 32 bits: the inputs that one instruction multiplies and adds, 1, 2 or 4 "taps" by the form. Inputs are
// counted in groups of so many. A block is a group of many sums, [3][lanes] words, 4 lanes for each tap. Columns first:
// a strip of as many rows as lanes becomes blocks of [colour][row]. Its results are 4 rows of words, [side][colour],
// the taps rows now; and a row of words is blocks again, whichever its words stand for.

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

constexpr Form kForms[] = {
    kPlain,
#ifdef QK_X64
    kAvx2,
    kVnni,
#elif defined(DOTPROD)
    kPlain,  // in the places of x86's
    kPlain,
    kDotprod,
#endif
};

// The last rows of words, each in two places, so that any `size` successive ones lie in a row; then one of padding.
struct Ring {
  uint8_t* words;
  int64_t row_bytes;
  int size, taps;

  Ring(const Form& form, const Resize& r, uint8_t* memory) : words(memory), taps(form.taps) {
    row_bytes = static_cast<int64_t>(form.blocks(r.side)) * form.block_bytes() + 64;  // Across::pad is beyond
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

  // Padding for the strip's rows from `row` on.
  void pad(int group, int row) const {
    for (; row < kRows * taps; ++row) {
      const uint32_t tap = (~0u >> (32 - 32 / taps)) << (32 / taps * (row % taps));
      auto* word = reinterpret_cast<uint32_t*>(at(group) + row / taps * row_bytes);
      const auto* from = reinterpret_cast<const uint32_t*>(padding());
      for (int64_t i = 0; i < row_bytes / 4; ++i) word[i] = (word[i] & ~tap) | (from[i] & tap);
    }
  }
};

// The outputs that see the picture. All others are padding.
Range seen(const Axis& axis, int side) {
  Range outputs = {0, side};
  while (axis.first[outputs.from] + axis.groups <= axis.start) ++outputs.from;
  while (axis.first[outputs.to - 1] >= axis.start + axis.count) --outputs.to;
  return outputs;
}

// The most groups that outputs read at a time. Blocks are filled by 4 columns, so some lie before and after.
int room(const Form& form, const Axis& columns) {
  return std::max(kStrip / form.block_bytes(), columns.groups + kRows);
}

// A strip into 4 rows of words, some outputs at a time.
void across(const Form& form, const Resize& r, Range outputs, const Strip& strip, uint8_t* blocks, uint8_t* rows,
            int64_t row_bytes) {
  const Axis& axis = r.columns;
  const int four = 4 / form.taps, most = room(form, axis);
  for (int x = outputs.from; x < outputs.to;) {
    const int first = axis.first[x] / four * four;
    int next = x, last = first;
    for (; next < outputs.to && axis.first[next] + axis.groups <= first + most; ++next)
      last = (axis.first[next] + axis.groups + four - 1) / four * four;
    form.fill(r, strip, (first - axis.start) * form.taps, (last - axis.start) * form.taps, blocks);
    form.across(axis, {x, next, blocks - static_cast<int64_t>(first) * form.block_bytes(), rows, row_bytes, r.pad[0]});
    x = next;
  }
}

// Output rows from..to that see padding alone, and bytes beyond.
void put_padding(const Resize& r, int from, int to, uint8_t* out) {
  const int64_t row = 3 * r.side;
  for (int64_t y = from; y < to; ++y)
    for (int64_t i = 0; i < row; i += 48) std::memcpy(out + y * row + i, r.pad, 48);
}

}  // namespace

// The best form this CPU has: 0 plain, 1 AVX2, 2 AVX512-VNNI, 3 ARM's dot products. Each of x86 has those below it,
// ARM's has 0.
QK_EXPORT int32_t qk_resize_form() {
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

// Bytes of work that a resize needs.
QK_EXPORT int64_t qk_resize_work(const Resize* resize, int32_t form_index) {
  const Form& form = kForms[form_index];
  const int64_t groups = room(form, resize->columns) + kRows;
  return Ring(form, *resize, nullptr).bytes() + groups * form.block_bytes();
}

// The next `count` rows of the picture, from row `begin`, a multiple of 16 as all counts but the last. `work` is at a
// multiple of 64 bytes, and keeps what it holds from call to call. With the picture's last row all of out
// [side, side, 3] is written, and bytes beyond: it has 64 more.
QK_EXPORT void qk_resize_rows(const Resize* resize, int32_t form_index, const uint8_t* pixels, int64_t stride,
                              int32_t begin, int32_t count, uint8_t* work, uint8_t* out) {
  const Form& form = kForms[form_index];
  Resize r = *resize;
  for (auto& each : r.pad) each ^= form.flip;
  const Ring ring(form, r, work);
  const Range columns = seen(r.columns, r.side), rows = seen(r.rows, r.side);
  int group = r.rows.start + begin / form.taps, y = rows.from;
  const auto ends = [&] { return y < rows.to && r.rows.first[y] + r.rows.groups <= group; };
  const auto drain = [&] {
    for (; ends(); ++y)
      form.down(r.rows, y, ring.at(r.rows.first[y]), ring.row_bytes, form.blocks(r.side),
                out + y * int64_t{3} * r.side);
  };

  if (begin == 0) {
    ring.fill(r.pad);
    put_padding(*resize, 0, rows.from, out);
  }
  while (ends()) ++y;  // what calls before wrote
  for (int row = 0; row < count; row += form.lanes()) {
    const Strip strip(pixels + row * stride, stride, count - row);
    across(form, r, columns, strip, work + ring.bytes(), ring.at(group), ring.row_bytes);
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
