#include "run/linear.h"

#include <algorithm>
#include <vector>

#include "base/checked.h"
#include "base/error.h"

namespace mt {
namespace {

// Few tokens take the quantised dot products of the fast path; more than this share the decoding
// of a panel, which is then cheaper.
constexpr int64_t kFewTokens = 8;

void add_bias(const LinearMap& map, Matrix y) {
  if (map.bias.empty()) return;
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t o = 0; o < y.cols; ++o) y.row(t)[o] += map.bias[static_cast<size_t>(o)];
}

void matmul_fast(const Runtime& rt, ConstMatrix x, const Weight& w, Matrix y) {
  const Kernels& k = rt.kernels;
  const int64_t blob =
      static_cast<int64_t>(round_up(static_cast<uint64_t>(k.quantised_bytes(x.cols)), 64));
  AlignedBuffer<std::byte> q(static_cast<size_t>(blob * x.rows));
  for (int64_t t = 0; t < x.rows; ++t) k.quantise(x.row(t), x.cols, q.data() + t * blob);
  const int64_t bytes = row_bytes(w.dtype, w.cols);
  // Pieces small enough to balance, large enough to stream.
  const int64_t piece =
      std::max<int64_t>(16, ceil_div(w.rows, 4 * int64_t{rt.pool.size()}) / 16 * 16);
  rt.pool.parallel_for(ceil_div(w.rows, piece), [&](int64_t i, int) {
    int64_t begin = i * piece, n = std::min(piece, w.rows - begin);
    for (int64_t t = 0; t < x.rows; ++t)
      k.rows_dot(w.dtype, w.row(begin), bytes, n, q.data() + t * blob, x.cols, y.row(t) + begin);
  });
}

void matmul_exact(const Runtime& rt, ConstMatrix x, const Weight& w, Matrix y) {
  const Kernels& k = rt.kernels;
  const DtypeInfo& format = info(w.dtype);
  rt.pool.parallel_for(ceil_div(w.rows, kPanel), [&](int64_t panel, int) {
    alignas(64) float rows[kPanel * kChunk];
    alignas(64) float packed[kPanel * kChunk];
    const int64_t o = panel * kPanel, n = std::min(kPanel, w.rows - o);
    for (int64_t i = 0; i < w.cols; i += kChunk) {
      const int64_t depth = std::min(kChunk, w.cols - i);
      const int64_t skip = i / format.block_length * format.block_bytes;
      for (int64_t r = 0; r < n; ++r)
        k.decode_row(w.dtype, w.row(o + r) + skip, rows + r * kChunk, depth);
      k.transpose_panel(n, depth, rows, kChunk, packed);
      k.gemm_panel(x.rows, n, depth, x.data + i, x.stride, packed, kPanel, y.data + o, y.stride,
                   i > 0);
    }
  });
}

}  // namespace

void matmul(const Runtime& rt, Path path, ConstMatrix x, const LinearMap& map, Matrix y) {
  const Weight& w = map.weight;
  assert(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows);
  if (path == Path::fast && x.rows <= kFewTokens && x.cols % 32 == 0 &&
      rt.kernels.has_rows_dot(w.dtype))
    matmul_fast(rt, x, w, y);
  else
    matmul_exact(rt, x, w, y);
  add_bias(map, y);
}

void matmul_backward(const Runtime& rt, ConstMatrix dy, const LinearMap& map, Matrix dx) {
  const Weight& w = map.weight;
  const Kernels& k = rt.kernels;
  assert(dy.cols == w.rows && dx.cols == w.cols && dx.rows == dy.rows);
  // A task is a chunk of input channels; it walks the rows of W, 64 at a time.
  constexpr int64_t kDepth = 64;
  const DtypeInfo& format = info(w.dtype);
  rt.pool.parallel_for(ceil_div(w.cols, kChunk), [&](int64_t chunk, int) {
    alignas(64) float rows[kDepth * kChunk];
    const int64_t i = chunk * kChunk, width = std::min(kChunk, w.cols - i);
    const int64_t skip = i / format.block_length * format.block_bytes;
    for (int64_t o = 0; o < w.rows; o += kDepth) {
      const int64_t depth = std::min(kDepth, w.rows - o);
      for (int64_t r = 0; r < depth; ++r)
        k.decode_row(w.dtype, w.row(o + r) + skip, rows + r * kChunk, width);
      for (int64_t j = 0; j < width; j += kPanel)
        k.gemm_panel(dx.rows, std::min(kPanel, width - j), depth, dy.data + o, dy.stride, rows + j,
                     kChunk, dx.data + i + j, dx.stride, true);
    }
  });
}

void outer_sum(const Runtime& rt, ConstMatrix a, ConstMatrix b, Matrix c, bool accumulate) {
  assert(a.rows == b.rows && c.rows == a.cols && c.cols == b.cols);
  const Kernels& k = rt.kernels;
  const int64_t n = a.rows;
  MatrixBuffer at(a.cols, n);  // [rows, n]: the kernel wants the summed index last
  rt.pool.parallel_for(ceil_div(a.cols, kPanel), [&](int64_t panel, int) {
    for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, a.cols); ++i)
      for (int64_t t = 0; t < n; ++t) at.row(i)[t] = a.row(t)[i];
  });
  rt.pool.parallel_for(ceil_div(c.cols, kPanel), [&](int64_t panel, int) {
    alignas(64) float packed[kPanel * kChunk];
    const int64_t j = panel * kPanel, width = std::min(kPanel, c.cols - j);
    for (int64_t t = 0; t < n; t += kChunk) {
      const int64_t depth = std::min(kChunk, n - t);
      for (int64_t p = 0; p < depth; ++p) {
        std::copy_n(b.row(t + p) + j, width, packed + p * kPanel);
        std::fill(packed + p * kPanel + width, packed + (p + 1) * kPanel, 0.0f);
      }
      k.gemm_panel(c.rows, width, depth, at.data() + t, n, packed, kPanel, c.data + j, c.stride,
                   accumulate || t > 0);
    }
  });
}

}  // namespace mt
