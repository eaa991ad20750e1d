// Attention of one head at a time in float32: keys and values packed once, a few queries' scores in the cache.
#pragma once

#include "linear.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

enum AttentionSlot { kKeySlot = 3, kValueSlot, kScoreSlot, kHeadSlot };

// Keys [Tk][Dh] -> panels of 16 keys; `row` floats apart.
inline const char* pack_keys(const float* k, int64_t row, int64_t keys, int64_t width) {
  const int64_t lines = (width + 15) / 16, panel = lines * 16 * kLine, count = (keys + kColumns - 1) / kColumns * 2;
  auto* to = static_cast<char*>(scratch(kKeySlot, count * panel));
  for (int64_t p = 0; p < count; p++) {
    const float* from = k + p * 16 * row;
    const int64_t there = keys - p * 16 < 0 ? 0 : keys - p * 16;
    pack_panel([&](int64_t r, int64_t l) { return (I16)load_part(from + r * row + l * 16, width - l * 16); },
               there < 16 ? there : 16, lines, to + p * panel);
  }
  return to;
}

// Values [Tk][Dh] -> panels of 16 of a value's Dh numbers, an even count of panels.
inline const char* pack_values(const float* v, int64_t row, int64_t keys, int64_t width) {
  const int64_t panel = keys * kLine, count = (width + kColumns - 1) / kColumns * 2;
  auto* to = static_cast<char*>(scratch(kValueSlot, count * panel));
  for (int64_t p = 0; p < count; p++)
    for (int64_t key = 0; key < keys; key++) {
      const int64_t left = width - p * 16;
      store(reinterpret_cast<float*>(to + p * panel + key * kLine), left > 0 ? load_part(v + key * row + p * 16, left) : F16{});
    }
  return to;
}

// Scores [..keys] -> e^(score - the largest), zeros from `keys` to `end`; returns 1 / their sum.
inline float soften(float* scores, int64_t keys, int64_t end) {
  F16 most = splat(-INFINITY);
  for (int64_t j = 0; j < keys; j += 16) {
    const int64_t left = keys - j;
    if (left < 16)
      for (int i = static_cast<int>(left); i < 16; i++) scores[j + i] = -INFINITY;  // the row's room is a multiple of 32
    most = max(most, load(scores + j));
  }
  const float top = largest(most);
  F16 total{};
  for (int64_t j = 0; j < keys; j += 16) {
    const F16 x = load(scores + j) - top, y = x < splat(-87.f) ? F16{} : exp(x);
    store(scores + j, y);
    total += y;
  }
  for (int64_t j = (keys + 15) / 16 * 16; j < end; j++) scores[j] = 0;
  return 1 / sum(total);
}

// Queries [count][Dh] by packed keys and values -> context [count][Dh]. Query i sees `seen` + i keys, or all.
struct Head {
  const char *keys, *values;
  int64_t count, width;  // Tk, Dh

  void context(const float* q, int64_t q_row, int64_t queries, int64_t seen, bool causal, float* out, int64_t out_row) const {
    const int64_t key_panel = (width + 15) / 16 * 16 * kLine, value_panel = count * kLine;
    const int64_t room = (count + kColumns - 1) / kColumns * kColumns;
    auto* scores = static_cast<float*>(scratch(kScoreSlot, kRows * (room + kColumns) * 4));
    float* result = scores + kRows * room;  // [kRows][32]
    float shares[kRows];
    for (int64_t first = 0; first < queries; first += kRows) {
      const int64_t here = queries - first < kRows ? queries - first : kRows;
      const int64_t most = causal ? seen + first + here - 1 : count;
      for (int64_t j = 0; j < most; j += kColumns)
        block<Float32>(here, reinterpret_cast<const char*>(q + first * q_row), q_row * 4, keys + j / 16 * key_panel,
                       key_panel, width, scores + j, room);
      for (int64_t i = 0; i < here; i++)
        shares[i] = soften(scores + i * room, causal ? seen + first + i : count, most);
      for (int64_t d = 0; d < width; d += kColumns) {
        block<Float32>(here, reinterpret_cast<const char*>(scores), room * 4, values + d / 16 * value_panel, value_panel,
                       most, result, kColumns);
        for (int64_t i = 0; i < here; i++)
          for (int p = 0; p < 2 && d + p * 16 < width; p++)
            store_part(out + (first + i) * out_row + d + p * 16, load(result + i * kColumns + p * 16) * shares[i],
                       width - d - p * 16);
      }
    }
  }
};

inline void attention(const Attention& a) {
  const int64_t heads = a.batch * a.heads;
  const int64_t least_parts = (2 * threads() + heads - 1) / heads;  // a head's queries are shared out where heads are few
  const int64_t step = up((a.queries + least_parts - 1) / least_parts, kRows), parts = (a.queries + step - 1) / step;
  parallel(heads * parts, [&](int64_t task) {
    const int64_t b = task / parts / a.heads, h = task / parts % a.heads, first = task % parts * step;
    const float *k = a.k + b * a.k_batch + h * a.width, *v = a.v + b * a.v_batch + h * a.width;
    const Head head{pack_keys(k, a.k_row, a.keys, a.width), pack_values(v, a.v_row, a.keys, a.width), a.keys, a.width};
    const int64_t width = a.heads * a.width, end = first + step < a.queries ? first + step : a.queries;
    head.context(a.q + b * a.q_batch + first * a.q_row + h * a.width, a.q_row, end - first, 0, false,
                 a.out + (b * a.queries + first) * width + h * a.width, width);
  });
}

// x cos + swap(x) sin, the first half of swap negated: [Dh] of one head.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t width, float* out) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; i++) {
    out[i] = x[i] * cos[i] - x[i + half] * sin[i];
    out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
  }
}

// One sequence's head with its prefix, gathered from the packed rows: keys and values [P + T][Dh], queries [T or 1][Dh].
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
      const float* kv = t < a.visual ? a.kv_visual + (b * a.visual + t) * 2 * row : a.kv_text + (b * a.text + t - a.visual) * 2 * row;
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
    const Head head{pack_keys(g.keys, w, all, w), pack_values(g.values, w, all, w), all, w};
    const int64_t queries = a.last ? 1 : rows;
    head.context(g.queries, w, queries, a.last ? all : a.prefix + 1, true, g.context, w);
    for (int64_t i = 0; i < queries; i++)
      std::memcpy(a.out + Gathered::place(a, b, i) * a.heads * w + h * w, g.context + i * w, w * 4);
  });
}

}  // namespace QK_ISA
}  // namespace qk
