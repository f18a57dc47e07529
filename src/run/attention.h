#pragma once
#include "run/forward.h"
#include "run/kv_store.h"

namespace mt {

// Keys or values of the KV heads in f32: position p of head h at data + h*head_stride + p*stride.
struct HeadRows {
  const float* data = nullptr;
  int64_t stride = 0, head_stride = 0;
  // Heads of d channels side by side in each row.
  static HeadRows of(ConstMatrix m, int64_t d) { return {m.data, m.stride, d}; }
  ConstMatrix head(int64_t h, int64_t rows, int64_t d) const {
    return {data + h * head_stride, rows, d, stride};
  }
};

// Causal grouped-query attention of consecutive positions of one sequence.
// q: [n, n_heads*d_head], rows are positions first .. first+n-1 (RoPE and norms already applied);
// keys, values: first+n positions, readable 32 floats past the end; out as q.
void attend(const Runtime& rt, const Attention& a, ConstMatrix q, HeadRows keys, HeadRows values,
            int64_t first, Matrix out);

// The same over cached rows of any format and in another order, products of bf16 values for batches
// where those are fast: of the fast path. The same bits for any number of threads. q may have one
// row.
void attend_fast(const Runtime& rt, const Attention& a, ConstMatrix q, const CachedRows& keys,
                 const CachedRows& values, int64_t first, Matrix out);

// The vector-Jacobian product of attend with first = 0. dq, dk, dv are overwritten.
void attend_backward(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
                     ConstMatrix values, ConstMatrix dout, Matrix dq, Matrix dk, Matrix dv);

}  // namespace mt
