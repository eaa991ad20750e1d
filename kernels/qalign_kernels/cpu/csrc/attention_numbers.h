// The numbers that attention is multiplied in: float32, whole numbers of 16 bits, one bfloat16, or the sum of two.
//
// A struct here is a `How` of attention.h. It says how keys, values, queries and weights become operands of `block`,
// and how sums become scores and context.
#pragma once

#include "linear.h"

namespace qk {
namespace QK_ISA {

enum AttentionSlot {
  kKeySlot = 3,
  kValueSlot,
  kScoreSlot,
  kHeadSlot,
  kWeightSlot,
  kQuerySlot,
  kScalesSlot,
  kGatheredSlot,
  kContextSlot
};

constexpr int kChunk = 256;          // keys at a time
constexpr int kPitch = kChunk + 16;  // from one query's scores to the next; a power of two would share few cache sets
constexpr int kQueries = kBlockRows > 24 ? kBlockRows : (24 / kRows) * kRows;  // at a time

// What those have in common whose sums are the results themselves, without scales.
struct Unscaled {
  // Called with a head's keys and values before they are packed.
  void meet_keys(const float*, int64_t /*keys*/, int64_t /*width*/) {}
  void meet_values(const float*, int64_t, int64_t) {}

  // Query i's sums by 16 keys from `at` on -> their scores, divided by query_scale(i).
  static F16 score(const float* sums, int64_t /*at*/) { return load(sums); }
  static float query_scale(int64_t /*i*/) { return 1; }

  // Called with query i's row of a chunk's weights, which has zeros up to `end`, and with their sum.
  static void meet_weights(char*, int64_t /*end*/, int64_t /*i*/, float) {}

  // Where the sums of values go.
  static Store adding(float* to, int64_t pitch) { return {to, pitch, true}; }

  // What the sums of 16 columns are multiplied by.
  static F16 scale(int64_t) { return splat(1.f); }
};

constexpr int64_t kAhead = 16;  // how many rows ahead memory is prefetched

// Prefetches rows [count][width] that are `pitch` floats apart: too far for a CPU to foresee the next one by itself.
inline void fetch(const float* rows, int64_t pitch, int64_t count, int64_t width) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < width; d += kLine / 4) __builtin_prefetch(rows + i * pitch + d, 0, 2);
}

// Copies such rows so that they follow one another: where they lay they would share a few sets of the caches.
inline const float* gather(const float* rows, int64_t pitch, int64_t count, int64_t width) {
  auto* to = static_cast<float*>(scratch(kGatheredSlot, count * width * 4));
  fetch(rows, pitch, least(kAhead, count), width);
  for (int64_t i = 0; i < count; i++) {
    if (i + kAhead < count) fetch(rows + (i + kAhead) * pitch, pitch, 1, width);
    std::memcpy(to + i * width, rows + i * pitch, width * 4);
  }
  return to;
}

// Numbers i .. i + 15 of a row, zeros past its end.
inline F16 there(const float* row, int64_t numbers, int64_t i) {
  return i < numbers ? load_part(row + i, numbers - i) : F16{};
}

// 32 numbers of 16 bits as a line. Each unit has two of them that are 16 apart.
inline I16 twos(const I16& first, const I16& second) { return (first & 0xffff) | second << 16; }

// The index of the first of the two numbers in unit `unit` of such lines.
inline int64_t first_in(int64_t unit) { return unit / 16 * 32 + unit % 16; }

// float32 numbers as they are.
struct Plain : Unscaled {
  using Dot = Float32;

  static int64_t units(int64_t numbers) { return numbers; }

  // Line `line` of a key, 16 units; `index` is the key's.
  static I16 key_line(const float* key, int64_t width, int64_t line, int64_t /*index*/) {
    return as_ints(there(key, width, line * 16));
  }

  // Unit `unit` of `count` values, 16 columns from `column` on.
  static I16 value_line(const float* values, int64_t width, int64_t count, int64_t unit, int64_t column) {
    return as_ints(unit < count ? load_part(values + unit * width + column, width - column) : F16{});
  }

  // Queries as they are multiplied; *stride is the bytes from one to the next.
  static const char* operand(const float* q, int64_t pitch, int64_t queries, int64_t width, int64_t* stride) {
    *stride = stride_of(width * 4);
    auto* to = static_cast<char*>(scratch(kQuerySlot, kQueries * *stride));
    for (int64_t r = 0; r < queries; r++) std::memcpy(to + r * *stride, q + r * pitch, width * 4);
    return to;
  }

  // Where a chunk's weights go, in rows like those of an operand: here in place of their scores.
  static char* weights(float* scores, int64_t* stride) {
    *stride = kPitch * 4;
    return reinterpret_cast<char*>(scores);
  }

  // Stores weights j .. j + 31 of a row of `keys` as they are multiplied, and returns the sums of each 16.
  static F16 put(char* row, int64_t /*keys*/, int64_t j, const F16& x, const F16& y) {
    store(reinterpret_cast<float*>(row) + j, x);
    store(reinterpret_cast<float*>(row) + j + 16, y);
    return x + y;
  }
};

#if defined(QK_BYTES) && defined(__x86_64__) && !defined(__AMX_INT8__)
#define QK_WHOLE16
// Whole numbers of 16 bits, as large as the 32 bits of sums allow, in half the instructions of float32. Each query and
// each key has a scale, and so has each column of values. This is enough for engines of 16 bits and fewer.
struct Whole16 {
  using Dot = Pairs;
  static constexpr float kSum = 2147483000.f, kItem = 32767.f, kValue = 4095.f;
  static constexpr float kWeight = kItem / 2;  // large scores are rounded before the largest one is subtracted

  // scales
  float* query;
  float* key;
  float* weight;  // one for each query, for its weights in a chunk
  float* value;
  float* to_value;  // the factors that turn values into whole numbers

  void meet_keys(const float* k, int64_t keys, int64_t width) {
    const int64_t columns = up(width, 16);
    query = static_cast<float*>(scratch(kScalesSlot, (2 * kQueries + up(keys, 16) + 2 * columns) * 4));
    weight = query + kQueries, key = weight + kQueries, value = key + up(keys, 16), to_value = value + columns;
    for (int64_t i = 0; i < keys; i++) key[i] = scale_of(k + i * width, width);
  }

  void meet_values(const float* v, int64_t keys, int64_t width) {
    for (int64_t d = 0; d < width; d += 16) {
      F16 most = splat(kTiny);
      for (int64_t i = 0; i < keys; i++) most = max(most, magnitude(load_part(v + i * width + d, width - d)));
      store(value + d, most / kValue);
      store(to_value + d, kValue / most);
    }
  }

  static int64_t units(int64_t numbers) { return up(numbers, 32) / 2; }

  I16 key_line(const float* row, int64_t width, int64_t line, int64_t index) const {
    return line_of(row, width, line, 1 / key[index]);
  }

  I16 value_line(const float* values, int64_t width, int64_t count, int64_t unit, int64_t column) const {
    const F16 factor = load(to_value + column);
    const auto number = [&](int64_t i) {
      return i < count ? nearest(load_part(values + i * width + column, width - column) * factor) : I16{};
    };
    return twos(number(first_in(unit)), number(first_in(unit) + 16));
  }

  const char* operand(const float* q, int64_t pitch, int64_t queries, int64_t width, int64_t* stride) const {
    *stride = stride_of(units(width) * kUnit);
    auto* to = static_cast<char*>(scratch(kQuerySlot, kQueries * *stride));
    for (int64_t r = 0; r < queries; r++) {
      query[r] = scale_of(q + r * pitch, width);
      for (int64_t line = 0; line < units(width) / 16; line++)
        store_bytes(to + r * *stride + line * kLine, line_of(q + r * pitch, width, line, 1 / query[r]));
    }
    return to;
  }

  static char* weights(float* scores, int64_t* stride) { return Plain::weights(scores, stride); }

  static F16 put(char* row, int64_t keys, int64_t j, const F16& x, const F16& y) {
    return Plain::put(row, keys, j, x, y);
  }

  void meet_weights(char* row, int64_t end, int64_t i, float total) const {
    const float factor = std::fmin(kWeight, (kSum / kValue - end / 2) / total);  // rounding adds at most a half to each
    const auto number = [&](int64_t j) { return nearest(load(reinterpret_cast<float*>(row) + j) * factor); };
    for (int64_t j = 0; j < end; j += 32) store_bytes(row + j * 2, twos(number(j), number(j + 16)));
    weight[i] = 1 / factor;
  }

  F16 score(const float* sums, int64_t at) const { return to_floats(load_bytes(sums)) * load(key + at); }
  float query_scale(int64_t i) const { return query[i]; }

  struct Adding {
    float* to;
    int64_t pitch;
    const float* weight;

    void operator()(int64_t row, int64_t column, Ints sum) const {
      auto* at = reinterpret_cast<FloatsThere*>(to + row * pitch + column);
      *at = fused(__builtin_convertvector(sum, Floats), all_of(weight[row]), *at);
    }

    Adding moved(int64_t row, int64_t column) const { return {to + row * pitch + column, pitch, weight + row}; }
  };

  Adding adding(float* to, int64_t pitch) const { return {to, pitch, weight}; }

  F16 scale(int64_t column) const { return load(value + column); }

 private:
  static constexpr float kTiny = 1e-30f;

  // Line `line` of a query or of a key.
  static I16 line_of(const float* row, int64_t width, int64_t line, float factor) {
    const auto number = [&](int64_t i) { return nearest(there(row, width, i) * factor); };
    return twos(number(line * 32), number(line * 32 + 16));
  }

  static float scale_of(const float* x, int64_t width) {
    return std::fmax(reach(x, width), kTiny) / std::fmin(kItem, std::floor(std::sqrt(kSum / width)));
  }
};
#endif

#if defined(__AMX_INT8__)
// One bfloat16 for each number: enough for engines of 16 bits and fewer.
struct Half : Unscaled {
  using Dot = BFloat16;

  static int64_t units(int64_t numbers) { return up(numbers, 32) / 2; }

  static I16 pair(const F16& first, const F16& second) {
    return twos(to_bfloat16(first) >> 16, to_bfloat16(second) >> 16);
  }

  static I16 key_line(const float* key, int64_t width, int64_t line, int64_t) {
    return pair(there(key, width, line * 32), there(key, width, line * 32 + 16));
  }

  static I16 value_line(const float* values, int64_t width, int64_t count, int64_t unit, int64_t column) {
    const auto number = [&](int64_t i) {
      return i < count ? load_part(values + i * width + column, width - column) : F16{};
    };
    return pair(number(first_in(unit)), number(first_in(unit) + 16));
  }

  static const char* operand(const float* q, int64_t pitch, int64_t queries, int64_t width, int64_t* stride) {
    *stride = stride_of(units(width) * kUnit);
    auto* to = static_cast<char*>(scratch(kQuerySlot, kQueries * *stride));
    for (int64_t r = 0; r < queries; r++)
      for (int64_t line = 0; line < units(width) / 16; line++)
        store_bytes(to + r * *stride + line * kLine, key_line(q + r * pitch, width, line, r));
    return to;
  }

  static char* weights(float*, int64_t* stride) {
    *stride = stride_of(units(kChunk) * kUnit);
    return static_cast<char*>(scratch(kWeightSlot, kQueries * *stride));
  }

  static F16 put(char* row, int64_t, int64_t j, const F16& x, const F16& y) {
    store_bytes(row + j * 2, pair(x, y));
    return x + y;
  }
};

// The sum of two bfloat16, high and low, for each number. a b = ah bh + ah bl + al bh to about 2^-16, computed as one
// product that is three times as long: [ah ah al] by [bh bl bh]. With matrix instructions this is still faster than
// float32.
struct Split : Unscaled {
  using Dot = BFloat16;

  static int64_t third(int64_t numbers) { return Half::units(numbers); }
  static int64_t units(int64_t numbers) { return 3 * third(numbers); }

  static F16 part(const F16& x, bool low) {
    const F16 high = as_floats(to_bfloat16(x));
    return low ? x - high : high;
  }

  static I16 pair(const F16& first, const F16& second, bool low) {
    return Half::pair(part(first, low), part(second, low));
  }

  static I16 key_line(const float* key, int64_t width, int64_t line, int64_t) {
    const int64_t lines = third(width) / 16, first = line % lines * 32;
    return pair(there(key, width, first), there(key, width, first + 16), line / lines == 1);
  }

  static I16 value_line(const float* values, int64_t width, int64_t count, int64_t unit, int64_t column) {
    const auto number = [&](int64_t i) {
      return i < count ? load_part(values + i * width + column, width - column) : F16{};
    };
    const int64_t first = first_in(unit % third(count));
    return pair(number(first), number(first + 16), unit / third(count) == 1);
  }

  static const char* operand(const float* q, int64_t pitch, int64_t queries, int64_t width, int64_t* stride) {
    *stride = stride_of(units(width) * kUnit);
    auto* to = static_cast<char*>(scratch(kQuerySlot, kQueries * *stride));
    for (int64_t r = 0; r < queries; r++)
      for (int64_t i = 0; i < width; i += 32)
        put(to + r * *stride, width, i, there(q + r * pitch, width, i), there(q + r * pitch, width, i + 16));
    return to;
  }

  static char* weights(float*, int64_t* stride) {
    *stride = stride_of(units(kChunk) * kUnit);
    return static_cast<char*>(scratch(kWeightSlot, kQueries * *stride));
  }

  // Stores the parts in the order high, high, low.
  static F16 put(char* row, int64_t numbers, int64_t j, const F16& x, const F16& y) {
    const int64_t bytes = third(numbers) * kUnit;
    for (int64_t i = 0; i < 3; i++) store_bytes(row + i * bytes + j * 2, pair(x, y, i == 2));
    return x + y;
  }
};
#endif

}  // namespace QK_ISA
}  // namespace qk
