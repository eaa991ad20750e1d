// The functions that each instruction set's copy of the kernels offers. `dispatch.cpp` hands out the best copy that
// this CPU runs. The contracts (kernels/qalign_kernels/contract) say what the functions compute.
//
// Letters: M rows, K inputs, N output channels, B = ceil(K / 128) blocks of inputs. All tensors are row-major.
#pragma once

#include <cstdint>

namespace qk {

enum Kind : int64_t { kFloat32, kFloat16, kBFloat16, kInt8, kInt4 };

struct Linear {
  Kind kind;
  int64_t rows, inputs, outputs;  // M, K, N
  const float* x;                 // [M, K]
  const void* weight;             // [N, K], int4: [N, B, 64] bytes
  const float* scale;             // [N] of int8 and int4, else null
  const uint8_t* groups;          // [N, 4 B] of int4
  const float* bias;              // [N] or null
  const float* residual;          // [M, N] or null
  int64_t quick_gelu;             // 1: applied after the bias and before the residual
  float* out;                     // [M, N]
};

struct Attention {
  int64_t batch, heads, queries, keys, width;  // B, H, Tq, Tk, Dh
  const float *q, *k, *v;                      // [B, T, H*Dh] each; floats from one row or batch to the next:
  int64_t q_row, k_row, v_row, q_batch, k_batch, v_batch;
  int64_t exact;  // 0: operands may be rounded to 16 bits
  float* out;     // [B, Tq, H*Dh]
};

struct AttentionByModality {
  int64_t batch, heads, width, visual, text, prefix, last;  // B, H, Dh, V, S, P; last: 1 where q is [B, D]
  const float *q, *kv_visual, *kv_text, *prefix_kv, *turns;
  float* out;
};

struct Table {
  const char* name;
  void (*linear)(const Linear&);
  void (*layer_norm)(const float* x, const float* gain, const float* bias, float eps, int64_t rows, int64_t width,
                     float* out);
  void (*rms_norm)(const float* x, const float* gain, float eps, int64_t rows, int64_t width, float* out);
  void (*swiglu)(const float* gate_up, int64_t rows, int64_t width, float* out);
  void (*attention)(const Attention&);
  void (*attention_by_modality)(const AttentionByModality&);
  void (*end_turn)();
  int64_t (*was_starved)();
};

}  // namespace qk
