#pragma once
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/kv_strips.h"

namespace mt {

// Products of the few queries that share a KV head with cached strips (kv_strips.h) of one format,
// which are read from memory once for all of them. The fast path's: tables may differ in rounding,
// by far less than the format's own.
struct AttentionKernels {
  // s[h*lds + j] = sum_i q[h*ldq + i] * key(j, i)    h < heads, j < 16 n_strips, i < d
  // Positions that hold nothing give anything. Formats by channel: whole blocks.
  void (*scores)(int64_t heads, int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                 const std::byte* keys, float* s, int64_t lds);
  // out[h*ldo + i] = (accumulate ? itself : 0) + sum_{from <= j < to} p[h*ldp + j] * value(j, i)
  // p: readable to whole strips. Formats by channel, which are of keys only, have none.
  void (*mix)(int64_t heads, int64_t from, int64_t to, int64_t d, const float* p, int64_t ldp,
              const std::byte* values, float* out, int64_t ldo, bool accumulate);
  // Scores with keys by channel that were rounded before RoPE, of blocks `first` and on. q: turned
  // to its position, as always, its channels in the order of the blocks' places (KeyTurns). Turned
  // back by a block's position once a block, it meets keys that are turned by their lanes.
  void (*turned_scores)(int64_t heads, int64_t first, int64_t n_blocks, int64_t d, const float* q,
                        int64_t ldq, const std::byte* keys, const KeyTurns& turns, float* s,
                        int64_t lds) = nullptr;
};

// Of a format that is_key_type.
AttentionKernels reference_attention_kernels(Dtype dtype);
AttentionKernels avx2_attention_kernels(Dtype dtype);
AttentionKernels avx512f_attention_kernels(Dtype dtype);
AttentionKernels avx512_attention_kernels(Dtype dtype);  // with VNNI
// Those that belong to a table.
AttentionKernels attention_kernels(const Kernels& table, Dtype dtype);

}  // namespace mt
