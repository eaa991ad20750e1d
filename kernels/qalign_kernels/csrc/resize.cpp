// Rows of pixels in, resized pixels [side, side, 3] out: both passes of an antialiased resize, in whole numbers, rows
// as they come. kernels/qalign_kernels/resize.py has the formula and makes the tables.
//
// Everything lies in quads: 64 bytes are 4 x RGBX x 4 taps, the taps adjacent, so that four neighbours of one channel
// are four bytes of a product. Columns first: a strip of 4 rows becomes quads of 4 columns, their outer 4 the rows.
// What a strip gives is already a row of quads for the second pass, the outer 4 output columns, the taps rows.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define QK_X64 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#endif

#define QK_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// One direction. Groups are of 4 positions, counted so that the picture begins at a group's first.
struct Axis {
  const int32_t* first;  // [side] the first group an output reads
  const uint8_t* limbs;  // [side][groups][16 or 12 bytes] its weights, as the form wants them
  int32_t groups;        // that an output reads
  int32_t start, count;  // the picture's groups; outside is padding
};

struct Resize {
  Axis columns, rows;
  int32_t width, height, side, channels;  // channels: bytes a pixel, 3 or 4
  uint8_t pad[4];
};

constexpr int kBits = 22;  // of a weight's fraction
constexpr int kQuad = 64;

// A row of sums of weight x pixel, rounded and cut to 8 bits: 4 x RGBX each.
struct Sums {
  const uint8_t* quads;  // each sum's first quad: `first` quads on, or where that is null, as many as sums before
  const int32_t* first;
  int64_t stride;  // bytes from a quad to the next of the same sum
  int groups;      // quads a sum
  const uint8_t* limbs;
  int64_t limbs_step;    // bytes from a sum's weights to the next sum's
  const uint8_t* order;  // [16] which of the bytes are written where
  uint8_t* out;          // 16 bytes a sum, out_step apart
  int out_step;
  int count;

  const uint8_t* quads_of(int i) const { return quads + static_cast<int64_t>(first ? first[i] : i) * kQuad; }
  const uint8_t* limbs_of(int i) const { return limbs + i * limbs_step; }
  uint8_t* out_of(int i) const { return out + i * out_step; }
};

// Up to 4 rows into a strip's quads.
using Fill = void (*)(const Resize&, const uint8_t* pixels, int64_t stride, int rows, uint8_t* strip);

struct Form {
  Fill fill;
  void (*sum)(const Sums&);
  int group_bytes;  // of limbs
};

// weights int32 [4]
void sum_plain(const Sums& s) {
  for (int i = 0; i < s.count; ++i) {
    const uint8_t* quads = s.quads_of(i);
    const auto* weights = reinterpret_cast<const int32_t*>(s.limbs_of(i));
    int32_t sums[16];
    std::fill(sums, sums + 16, 1 << (kBits - 1));
    for (int g = 0; g < s.groups; ++g, quads += s.stride, weights += 4)
      for (int j = 0; j < 16; ++j)
        for (int t = 0; t < 4; ++t) sums[j] += quads[4 * j + t] * weights[t];
    for (int j = 0; j < 16; ++j) s.out_of(i)[j] = static_cast<uint8_t>(std::clamp(sums[s.order[j]] >> kBits, 0, 255));
  }
}

// The rest of a strip after `done` columns: what the picture has, else padding.
void fill_from(const Resize& r, const uint8_t* pixels, int64_t stride, int rows, uint8_t* strip, int done) {
  for (int column = done; column < 4 * r.columns.count; ++column) {
    uint8_t* quad = strip + (r.columns.start + column / 4) * kQuad + column % 4;
    for (int row = 0; row < 4; ++row) {
      const bool inside = row < rows && column < r.width;
      const uint8_t* pixel = inside ? pixels + row * stride + column * r.channels : r.pad;
      for (int channel = 0; channel < 3; ++channel) quad[16 * row + 4 * channel] = pixel[channel];
    }
  }
}

void fill_plain(const Resize& r, const uint8_t* pixels, int64_t stride, int rows, uint8_t* strip) {
  fill_from(r, pixels, stride, rows, strip, 0);
}

#ifdef QK_X64

AVX2 void fill_avx2(const Resize& r, const uint8_t* pixels, int64_t stride, int rows, uint8_t* strip) {
  const __m128i by_channel = r.channels == 4 ? _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
                                             : _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
  int column = 0;
  if (rows == 4)
    for (; column * r.channels + 16 <= r.width * r.channels; column += 4) {  // loads of 16 bytes stay in the row
      uint8_t* quad = strip + (r.columns.start + column / 4) * kQuad;
      for (int row = 0; row < 4; ++row) {
        const uint8_t* pixel = pixels + row * stride + column * r.channels;
        const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixel));
        _mm_store_si128(reinterpret_cast<__m128i*>(quad + 16 * row), _mm_shuffle_epi8(four, by_channel));
      }
    }
  fill_from(r, pixels, stride, rows, strip, column);
}

// weights int16 [2][4]: w >> 8, then w & 255. A weight has 24 bits, products are of 16.
AVX2 void sum_avx2(const Sums& s) {
  const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (kBits - 1));
  const __m128i order = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s.order));
  for (int i = 0; i < s.count; ++i) {
    const uint8_t *quads = s.quads_of(i), *limbs = s.limbs_of(i);
    __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    for (int g = 0; g < s.groups; ++g, quads += s.stride, limbs += 16) {
      int64_t pair[2];
      std::memcpy(pair, limbs, 16);
      const __m256i w_high = _mm256_set1_epi64x(pair[0]), w_low = _mm256_set1_epi64x(pair[1]);
      for (int h = 0; h < 2; ++h) {
        const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(quads + 32 * h));
        const __m256i rg = _mm256_unpacklo_epi8(bytes, zero), bx = _mm256_unpackhi_epi8(bytes, zero);
        high[2 * h] = _mm256_add_epi32(high[2 * h], _mm256_madd_epi16(rg, w_high));
        low[2 * h] = _mm256_add_epi32(low[2 * h], _mm256_madd_epi16(rg, w_low));
        high[2 * h + 1] = _mm256_add_epi32(high[2 * h + 1], _mm256_madd_epi16(bx, w_high));
        low[2 * h + 1] = _mm256_add_epi32(low[2 * h + 1], _mm256_madd_epi16(bx, w_low));
      }
    }
    __m256i sums[4];
    for (int j = 0; j < 4; ++j) sums[j] = _mm256_add_epi32(_mm256_slli_epi32(high[j], 8), low[j]);
    for (int h = 0; h < 2; ++h) {  // taps 0, 1 and 2, 3 are summed apart until here
      const __m256i sum = _mm256_hadd_epi32(sums[2 * h], sums[2 * h + 1]);
      sums[h] = _mm256_srai_epi32(_mm256_add_epi32(sum, half), kBits);
    }
    const __m256i words = _mm256_packs_epi32(sums[0], sums[1]);  // 0, 2 | 1, 3 of the outer 4
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m128i four = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(s.out_of(i)), _mm_shuffle_epi8(four, order));
  }
}

// weights int8 [3][4]: the digits of base 256, each in -128..127.
AVX512 void sum_avx512(const Sums& s) {
  const __m512i zero = _mm512_setzero_si512(), half = _mm512_set1_epi32(1 << (kBits - 1));
  const __m128i order = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s.order));
  for (int i = 0; i < s.count; ++i) {
    const uint8_t *quads = s.quads_of(i), *limbs = s.limbs_of(i);
    __m512i sums[3] = {half, zero, zero};
    for (int g = 0; g < s.groups; ++g, quads += s.stride, limbs += 12) {
      const __m512i pixels = _mm512_load_si512(quads);
      int32_t digits[3];
      std::memcpy(digits, limbs, 12);
      for (int d = 0; d < 3; ++d) sums[d] = _mm512_dpbusd_epi32(sums[d], pixels, _mm512_set1_epi32(digits[d]));
    }
    const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums[1], 8), _mm512_slli_epi32(sums[2], 16));
    const __m512i sum = _mm512_srai_epi32(_mm512_add_epi32(sums[0], upper), kBits);
    const __m128i four = _mm512_cvtusepi32_epi8(_mm512_max_epi32(sum, zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(s.out_of(i)), _mm_shuffle_epi8(four, order));
  }
}

#endif

constexpr Form kForms[] = {
    {fill_plain, sum_plain, 16},
#ifdef QK_X64
    {fill_avx2, sum_avx2, 16},
    {fill_avx2, sum_avx512, 12},
#endif
};

void fill_pad(const uint8_t* pad, uint8_t* quads, int64_t count) {
  for (int64_t i = 0; i < 16 * count; ++i) std::memset(quads + 4 * i, pad[i % 4], 4);
}

// A strip into one row of quads [side][RGBX][4 rows]; outputs that see padding alone have theirs already.
void across(const Form& form, const Axis& axis, int side, const uint8_t* strip, uint8_t* row) {
  static constexpr uint8_t by_channel[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  int from = 0, to = side;
  while (from < to && axis.first[from] + axis.groups <= axis.start) ++from;
  while (to > from && axis.first[to - 1] >= axis.start + axis.count) --to;
  const int64_t step = static_cast<int64_t>(axis.groups) * form.group_bytes;
  form.sum({strip, axis.first + from, kQuad, axis.groups, axis.limbs + from * step, step, by_channel, row + 16 * from,
            16, to - from});
}

// Rows of quads into row y of the pixels, and up to 13 bytes beyond it.
void down(const Form& form, const Axis& axis, int side, int y, const uint8_t* rows, int64_t stride, uint8_t* out) {
  static constexpr uint8_t rgb[16] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15};
  const uint8_t* limbs = axis.limbs + static_cast<int64_t>(y) * axis.groups * form.group_bytes;
  uint8_t* row = out + static_cast<int64_t>(y) * 3 * side;
  form.sum({rows, nullptr, stride, axis.groups, limbs, 0, rgb, row, 12, (side + 3) / 4});
}

// The last rows of quads, each in two places, so that any `size` successive ones lie in a row.
struct Ring {
  uint8_t* quads;
  int64_t row_bytes;
  int size;

  uint8_t* at(int group) const { return quads + group % size * row_bytes; }
  void put_twice(int group) const { std::memcpy(at(group) + size * row_bytes, at(group), row_bytes); }
};

}  // namespace

// The best form this CPU has: 0 plain, 1 AVX2, 2 AVX512-VNNI. Each has those below it.
QK_EXPORT int32_t qk_resize_form() {
#ifdef QK_X64
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2")) return 1;
#endif
  return 0;
}

// The next `count` rows of the picture, from row `begin`, a multiple of 4 as all counts but the last. `work` is
// [max(first) + groups of columns + 2 * groups of rows * ceil(side / 4)] quads, at a multiple of 64 bytes, and keeps
// what it holds from call to call. With the picture's last row all of out [side, side, 3] is written, and bytes beyond:
// it has 16 more.
QK_EXPORT void qk_resize_rows(const Resize* resize, int32_t form_index, const uint8_t* pixels, int64_t stride,
                              int32_t begin, int32_t count, uint8_t* work, uint8_t* out) {
  const Resize& r = *resize;
  const Form& form = kForms[form_index];
  const int64_t row_quads = (r.side + 3) / 4;
  const int strip_quads = r.columns.first[r.side - 1] + r.columns.groups;
  const Ring ring{work + static_cast<int64_t>(strip_quads) * kQuad, row_quads * kQuad, r.rows.groups};
  if (begin == 0) fill_pad(r.pad, work, strip_quads + 2 * ring.size * row_quads);

  int group = r.rows.start + begin / 4;
  int y = 0;
  while (begin > 0 && y < r.side && r.rows.first[y] + r.rows.groups <= group) ++y;  // what calls before wrote
  const auto drain = [&] {
    for (; y < r.side && r.rows.first[y] + r.rows.groups <= group; ++y)
      down(form, r.rows, r.side, y, ring.at(r.rows.first[y]), ring.row_bytes, out);
  };
  drain();  // what ends above the picture
  for (int row = 0; row < count; row += 4) {
    form.fill(r, pixels + row * stride, stride, std::min(4, count - row), work);
    across(form, r.columns, r.side, work, ring.at(group));
    ring.put_twice(group++);
    drain();
  }
  if (begin + count < r.height) return;
  while (y < r.side) {  // padding below
    fill_pad(r.pad, ring.at(group), row_quads);
    ring.put_twice(group++);
    drain();
  }
}
