#pragma once
#include "run/forward.h"

namespace mt {

// Causal grouped-query attention of consecutive positions of one sequence.
// q: [n, n_heads*d_head], rows are positions first .. first+n-1 (RoPE and norms already applied);
// keys, values: [first+n, n_kv_heads*d_head], readable 32 floats past the end; out as q.
void attend(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
            ConstMatrix values, int64_t first, Matrix out);

// The same sums in another order, products of bf16 values for batches where those are fast: of the
// fast path. The same bits for any number of threads. q may have one row.
void attend_fast(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
                 ConstMatrix values, int64_t first, Matrix out);

// The vector-Jacobian product of attend with first = 0. dq, dk, dv are overwritten.
void attend_backward(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
                     ConstMatrix values, ConstMatrix dout, Matrix dq, Matrix dk, Matrix dv);

}  // namespace mt
