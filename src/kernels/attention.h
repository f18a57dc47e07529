#pragma once
#include <cstdint>

#include "kernels/kernels.h"

namespace mt {

// Products of the few queries that share a KV head with a run of cached rows, which are read from
// memory once for all of them. The fast path's: tables may differ in rounding.
struct AttentionKernels {
  // s[h*lds + j] = sum_i q[h*ldq + i] * keys[j*ldk + i]    h < heads, j < n, i < d
  void (*scores)(int64_t heads, int64_t n, int64_t d, const float* q, int64_t ldq,
                 const float* keys, int64_t ldk, float* s, int64_t lds);
  // out[h*ldo + i] = sum_j p[h*ldp + j] * values[j*ldv + i]
  void (*mix)(int64_t heads, int64_t n, int64_t d, const float* p, int64_t ldp, const float* values,
              int64_t ldv, float* out, int64_t ldo);
};

const AttentionKernels& reference_attention_kernels();
const AttentionKernels& avx512_attention_kernels();
// Those that belong to a table; plain C++ where it has none of its own.
const AttentionKernels& attention_kernels(const Kernels& table);

}  // namespace mt
