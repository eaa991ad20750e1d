// Rows of pixels in, resized pixels [side, side, 3] out: both passes of an antialiased resize, in whole numbers, rows
// as they come. kernels/qalign_kernels/resize.py has the formula and makes the tables.
//
// A word is 32 bits: the inputs that one instruction multiplies and adds, 1, 2 or 4 "taps" by the form. Inputs are
// counted in groups of so many. A block is a group of many sums, [3][lanes] words, 4 lanes for each tap. Columns first:
// a strip of as many rows as lanes becomes blocks of [colour][row]. Its results are 4 rows of words, [side][colour],
// the taps rows now; and a row of words is blocks again, whichever its words stand for.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define QK_X64 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#endif

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define DOTPROD
#elif defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16)
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#ifdef DOTPROD
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

#define QK_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// One direction. Groups are counted so that the picture begins at a multiple of 16 inputs.
struct Axis {
  const int32_t* first;  // [side] the first group an output reads
  const uint8_t* limbs;  // [side][groups] its weights, as the form wants them
  const int32_t* base;   // [side] what its sum begins with
  int32_t groups;        // that an output reads
  int32_t start, count;  // the picture's groups; outside is padding
};

struct Resize {
  Axis columns, rows;
  int32_t width, height, side, channels;  // channels: bytes a pixel, 3 or 4
  uint8_t pad[48];                        // of 16 pixels
};

constexpr int kBits = 22;         // of a weight's fraction
constexpr int kRows = 4;          // of words, from a strip
constexpr int kColumn = 48;       // bytes of blocks
constexpr int kStrip = 16 << 10;  // bytes of blocks made at a time: they stay in the first cache

struct Range {
  int from, to;
};

// A strip's rows of the picture; those that it has not are the last again.
struct Strip {
  const uint8_t* rows[16];

  Strip(const uint8_t* pixels, int64_t stride, int count) {
    for (int i = 0; i < 16; ++i) rows[i] = pixels + std::min(i, count - 1) * stride;
  }
};

// Outputs from..to of a strip, into 4 rows of words.
struct Across {
  int from, to;
  const uint8_t* blocks;  // where group 0's would be
  uint8_t* rows;
  int64_t row_bytes;
  int pad;  // of the first colour: each output writes a word of it where the next begins, or padding does
};

struct Form {
  int taps;
  int flip;  // pixels are kept with these bits changed
  void (*fill)(const Resize&, const Strip&, int from, int to, uint8_t* blocks);  // columns, a multiple of 4
  void (*across)(const Axis&, const Across&);
  void (*down)(const Axis&, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out);

  int lanes() const { return kRows * taps; }
  int block_bytes() const { return 3 * 4 * lanes(); }
  int blocks(int side) const { return (side + lanes() - 1) / lanes(); }  // of a row of words
};

int32_t load_word(const uint8_t* at) {
  int32_t word;
  std::memcpy(&word, at, 4);
  return word;
}

// Where a row lies among a colour's lanes: turned by the colour within each 4, so that blending makes blocks.
constexpr int lane_of(int row, int colour) { return (row & ~3) | ((row + colour) & 3); }

// Columns one by one: what the picture has, else padding.
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

// weights int32
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

#if defined(QK_X64) || defined(DOTPROD)

// The columns among from..to of which 4 are taken at once: loads of 16 bytes stay in the row.
Range fours(const Resize& r, int from, int to) {
  const int begin = std::min(std::max(0, from), to);
  const int end = std::min(to, r.width - (r.channels == 4 ? 3 : 5));
  return {begin, begin + std::max(end - begin + 3, 0) / 4 * 4};
}

// Which bytes of a row's 4 pixels make words of each colour. Of two taps, those of two groups alternate.
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

#endif

#ifdef QK_X64

using Eight = int32_t __attribute__((vector_size(32)));
using Sixteen = int32_t __attribute__((vector_size(64)));

// 4 columns of 8 rows: words of 4 bytes, [colour][row].
AVX2 inline void blend_fours(const uint8_t* const* rows, int64_t at, const __m128i (&orders)[4],
                             __m256i (&colours)[3]) {
  __m256i turned[4];
  for (int i = 0; i < 4; ++i) {
    const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + at));
    const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i + 4] + at));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(upper), lower, 1);
    turned[i] = _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(orders[i]));
  }
  const __m256i a = _mm256_blend_epi32(turned[0], turned[1], 0xaa), b = _mm256_blend_epi32(turned[1], turned[0], 0xaa);
  const __m256i c = _mm256_blend_epi32(turned[2], turned[3], 0xaa), d = _mm256_blend_epi32(turned[3], turned[2], 0xaa);
  colours[0] = _mm256_blend_epi32(a, c, 0xcc);
  colours[1] = _mm256_blend_epi32(b, d, 0x99);
  colours[2] = _mm256_blend_epi32(c, a, 0xcc);
}

template <int kTaps>
AVX2 void fill_avx2(const Resize& r, const Strip& strip, int from, int to, uint8_t* blocks) {
  const Range middle = fours(r, from, to);
  const Orders orders(r.channels, kTaps);
  __m128i order[4];
  std::memcpy(order, orders.bytes, 64);
  fill_plain<kTaps, 0>(r, strip, from, middle.from, blocks);
  for (int column = middle.from; column < middle.to; column += 4)
    for (int row = 0; row < kRows * kTaps; row += 8) {
      __m256i colours[3];
      blend_fours(strip.rows + row, column * r.channels, order, colours);
      auto* to = reinterpret_cast<__m256i*>(blocks + (column - from) * kColumn + 4 * row);
      for (int colour = 0; colour < 3; ++colour)
        if constexpr (kTaps == 4) {
          _mm256_store_si256(to + 2 * colour, colours[colour]);
        } else {
          _mm256_store_si256(to + colour, _mm256_and_si256(colours[colour], _mm256_set1_epi16(255)));
          _mm256_store_si256(to + colour + 3, _mm256_srli_epi16(colours[colour], 8));
        }
    }
  fill_plain<kTaps, 0>(r, strip, middle.to, to, blocks + (middle.to - from) * kColumn);
}

// 4 words of each colour into 4 rows.
AVX2 inline void put_words(__m128i red, __m128i green, __m128i blue, __m128i pad, uint8_t* rows, int64_t row_bytes) {
  const __m128i low[2] = {_mm_unpacklo_epi32(red, green), _mm_unpacklo_epi32(blue, pad)};
  const __m128i high[2] = {_mm_unpackhi_epi32(red, green), _mm_unpackhi_epi32(blue, pad)};
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows), _mm_unpacklo_epi64(low[0], low[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + row_bytes), _mm_unpackhi_epi64(low[0], low[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 2 * row_bytes), _mm_unpacklo_epi64(high[0], high[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 3 * row_bytes), _mm_unpackhi_epi64(high[0], high[1]));
}

// weights int16 [2][2]: w >> 8, then w & 255. A weight has 24 bits, products are of 16.
AVX2 inline void sum_avx2(const uint8_t* blocks, int64_t stride, int groups, const uint8_t* limbs, int base,
                          Eight (&sums)[3]) {
  Eight high[3] = {}, low[3] = {Eight{} + base, Eight{} + base, Eight{} + base};
  for (int g = 0; g < groups; ++g, blocks += stride, limbs += 8) {
    const __m256i w_high = _mm256_set1_epi32(load_word(limbs)), w_low = _mm256_set1_epi32(load_word(limbs + 4));
    for (int v = 0; v < 3; ++v) {
      const __m256i pixels = _mm256_load_si256(reinterpret_cast<const __m256i*>(blocks + 32 * v));
      high[v] += (Eight)_mm256_madd_epi16(pixels, w_high);
      low[v] += (Eight)_mm256_madd_epi16(pixels, w_low);
    }
  }
  for (int v = 0; v < 3; ++v) sums[v] = ((high[v] << 8) + low[v]) >> kBits;
}

// Sums of [colour][8 rows], cut to 8 bits, into 4 rows of words.
AVX2 inline void put_sums(const Eight (&sums)[3], __m256i pad, uint8_t* rows, int64_t row_bytes) {
  const __m256i zero = _mm256_setzero_si256(), top = _mm256_set1_epi16(255);
  const __m256i green = _mm256_shuffle_epi32((__m256i)sums[1], 0x39);
  __m256i red_green = _mm256_packs_epi32((__m256i)sums[0], green), blue_pad = _mm256_packs_epi32((__m256i)sums[2], pad);
  red_green = _mm256_shuffle_epi32(_mm256_min_epi16(_mm256_max_epi16(red_green, zero), top), 0xd8);
  blue_pad = _mm256_shuffle_epi32(_mm256_min_epi16(_mm256_max_epi16(blue_pad, zero), top), 0xc9);  // blue is turned
  const __m256i even = _mm256_unpacklo_epi64(red_green, blue_pad), odd = _mm256_unpackhi_epi64(red_green, blue_pad);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows), _mm256_castsi256_si128(even));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + row_bytes), _mm256_castsi256_si128(odd));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 2 * row_bytes), _mm256_extracti128_si256(even, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + 3 * row_bytes), _mm256_extracti128_si256(odd, 1));
}

AVX2 void across_avx2(const Axis& axis, const Across& a) {
  const __m256i pad = _mm256_set1_epi32(a.pad);
  for (int x = a.from; x < a.to; ++x) {
    Eight sums[3];
    sum_avx2(a.blocks + axis.first[x] * 96, 96, axis.groups, axis.limbs + x * axis.groups * 8, axis.base[x], sums);
    put_sums(sums, pad, a.rows + 12 * x, a.row_bytes);
  }
}

AVX2 void down_avx2(const Axis& axis, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int i = 0; i < blocks; ++i) {
    Eight sums[3];
    sum_avx2(rows + 96 * i, row_bytes, axis.groups, axis.limbs + y * axis.groups * 8, axis.base[y], sums);
    const __m256i words = _mm256_packs_epi32((__m256i)sums[0], (__m256i)sums[1]);
    const __m256i rest = _mm256_packs_epi32((__m256i)sums[2], (__m256i)sums[2]);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, rest), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 24 * i), bytes);
  }
}

// weights int8 [3][4]: the digits of base 256, each in -128..127.
AVX512 inline void sum_avx512(const uint8_t* blocks, int64_t stride, int groups, const uint8_t* limbs, int base,
                              Sixteen (&sums)[3]) {
  Sixteen digits[3][3] = {{Sixteen{} + base, Sixteen{} + base, Sixteen{} + base}};
  for (int g = 0; g < groups; ++g, blocks += stride, limbs += 12)
    for (int d = 0; d < 3; ++d) {
      const __m512i weights = _mm512_set1_epi32(load_word(limbs + 4 * d));
      for (int v = 0; v < 3; ++v)
        digits[d][v] = (Sixteen)_mm512_dpbusd_epi32((__m512i)digits[d][v], _mm512_load_si512(blocks + 64 * v), weights);
    }
  for (int v = 0; v < 3; ++v) sums[v] = (digits[0][v] + (digits[1][v] << 8) + (digits[2][v] << 16)) >> kBits;
}

// 16 sums, cut to 8 bits.
AVX512 inline __m128i cut(__m512i sums) {
  return _mm512_cvtusepi32_epi8(_mm512_max_epi32(sums, _mm512_setzero_si512()));
}

AVX512 void across_avx512(const Axis& axis, const Across& a) {
  const __m128i pad = _mm_set1_epi8(static_cast<int8_t>(a.pad));
  for (int x = a.from; x < a.to; ++x) {
    Sixteen sums[3];
    sum_avx512(a.blocks + axis.first[x] * 192, 192, axis.groups, axis.limbs + x * axis.groups * 12, axis.base[x], sums);
    const __m512i green = _mm512_shuffle_epi32((__m512i)sums[1], _MM_PERM_ADCB);
    const __m512i blue = _mm512_shuffle_epi32((__m512i)sums[2], _MM_PERM_BADC);
    put_words(cut((__m512i)sums[0]), cut(green), cut(blue), pad, a.rows + 12 * x, a.row_bytes);
  }
}

AVX512 void down_avx512(const Axis& axis, int y, const uint8_t* rows, int64_t row_bytes, int blocks, uint8_t* out) {
  for (int i = 0; i < blocks; ++i) {
    Sixteen sums[3];
    sum_avx512(rows + 192 * i, row_bytes, axis.groups, axis.limbs + y * axis.groups * 12, axis.base[y], sums);
    for (int v = 0; v < 3; ++v)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 48 * i + 16 * v), cut((__m512i)sums[v]));
  }
}

#endif

#ifdef DOTPROD

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

// Half a block, 8 lanes. weights int8 [4][4]: the digits of base 256, each in -128..127, and none. Both sides are
// signed, pixels less 128: `base` has what they lack.
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

// 8 sums, cut to 8 bits.
DOTPROD inline uint8x8_t cut(int32x4_t low, int32x4_t high) {
  return vqmovn_u16(vcombine_u16(vqmovun_s32(low), vqmovun_s32(high)));
}

// The results of 8 rows, 2 words of each colour, into 2 rows.
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
  return true;  // of Apple's all
#endif
}

#endif

constexpr Form kPlain = {1, 0, fill_plain<1, 0>, across_plain, down_plain};
constexpr Form kForms[] = {
    kPlain,
#ifdef QK_X64
    {2, 0, fill_avx2<2>, across_avx2, down_avx2},
    {4, 0, fill_avx2<4>, across_avx512, down_avx512},
#endif
#ifdef DOTPROD
    kPlain,
    kPlain,
    {4, 128, fill_dotprod, across_dotprod, down_dotprod},
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
  const auto pad = [&](int y, int end) {
    const int64_t row = 3 * r.side;
    for (; y < end; ++y)
      for (int64_t i = 0; i < row; i += 48) std::memcpy(out + y * row + i, resize->pad, 48);
  };
  int group = r.rows.start + begin / form.taps, y = rows.from;
  const auto ends = [&] { return y < rows.to && r.rows.first[y] + r.rows.groups <= group; };
  const auto drain = [&] {
    for (; ends(); ++y)
      form.down(r.rows, y, ring.at(r.rows.first[y]), ring.row_bytes, form.blocks(r.side),
                out + y * int64_t{3} * r.side);
  };

  if (begin == 0) {
    ring.fill(r.pad);
    pad(0, rows.from);
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
  pad(y, r.side);
}
