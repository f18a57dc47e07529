#include "run/linear.h"

#include <algorithm>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "run/layers.h"

namespace mt {
namespace {

// Few tokens take the quantised dot products of the fast path; more than this share the decoding
// of a panel, which is then cheaper: from three tokens on where there is a batched int8 product.
constexpr int64_t kFewTokens = 8, kFewTokensInt8 = 2;
// Bytes of weights that a thread reads at a stretch, where there are as many for it.
constexpr int64_t kPieceBytes = 512 << 10;
// From so many tokens on the tile unit pays for the decoding to bf16, where there is one.
constexpr int64_t kManyTokensTiles = 32;

void add_bias(const LinearMap& map, Matrix y) {
  if (map.bias.empty()) return;
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t o = 0; o < y.cols; ++o) y.row(t)[o] += map.bias[static_cast<size_t>(o)];
}

// y[t, r] = sum_i W[r, i] * x[t, i] for `rows` consecutive rows of a weight and `tokens` tokens,
// each sum as rows_dot has it for that token alone. q: the tokens as `quantise` left them in so
// many terms, `blob` bytes apart. The rows are read from memory once: so many at a time as stay in
// the second-level cache for the tokens that follow (fewer at a time break the kernels' streams).
void rows_dots(const Kernels& k, const Weight& w, int64_t begin, int64_t rows, const std::byte* q,
               int64_t blob, int64_t tokens, int terms, Matrix y) {
  const int64_t bytes = row_bytes(w.dtype, w.cols);
  constexpr int64_t kNear = 256 << 10;
  const int64_t at_once = tokens == 1 ? rows : std::max<int64_t>(16, kNear / bytes / 16 * 16);
  for (int64_t r = begin; r < begin + rows; r += at_once)
    k.rows_dot(w.dtype, w.row(r), bytes, std::min(at_once, begin + rows - r), q, blob, tokens,
               terms, w.cols, y.row(0) + r, y.stride);
}

void matmul_dots(const Runtime& rt, ConstMatrix x, std::span<const MapOutput> outputs, int terms) {
  const Kernels& k = rt.kernels;
  const int64_t blob =
      static_cast<int64_t>(round_up(static_cast<uint64_t>(k.quantised_bytes(x.cols, terms)), 64));
  thread_local AlignedBuffer<std::byte> kept;  // from token to token
  if (kept.size() < static_cast<size_t>(blob * x.rows))
    kept = AlignedBuffer<std::byte>(static_cast<size_t>(blob * x.rows));
  std::byte* q = kept.data();
  for (int64_t t = 0; t < x.rows; ++t) k.quantise(x.row(t), x.cols, terms, q + t * blob);
  // Pieces long enough to stream, and where there is more than that a few a thread, so that one
  // which the machine holds up does less. A piece may lie in two maps.
  int64_t rows = 0, bytes = 0;
  for (const MapOutput& out : outputs) {
    rows += out.map.weight.rows;
    bytes += out.map.weight.bytes();
  }
  const int64_t share = ceil_div(rows, int64_t{rt.pool.size()});
  const int64_t piece =
      ceil_div(std::clamp(kPieceBytes * rows / bytes, ceil_div(share, 4), share), int64_t{16}) * 16;
  rt.pool.parallel_for(ceil_div(rows, piece), [&](int64_t i, int) {
    int64_t begin = i * piece, left = std::min(piece, rows - begin);
    for (const MapOutput& out : outputs) {
      const Weight& w = out.map.weight;
      if (const int64_t n = std::min(left, w.rows - begin); n > 0) {
        rows_dots(k, w, begin, n, q, blob, x.rows, terms, out.y);
        left -= n;
      }
      begin = std::max<int64_t>(0, begin - w.rows);
    }
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

// A batch of rows rounded to bf16 for gemm_pairs, two values a word.
struct PairRows {
  AlignedBuffer<uint32_t> words;
  int64_t stride;  // words from row to row

  PairRows(const Runtime& rt, ConstMatrix x) {
    // Rows begin on cache lines, and not a multiple of 512 bytes apart: that few sets of the
    // first cache would hold them all.
    stride = static_cast<int64_t>(round_up(static_cast<uint64_t>(ceil_div(x.cols, 2)), 16));
    if (stride % 128 == 0) stride += 16;
    words = AlignedBuffer<uint32_t>(static_cast<size_t>(x.rows * stride));
    for_rows(rt, x.rows, [&](int64_t t) {
      rt.kernels.round_pairs(x.row(t), x.cols, words.data() + t * stride);
    });
  }
};

// tiles: by the tile unit, whose sums run in another order.
void matmul_bf16(const Runtime& rt, ConstMatrix x, const Weight& w, Matrix y, bool tiles) {
  const Kernels& k = rt.kernels;
  const DtypeInfo& format = info(w.dtype);
  const PairRows a(rt, x);
  rt.pool.parallel_for(ceil_div(w.rows, kPanel), [&](int64_t panel, int) {
    alignas(64) float row[kChunk];
    alignas(64) uint32_t rows[kPanel * kChunk / 2];
    alignas(64) uint32_t packed[kPanel * kChunk / 2];
    const int64_t o = panel * kPanel, n = std::min(kPanel, w.rows - o);
    for (int64_t i = 0; i < w.cols; i += kChunk) {
      const int64_t depth = std::min(kChunk, w.cols - i), pairs = ceil_div(depth, 2);
      const int64_t skip = i / format.block_length * format.block_bytes;
      for (int64_t r = 0; r < n; ++r) {
        k.decode_row(w.dtype, w.row(o + r) + skip, row, depth);
        k.round_pairs(row, depth, rows + r * kChunk / 2);
      }
      k.transpose_pairs(n, pairs, rows, kChunk / 2, packed);
      if (tiles)
        k.gemm_tiles(x.rows, n, pairs, a.words.data() + i / 2, a.stride, packed, kPanel, y.data + o,
                     y.stride, i > 0);
      else
        k.gemm_pairs(x.rows, n, pairs, a.words.data() + i / 2, a.stride, 1, packed, kPanel,
                     y.data + o, y.stride, i > 0);
    }
  });
}

void matmul_backward_bf16(const Runtime& rt, ConstMatrix dy, const Weight& w, Matrix dx) {
  const Kernels& k = rt.kernels;
  const DtypeInfo& format = info(w.dtype);
  const PairRows a(rt, dy);
  // A task is a range of input channels, whole blocks and panels; how they are divided decides no
  // result. It walks the rows of W, 256 at a time.
  constexpr int64_t kDepth = 256;
  const int64_t unit = std::max<int64_t>(kPanel, format.block_length);
  const int64_t units = ceil_div(w.cols, unit);
  const int64_t tasks =
      std::max(ceil_div(units * unit, kChunk), std::min<int64_t>(units, rt.pool.size()));
  rt.pool.parallel_for(tasks, [&](int64_t task, int) {
    const int64_t begin = units * task / tasks * unit;
    const int64_t end = std::min(units * (task + 1) / tasks * unit, w.cols), width = end - begin;
    const int64_t panels = ceil_div(width, kPanel);
    const int64_t skip = begin / format.block_length * format.block_bytes;
    AlignedBuffer<float> rows(static_cast<size_t>(2 * panels * kPanel));
    std::fill_n(rows.data(), rows.size(), 0.0f);
    AlignedBuffer<uint32_t> packed(static_cast<size_t>(panels * kPanel * kDepth / 2));
    for (int64_t o = 0; o < w.rows; o += kDepth) {
      const int64_t depth = std::min(kDepth, w.rows - o), pairs = ceil_div(depth, 2);
      for (int64_t r = 0; r < depth; r += 2) {
        const int64_t two = std::min<int64_t>(2, depth - r);
        for (int64_t i = 0; i < two; ++i)
          k.decode_row(w.dtype, w.row(o + r + i) + skip, rows.data() + i * panels * kPanel, width);
        for (int64_t j = 0; j < panels; ++j)
          k.interleave_pairs(kPanel, two, rows.data() + j * kPanel, panels * kPanel,
                             packed.data() + (j * kDepth / 2 + r / 2) * kPanel, kPanel);
      }
      for (int64_t j = 0; j < panels; ++j)
        k.gemm_pairs(dx.rows, std::min(kPanel, width - j * kPanel), pairs, a.words.data() + o / 2,
                     a.stride, 1, packed.data() + j * kDepth / 2 * kPanel, kPanel,
                     dx.data + begin + j * kPanel, dx.stride, true);
    }
  });
}

bool rounds(const Runtime& rt, Path path) {
  return path == Path::bf16 || (path == Path::fast && rt.kernels.fast_pairs);
}

}  // namespace

// Asked at every token, hence without a list of maps.
bool fine_weights(const Model& model) {
  double bytes = 0, weights = 0;
  auto add = [&](const LinearMap& map) {
    const Weight& w = map.weight;
    if (info(w.dtype).block_length == 1) return;
    bytes += static_cast<double>(w.bytes());
    weights += static_cast<double>(w.rows) * static_cast<double>(w.cols);
  };
  for (const Step& step : model.steps)
    for (const Site& site : step.sites) {
      if (const auto* a = std::get_if<Attention>(&site.what))
        for (const LinearMap* map : {&a->q, &a->k, &a->v, &a->o}) add(*map);
      if (const auto* f = std::get_if<Mlp>(&site.what))
        for (const LinearMap* map : {&f->gate, &f->up, &f->down}) add(*map);
    }
  add(model.head_map());
  return 8 * bytes > 6.25 * weights;
}

void matmul(const Runtime& rt, Path path, ConstMatrix x, const LinearMap& map, Matrix y,
            const MatmulOptions& options) {
  const MapOutput output{map, y};
  matmul_shared(rt, path, x, {&output, 1}, options);
}

// Whatever a token takes here alone gives it the same sums in a batch: only the choice among the
// ways looks at how many there are.
void matmul_shared(const Runtime& rt, Path path, ConstMatrix x, std::span<const MapOutput> outputs,
                   const MatmulOptions& options) {
  const bool like_single = options.like_single;
  const int terms = options.two_terms ? 2 : 1;
  auto all_take = [&](auto&& takes) {
    return path == Path::fast && x.cols % 32 == 0 &&
           std::all_of(outputs.begin(), outputs.end(),
                       [&](const MapOutput& out) { return takes(out.map.weight.dtype); });
  };
  const Int8Kernels* int8 = all_take(int8_takes) ? int8_kernels(rt.kernels) : nullptr;
  const bool few = like_single || x.rows <= (int8 ? kFewTokensInt8 : kFewTokens);
  const bool tiles = rt.kernels.gemm_tiles && path == Path::fast && !like_single &&
                     x.rows >= kManyTokensTiles && x.cols % 32 == 0;
  if (few && all_take(rt.kernels.has_rows_dot)) {
    matmul_dots(rt, x, outputs, terms);
  } else if (tiles) {
    for (const MapOutput& out : outputs) matmul_bf16(rt, x, out.map.weight, out.y, true);
  } else if (int8 && (!few || outputs.size() == 1)) {
    matmul_int8(rt, *int8, x, outputs, terms);
  } else if (path == Path::fast && outputs.size() > 1) {
    for (const MapOutput& out : outputs)  // each its own way
      matmul(rt, path, x, out.map, out.y, options);
    return;
  } else {
    for (const MapOutput& out : outputs) {
      assert(x.cols == out.map.weight.cols && out.y.cols == out.map.weight.rows);
      if (rounds(rt, path))
        matmul_bf16(rt, x, out.map.weight, out.y, false);
      else
        matmul_exact(rt, x, out.map.weight, out.y);
    }
  }
  for (const MapOutput& out : outputs) add_bias(out.map, out.y);
}

void matmul_backward(const Runtime& rt, Path path, ConstMatrix dy, const LinearMap& map,
                     Matrix dx) {
  const Weight& w = map.weight;
  const Kernels& k = rt.kernels;
  assert(dy.cols == w.rows && dx.cols == w.cols && dx.rows == dy.rows);
  if (rounds(rt, path)) return matmul_backward_bf16(rt, dy, w, dx);
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
