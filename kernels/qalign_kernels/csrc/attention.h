// Attention of one head at a time: keys and values packed once, a few queries' scores in the cache.
#pragma once

#include "linear.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

enum AttentionSlot { kKeySlot = 3, kValueSlot, kScoreSlot, kHeadSlot, kShareSlot, kQuerySlot };

// Products of float32 numbers as they are.
struct Plain {
  using Dot = Float32;
  static constexpr int kQueries = 4 * kRows;  // at a time: a panel of keys or values is read once for all

  static int64_t units(int64_t numbers) { return numbers; }

  // Unit `unit` of 16 columns of the rows [..][..], `pitch` floats apart, `left` columns being there.
  static I16 line(const float* rows, int64_t pitch, int64_t numbers, int64_t unit, int64_t left) {
    return as_ints(unit < numbers ? load_part(rows + unit * pitch, left) : F16{});
  }

  // Line `line` of a row of numbers, 16 units.
  static I16 row_line(const float* row, int64_t numbers, int64_t line) {
    return as_ints(load_part(row + line * 16, numbers - line * 16));
  }

  static const char* operand(const float* x, int64_t pitch, int64_t, int64_t, int64_t* stride) {
    *stride = pitch * 4;
    return reinterpret_cast<const char*>(x);
  }

  // Where the rows of probabilities go: where their scores are.
  static char* shares(float* scores, int64_t pitch, int64_t, int64_t* stride) {
    *stride = pitch * 4;
    return reinterpret_cast<char*>(scores);
  }

  static void put(char* row, int64_t, int64_t j, const F16& x) { store(reinterpret_cast<float*>(row) + j, x); }
};

#if defined(__AVX512BF16__)
// Each number as one bfloat16: enough for engines of 16 bits and fewer.
struct Half {
  using Dot = BFloat16;
  static constexpr int kQueries = kBlockRows > kRows ? kBlockRows : 4 * kRows;

  static int64_t units(int64_t numbers) { return up(numbers, 32) / 2; }

  static I16 line(const float* rows, int64_t pitch, int64_t numbers, int64_t unit, int64_t left) {
    const auto number = [&](int64_t i) { return i < numbers ? to_bfloat16(load_part(rows + i * pitch, left)) : I16{}; };
    return pair(number(2 * unit), number(2 * unit + 1));
  }

  static I16 row_line(const float* row, int64_t numbers, int64_t line) {
    alignas(kLine) char two[kLine];
    for (int64_t i = 0; i < 2; i++) put(two, numbers, i * 16, there(row, numbers, line * 32 + i * 16));
    return load_bytes(two);
  }

  static const char* operand(const float* x, int64_t pitch, int64_t rows, int64_t numbers, int64_t* stride) {
    *stride = stride_of(units(numbers) * kUnit);
    auto* to = static_cast<char*>(scratch(kQuerySlot, kQueries * *stride));
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < up(numbers, 32); i += 16)
        put(to + r * *stride, numbers, i, there(x + r * pitch, numbers, i));
    return to;
  }

  static char* shares(float*, int64_t, int64_t numbers, int64_t* stride) {
    *stride = stride_of(units(numbers) * kUnit);
    return static_cast<char*>(scratch(kShareSlot, kQueries * *stride));
  }

  // Numbers j .. j + 15 of a row.
  static void put(char* row, int64_t, int64_t j, const F16& x) { store_upper(row + j * 2, to_bfloat16(x)); }

  // Numbers i .. i + 15 of a row, zeros past its end.
  static F16 there(const float* row, int64_t numbers, int64_t i) {
    return i < numbers ? load_part(row + i, numbers - i) : F16{};
  }

  // The upper halves of two numbers' bits, the first one in the lower half.
  static I16 pair(const I16& first, const I16& second) {
    return (first >> 16 & 0xffff) | (second & static_cast<int32_t>(0xffff0000));
  }
};
#endif

#if defined(__AMX_INT8__)
// Each number as the sum of two bfloat16, high and low: a b = ah bh + ah bl + al bh, to about 2^-16, as one product
// three times as long: [ah ah al] by [bh bl bh]. The matrix instructions take it faster than float32 all the same.
struct Split {
  using Dot = BFloat16;
  static constexpr int kQueries = kBlockRows;

  static int64_t third(int64_t numbers) { return Half::units(numbers); }
  static int64_t units(int64_t numbers) { return 3 * third(numbers); }

  static F16 part(const F16& x, bool low) {
    const F16 high = as_floats(to_bfloat16(x));
    return low ? x - high : high;
  }

  static I16 line(const float* rows, int64_t pitch, int64_t numbers, int64_t unit, int64_t left) {
    const bool low = unit / third(numbers) == 1;
    const int64_t first = unit % third(numbers) * 2;
    const auto number = [&](int64_t i) {
      return i < numbers ? to_bfloat16(part(load_part(rows + i * pitch, left), low)) : I16{};
    };
    return Half::pair(number(first), number(first + 1));
  }

  static I16 row_line(const float* row, int64_t numbers, int64_t line) {
    const int64_t lines = third(numbers) / 16, first = line % lines * 32;
    alignas(kLine) char two[kLine];
    for (int64_t i = 0; i < 2; i++)
      Half::put(two, numbers, i * 16, part(Half::there(row, numbers, first + i * 16), line / lines == 1));
    return load_bytes(two);
  }

  static const char* operand(const float* x, int64_t pitch, int64_t rows, int64_t numbers, int64_t* stride) {
    *stride = stride_of(units(numbers) * kUnit);
    auto* to = static_cast<char*>(scratch(kQuerySlot, kQueries * *stride));
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < 2 * third(numbers); i += 16)
        put(to + r * *stride, numbers, i, Half::there(x + r * pitch, numbers, i));
    return to;
  }

  static char* shares(float*, int64_t, int64_t numbers, int64_t* stride) {
    *stride = stride_of(units(numbers) * kUnit);
    return static_cast<char*>(scratch(kShareSlot, kQueries * *stride));
  }

  // Numbers j .. j + 15 of a row: high, high, low.
  static void put(char* row, int64_t numbers, int64_t j, const F16& x) {
    const int64_t bytes = third(numbers) * kUnit;
    for (int64_t i = 0; i < 3; i++) Half::put(row + i * bytes, numbers, j, part(x, i == 2));
  }
};
#endif

// Keys [Tk][Dh] -> panels of 16 keys; `pitch` floats apart.
template <class How>
const char* pack_keys(const float* k, int64_t pitch, int64_t keys, int64_t width) {
  const int64_t lines = (How::units(width) + 15) / 16, panel = lines * 16 * kLine, count = up(keys, kColumns) / 16;
  auto* to = static_cast<char*>(scratch(kKeySlot, count * panel));
  for (int64_t p = 0; p < count; p++)
    pack_panel<typename How::Dot>(
        [&](int64_t r, int64_t l) { return How::row_line(k + (p * 16 + r) * pitch, width, l); },
        least(16, keys - p * 16), lines, to + p * panel);
  return to;
}

// Values [Tk][Dh] -> panels of 16 of a value's Dh numbers, an even count of panels.
template <class How>
const char* pack_values(const float* v, int64_t pitch, int64_t keys, int64_t width) {
  const int64_t units = How::units(keys), count = up(width, kColumns) / 16;
  auto* to = static_cast<char*>(scratch(kValueSlot, count * units * kLine));
  for (int64_t p = 0; p < count; p++)
    for (int64_t u = 0; u < units; u++) {
      const I16 line = p * 16 < width ? How::line(v + p * 16, pitch, keys, u, width - p * 16) : I16{};
      store_bytes(to + (p * units + u) * kLine, line);
    }
  return to;
}

// Scores [..keys] of `all` -> e^(score - the largest) at `row`, zeros up to `end`; returns 1 / their sum.
template <class How>
inline float soften(float* scores, int64_t keys, int64_t end, char* row, int64_t all) {
  for (int64_t j = keys; j < up(keys, 16); j++) scores[j] = -INFINITY;  // the row's room is a multiple of 32
  F16 most = splat(-INFINITY);
  for (int64_t j = 0; j < keys; j += 16) most = max(most, load(scores + j));
  const float top = largest(most);
  F16 total{};
  for (int64_t j = 0; j < keys; j += 16) {
    const F16 y = exp_below(load(scores + j) - top);
    How::put(row, all, j, y);
    total += y;
  }
  for (int64_t j = up(keys, 16); j < end; j += 16) How::put(row, all, j, F16{});
  return 1 / sum(total);
}

// One head's packed keys and values [count][width], multiplied as `How` says.
template <class How>
struct Head {
  const char *keys, *values;
  int64_t count, width;

  Head(const float* k, int64_t k_pitch, const float* v, int64_t v_pitch, int64_t count, int64_t width)
      : keys(pack_keys<How>(k, k_pitch, count, width)),
        values(pack_values<How>(v, v_pitch, count, width)),
        count(count),
        width(width) {}

  // Queries [..][width] -> context [..][width]. With `causal` query i sees the first `seen` + i keys, else all.
  void context(const float* q, int64_t q_pitch, int64_t queries, int64_t seen, bool causal, float* out,
               int64_t out_pitch) const {
    constexpr int kQueries = How::kQueries;
    const int64_t room = up(count, kColumns);
    auto* scores = static_cast<float*>(scratch(kScoreSlot, kQueries * room * 4));
    float scale[kQueries];
    int64_t stride;
    char* shares = How::shares(scores, room, count, &stride);
    for (int64_t first = 0; first < queries; first += kQueries) {
      const int64_t here = least(kQueries, queries - first), most = causal ? seen + first + here - 1 : count;
      score(q + first * q_pitch, q_pitch, here, most, scores, room);
      for (int64_t i = 0; i < here; i++)
        scale[i] = soften<How>(scores + i * room, causal ? seen + first + i : count, up(most, kColumns),
                               shares + i * stride, count);
      blend(shares, stride, here, most, scale, out + first * out_pitch, out_pitch);
    }
  }

 private:
  void score(const float* q, int64_t pitch, int64_t queries, int64_t most, float* scores, int64_t room) const {
    const int64_t units = How::units(width), panel = up(units, 16) * kLine;
    int64_t stride;
    const char* rows = How::operand(q, pitch, queries, width, &stride);
    Ahead nothing;
    for (int64_t j = 0; j < most; j += kColumns)
      block<typename How::Dot>(queries, {rows, stride}, {keys + j / 16 * panel, panel}, units, Store{scores + j, room},
                               nothing);
  }

  void blend(const char* shares, int64_t stride, int64_t queries, int64_t most, const float* scale, float* out,
             int64_t out_pitch) const {
    const int64_t panel = How::units(count) * kLine, units = most == count ? How::units(count) : most;
    alignas(64) float result[How::kQueries * kColumns];
    Ahead nothing;
    for (int64_t d = 0; d < width; d += kColumns) {
      block<typename How::Dot>(queries, {shares, stride}, {values + d / 16 * panel, panel}, units,
                               Store{result, kColumns}, nothing);
      for (int64_t i = 0; i < queries; i++)
        for (int64_t p = 0; p < 2 && d + p * 16 < width; p++)
          store_part(out + i * out_pitch + d + p * 16, load(result + i * kColumns + p * 16) * scale[i],
                     width - d - p * 16);
    }
  }
};

template <class How>
void attention_by(const Attention& a) {
  const int64_t heads = a.batch * a.heads;
  const int64_t cuts = (2 * threads() + heads - 1) / heads;  // a head's queries are shared out where heads are few
  const int64_t step = up((a.queries + cuts - 1) / cuts, How::kQueries), parts = (a.queries + step - 1) / step;
  parallel(heads * parts, [&](int64_t task) {
    const Blocks scope;
    const int64_t b = task / parts / a.heads, h = task / parts % a.heads, first = task % parts * step;
    const float *k = a.k + b * a.k_batch + h * a.width, *v = a.v + b * a.v_batch + h * a.width;
    const Head<How> head(k, a.k_row, v, a.v_row, a.keys, a.width);
    const int64_t width = a.heads * a.width;
    head.context(a.q + b * a.q_batch + first * a.q_row + h * a.width, a.q_row, least(step, a.queries - first), 0, false,
                 a.out + (b * a.queries + first) * width + h * a.width, width);
  });
}

inline void attention(const Attention& a) {
#if defined(__AMX_INT8__)
  constexpr int64_t kEnough = 4 * kBlockRows;  // queries that repay packing keys and values in three parts
  if (a.width % 32 == 0 && a.queries >= kEnough) return a.exact ? attention_by<Split>(a) : attention_by<Half>(a);
#elif defined(__AVX512BF16__)
  if (!a.exact) return attention_by<Half>(a);
#endif
  attention_by<Plain>(a);
}

// x cos + swap(x) sin, the first half of swap negated: [Dh] of one head.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t width, float* out) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; i++) {
    out[i] = x[i] * cos[i] - x[i + half] * sin[i];
    out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
  }
}

// One sequence's head with its prefix, gathered from the packed rows: keys and values [P + T][Dh], queries [T or
// 1][Dh].
struct Gathered {
  float *keys, *values, *queries, *context;

  Gathered(const PackedAttention& a, int64_t b, int64_t h) {
    const int64_t w = a.width, row = a.heads * w, rows = a.visual + a.text, all = a.prefix + rows;
    keys = static_cast<float*>(scratch(kHeadSlot, (all * 2 + rows * 2) * w * 4));
    values = keys + all * w, queries = values + all * w, context = queries + rows * w;
    for (int64_t p = 0; p < a.prefix; p++) {
      std::memcpy(keys + p * w, a.prefix_kv + p * row + h * w, w * 4);
      std::memcpy(values + p * w, a.prefix_kv + (a.prefix + p) * row + h * w, w * 4);
    }
    for (int64_t t = 0; t < rows; t++) {
      const float* kv =
          t < a.visual ? a.kv_visual + (b * a.visual + t) * 2 * row : a.kv_text + (b * a.text + t - a.visual) * 2 * row;
      rotate(kv + h * w, a.turns + t * w, a.turns + (rows + t) * w, w, keys + (a.prefix + t) * w);
      std::memcpy(values + (a.prefix + t) * w, kv + row + h * w, w * 4);
    }
    for (int64_t t = a.last ? rows - 1 : 0; t < rows; t++)
      rotate(a.q + place(a, b, t) * row + h * w, a.turns + t * w, a.turns + (rows + t) * w, w,
             queries + (a.last ? 0 : t) * w);
  }

  // The row of q and of the result that token t of sequence b has.
  static int64_t place(const PackedAttention& a, int64_t b, int64_t t) {
    if (a.last) return b;
    return t < a.visual ? b * a.visual + t : a.batch * a.visual + b * a.text + t - a.visual;
  }
};

inline void packed_attention(const PackedAttention& a) {
  parallel(a.batch * a.heads, [&](int64_t task) {
    const int64_t b = task / a.heads, h = task % a.heads, w = a.width, rows = a.visual + a.text, all = a.prefix + rows;
    const Gathered g(a, b, h);
    const Head<Plain> head(g.keys, w, g.values, w, all, w);
    const int64_t queries = a.last ? 1 : rows;
    head.context(g.queries, w, queries, a.last ? all : a.prefix + 1, true, g.context, w);
    for (int64_t i = 0; i < queries; i++)
      std::memcpy(a.out + Gathered::place(a, b, i) * a.heads * w + h * w, g.context + i * w, w * 4);
  });
}

}  // namespace QK_ISA
}  // namespace qk
