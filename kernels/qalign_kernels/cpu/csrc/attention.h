// Attention of one head at a time: its keys and values are packed once, then a few queries meet a chunk of keys after
// another, so that their scores stay in the first cache.
//
// For each query we keep the largest score so far, and sums over e^(score - that one). A larger score scales the sums
// down (Milakov and Gimelshein's online softmax, with values as in FlashAttention).
#pragma once

#include "attention_numbers.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace qk {
namespace QK_ISA {

// Keys [Tk][Dh] -> panels of 16 keys each.
template <class How>
const char* pack_keys(const How& how, const float* k, int64_t keys, int64_t width) {
  const int64_t lines = (How::units(width) + 15) / 16, panel = lines * 16 * kLine, count = up(keys, kColumns) / 16;
  auto* to = static_cast<char*>(scratch(kKeySlot, count * panel));
  for (int64_t p = 0; p < count; p++)
    pack_panel<typename How::Dot>(
        [&](int64_t r, int64_t l) { return how.key_line(k + (p * 16 + r) * width, width, l, p * 16 + r); },
        least(16, keys - p * 16), lines, to + p * panel);
  return to;
}

// Values [Tk][Dh] -> panels of 16 of a value's Dh numbers, for each chunk of keys. Each chunk has an even count of
// panels.
template <class How>
const char* pack_values(const How& how, const float* v, int64_t keys, int64_t width) {
  const int64_t room = How::units(kChunk), panels = up(width, kColumns) / 16, chunks = (keys + kChunk - 1) / kChunk;
  auto* to = static_cast<char*>(scratch(kValueSlot, chunks * panels * room * kLine));
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t from = c * kChunk, count = least(kChunk, keys - from), units = How::units(count);
    for (int64_t p = 0; p < panels; p++)
      for (int64_t u = 0; u < units; u++) {
        const int64_t column = p * 16, left = width - column;
        const I16 line = left > 0 ? how.value_line(v + from * width, width, count, u, column) : I16{};
        store_bytes(to + ((c * panels + p) * room + u) * kLine, line);
      }
  }
  return to;
}

// One head's packed keys and values [count][width], multiplied in the numbers of `How`.
template <class How>
class Head {
 public:
  Head(const float* k, int64_t k_pitch, const float* v, int64_t v_pitch, int64_t count, int64_t width)
      : count(count), width(width) {
    k = gather(k, k_pitch, count, width);
    how.meet_keys(k, count, width);
    keys = pack_keys(how, k, count, width);
    v = gather(v, v_pitch, count, width);
    how.meet_values(v, count, width);
    values = pack_values(how, v, count, width);
  }

  // Queries [..][width] -> context [..][width]. With `causal`, query i sees the first `seen` + i keys; else all keys.
  void context(const float* q, int64_t q_pitch, int64_t queries, int64_t seen, bool causal, float* out,
               int64_t out_pitch) const {
    const int64_t pitch = up(width, kColumns);
    auto* scores = static_cast<float*>(scratch(kScoreSlot, kQueries * kPitch * 4));
    auto* sums = static_cast<float*>(scratch(kContextSlot, kQueries * pitch * 4));
    for (int64_t first = 0; first < queries; first += kQueries) {
      const int64_t here = least(kQueries, queries - first), most = causal ? seen + first + here - 1 : count;
      const auto seen_by = [&](int64_t i) { return causal ? seen + first + i : count; };
      fetch(q + (first + here) * q_pitch, q_pitch, least(kQueries, queries - first - here), width);
      int64_t stride;
      const char* rows = how.operand(q + first * q_pitch, q_pitch, here, width, &stride);
      float tops[kQueries];
      F16 totals[kQueries];
      for (int64_t from = 0; from < most; from += kChunk) {
        const int64_t some = least(kChunk, most - from);
        score(rows, stride, here, from, some, scores);
        soften(seen_by, here, from, some, scores, tops, totals, sums, pitch);
        blend(scores, here, from, some, sums, pitch);
      }
      for (int64_t i = 0; i < here; i++) {
        const float share = 1 / sum(totals[i]);
        for (int64_t d = 0; d < width; d += 16)
          store_result(out + (first + i) * out_pitch + d, load(sums + i * pitch + d) * (how.scale(d) * share),
                       width - d, queries * out_pitch * 4);
      }
    }
  }

 private:
  How how;
  const char *keys, *values;
  int64_t count, width;

  // The scores of queries by keys from .. from + some - 1.
  void score(const char* rows, int64_t stride, int64_t queries, int64_t from, int64_t some, float* scores) const {
    const int64_t units = How::units(width), panel = up(units, 16) * kLine;
    Ahead nothing;
    for (int64_t j = 0; j < some; j += kColumns)
      block<typename How::Dot>(queries, {rows, stride}, {keys + (from + j) / 16 * panel, panel}, units,
                               Store{scores + j, kPitch}, nothing);
  }

  // A chunk's scores -> weights e^(score - the largest so far), zeros where a query does not see a key. What we keep
  // for each query changes with them.
  template <class SeenBy>
  void soften(const SeenBy& seen_by, int64_t queries, int64_t from, int64_t some, float* scores, float* tops,
              F16* totals, float* sums, int64_t pitch) const {
    int64_t stride;
    char* weights = how.weights(scores, &stride);
    float largest_here[kQueries];
    for (int64_t i = 0; i < queries; i++) {
      float* row = scores + i * kPitch;
      const int64_t keys = least(some, seen_by(i) - from);
      F16 most = splat(-INFINITY);
      int64_t j = 0;
      for (; j + 16 <= keys; j += 16) {
        const F16 x = how.score(row + j, from + j);
        store(row + j, x);
        most = max(most, x);
      }
      for (; j < up(keys, 32); j += 16) {  // past the query's last key a weight is 0
        store(row + j, j < keys ? how.score(row + j, from + j) : F16{});
        for (int64_t l = keys > j ? keys : j; l < j + 16; l++) row[l] = -INFINITY;
        most = max(most, load(row + j));
      }
      largest_here[i] = largest(most) * how.query_scale(i);
    }
    const int64_t end = up(some, 32);
    F16 added[kQueries];
    for (int64_t i = 0; i < queries; i++) {
      float *row = scores + i * kPitch, *kept = sums + i * pitch;
      const int64_t keys = least(some, seen_by(i) - from);
      const float before = from ? tops[i] : -INFINITY, top = before > largest_here[i] ? before : largest_here[i];
      const F16 scale = splat(how.query_scale(i)), less = splat(-top);
      const auto weigh = [&](int64_t l) { return exp_below(fused(load(row + l), scale, less)); };
      F16 total{};
      int64_t j = 0;
      for (; j < keys; j += 32) total += how.put(weights + i * stride, some, j, weigh(j), weigh(j + 16));
      for (; j < end; j += 32) how.put(weights + i * stride, some, j, F16{}, F16{});
      added[i] = total;
      tops[i] = top;
      if (!from) {
        totals[i] = total;
        for (int64_t d = 0; d < pitch; d += 16) store(kept + d, F16{});
      } else if (before < top) {
        const float shrink = exp_below(splat(before - top))[0];
        totals[i] = totals[i] * shrink + total;
        for (int64_t d = 0; d < pitch; d += 16) store(kept + d, load(kept + d) * shrink);
      } else {
        totals[i] += total;
      }
    }
    for (int64_t i = 0; i < queries; i++) how.meet_weights(weights + i * stride, end, i, sum(added[i]));
  }

  // Adds a chunk's weighted values.
  void blend(float* scores, int64_t queries, int64_t from, int64_t some, float* sums, int64_t pitch) const {
    int64_t stride;
    const char* weights = how.weights(scores, &stride);
    const int64_t panel = How::units(kChunk) * kLine, panels = up(width, kColumns) / 16;
    Ahead nothing;
    for (int64_t d = 0; d < width; d += kColumns)
      block<typename How::Dot>(queries, {weights, stride}, {values + (from / kChunk * panels + d / 16) * panel, panel},
                               How::units(some), how.adding(sums + d, pitch), nothing);
  }
};

template <class How>
void attention_by(const Attention& a) {
  const int64_t heads = a.batch * a.heads;
  const int64_t cuts =
      (2 * threads() + heads - 1) / heads;  // where there are few heads, a head's queries are shared out
  const int64_t step = up((a.queries + cuts - 1) / cuts, kQueries), parts = (a.queries + step - 1) / step;
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
  constexpr int64_t kEnough = 4 * kBlockRows;  // queries from which on it pays to pack keys and values in three parts
  if (a.width % 32 == 0 && a.queries >= kEnough) return a.exact ? attention_by<Split>(a) : attention_by<Half>(a);
#elif defined(QK_WHOLE16)
  if (!a.exact) return attention_by<Whole16>(a);
#endif
  attention_by<Plain>(a);
}

// x cos + swap(x) sin for the [Dh] numbers of a head; swap exchanges the halves and negates the first.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t width, float* out) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; i++) {
    out[i] = x[i] * cos[i] - x[i + half] * sin[i];
    out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
  }
}

// A head of one sequence with its prefix, gathered from rows by modality: keys and values [P + T][Dh], queries [T or
// 1][Dh].
struct Gathered {
  float *keys, *values, *queries, *context;

  Gathered(const AttentionByModality& a, int64_t b, int64_t h) {
    const int64_t w = a.width, row = a.heads * w, rows = a.visual + a.text, all = a.prefix + rows;
    keys = static_cast<float*>(scratch(kHeadSlot, (all * 2 + rows * 2) * w * 4));
    values = keys + all * w, queries = values + all * w, context = queries + rows * w;
    for (int64_t p = 0; p < a.prefix; p++) {
      std::memcpy(keys + p * w, a.prefix_kv + p * row + h * w, w * 4);
      std::memcpy(values + p * w, a.prefix_kv + (a.prefix + p) * row + h * w, w * 4);
    }
    const auto kv_of = [&](int64_t t) {
      const bool visual = t < a.visual;
      return (visual ? a.kv_visual + (b * a.visual + t) * 2 * row : a.kv_text + (b * a.text + t - a.visual) * 2 * row) +
             h * w;
    };
    const auto q_of = [&](int64_t t) { return a.q + place(a, b, t) * row + h * w; };
    for (int64_t t = 0; t < rows; t++) {
      if (t + kAhead < rows) fetch(kv_of(t + kAhead), row, 2, w);
      const float* kv = kv_of(t);
      rotate(kv, a.turns + t * w, a.turns + (rows + t) * w, w, keys + (a.prefix + t) * w);
      std::memcpy(values + (a.prefix + t) * w, kv + row, w * 4);
    }
    for (int64_t t = a.last ? rows - 1 : 0; t < rows; t++) {
      if (t + kAhead < rows) fetch(q_of(t + kAhead), row, 1, w);
      rotate(q_of(t), a.turns + t * w, a.turns + (rows + t) * w, w, queries + (a.last ? 0 : t) * w);
    }
  }

  // The row that token t of sequence b has in q and in the result.
  static int64_t place(const AttentionByModality& a, int64_t b, int64_t t) {
    if (a.last) return b;
    return t < a.visual ? b * a.visual + t : a.batch * a.visual + b * a.text + t - a.visual;
  }
};

inline void attention_by_modality(const AttentionByModality& a) {
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
