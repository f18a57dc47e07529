#include <algorithm>
#include <cassert>

#include "base/checked.h"
#include "run/linear.h"

namespace mt {

void matmul_int8(const Runtime& rt, const Int8Kernels& kernels, ConstMatrix x,
                 std::span<const MapOutput> outputs, int terms) {
  // Blocks by chunks of 256 inputs, then tiles of tokens: a panel walks through memory in order.
  const int64_t tiles = ceil_div(x.rows, kInt8Tokens), blocks = x.cols / 32 * terms;
  const int64_t chunk_blocks = kInt8Depth / 32 * terms;
  // Kept: a prompt's every product would ask the system for cleared pages otherwise.
  thread_local AlignedBuffer<Int8Block> kept;
  if (kept.size() < static_cast<size_t>(tiles * blocks))
    kept = AlignedBuffer<Int8Block>(static_cast<size_t>(tiles * blocks));
  Int8Block* rounded = kept.data();
  auto block_at = [&](int64_t chunk, int64_t tile) {
    const int64_t here = std::min(chunk_blocks, blocks - chunk * chunk_blocks);
    return rounded + chunk * chunk_blocks * tiles + tile * here;
  };
  const int64_t chunks = ceil_div(x.cols, kInt8Depth);
  rt.pool.parallel_for(tiles, [&](int64_t tile, int) {
    const int64_t t = tile * kInt8Tokens, rows = std::min(kInt8Tokens, x.rows - t);
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t i = c * kInt8Depth;
      kernels.quantise(x.row(t) + i, x.stride, rows, std::min(kInt8Depth, x.cols - i), terms,
                       block_at(c, tile));
    }
  });
  int64_t panels = 0;
  for (const MapOutput& out : outputs) panels += ceil_div(out.map.weight.rows, kInt8Outputs);
  rt.pool.parallel_for(panels, [&](int64_t index, int) {
    const MapOutput* out = outputs.data();
    for (int64_t n; index >= (n = ceil_div(out->map.weight.rows, kInt8Outputs)); ++out) index -= n;
    const Weight& w = out->map.weight;
    assert(x.cols == w.cols && out->y.cols == w.rows && x.rows == out->y.rows);
    const DtypeInfo& format = info(w.dtype);
    const int64_t o = index * kInt8Outputs, n = std::min(kInt8Outputs, w.rows - o);
    Int8Panel panel;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t i = c * kInt8Depth, depth = std::min(kInt8Depth, x.cols - i);
      const int64_t skip = i / format.block_length * format.block_bytes;
      kernels.pack(w.dtype, w.row(o) + skip, row_bytes(w.dtype, w.cols), n, depth, panel);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t t = tile * kInt8Tokens;
        kernels.multiply(panel, depth, block_at(c, tile), terms, std::min(kInt8Tokens, x.rows - t),
                         out->y.row(t) + o, out->y.stride, n, c > 0);
      }
    }
  });
}

}  // namespace mt
