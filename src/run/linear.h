#pragma once
#include <span>

#include "kernels/int8.h"
#include "run/forward.h"

namespace mt {

// One of several maps that read the same x.
struct MapOutput {
  const LinearMap& map;
  Matrix y;
};
// matmul of each; the fast path rounds x once for all of them and divides their rows among the
// threads together.
void matmul_shared(const Runtime& rt, Path path, ConstMatrix x, std::span<const MapOutput> outputs,
                   const MatmulOptions& options = {});

// The batched int8 product (kernels/int8.h) without biases, activations in one term or two. The
// same bits for any number of threads. x.cols: a multiple of 32; formats that int8_takes.
void matmul_int8(const Runtime& rt, const Int8Kernels& kernels, ConstMatrix x,
                 std::span<const MapOutput> outputs, int terms);

// The vector-Jacobian product of matmul: dx[t,i] += sum_o dy[t,o] * W[o,i]
// dy:[n_tokens,out]  W:[out,in]  dx:[n_tokens,in]; sums over o in order, by fma. Path::bf16: in
// the order of gemm_pairs. Path::fast: whichever of the two is faster.
void matmul_backward(const Runtime& rt, Path path, ConstMatrix dy, const LinearMap& map, Matrix dx);

// c[i,j] = (accumulate ? c[i,j] : 0) + sum_t a[t,i] * b[t,j]   a:[n,rows]  b:[n,cols]
void outer_sum(const Runtime& rt, ConstMatrix a, ConstMatrix b, Matrix c, bool accumulate);

// Columns of a panel, the unit in which weights are decoded and multiplied.
inline constexpr int64_t kPanel = 32;
// Input channels of a chunk: the panel of a chunk stays in the first-level cache. A multiple of
// every format's block length.
inline constexpr int64_t kChunk = 256;

}  // namespace mt
