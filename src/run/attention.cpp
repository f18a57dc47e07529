#include "run/attention.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "run/linear.h"

namespace mt {
namespace {

constexpr int64_t kTile = 64;  // query rows whose scores are held at once

// First key that position p sees.
int64_t first_key(const Attention& a, int64_t p) {
  return a.window > 0 ? std::max<int64_t>(0, p + 1 - a.window) : 0;
}

// s[r, j] = softmax over visible keys of scale * q_r . k_j, for rows r of a tile and keys
// low .. high-1 (j counts from low); zero where hidden.
// q: [rows, d] of positions p0...; keys: [.., d] strided, from key `low`.
void tile_probabilities(const Kernels& k, const Attention& a, ConstMatrix q, ConstMatrix keys,
                        int64_t p0, int64_t low, int64_t high, float* packed, Matrix s) {
  const int64_t d = a.d_head, width = high - low;
  for (int64_t j = 0; j < width; j += kPanel) {
    const int64_t n = std::min(kPanel, width - j);
    k.transpose_panel(n, d, keys.row(low + j), keys.stride, packed);
    k.gemm_panel(q.rows, n, d, q.data, q.stride, packed, kPanel, s.data + j, s.stride, false);
  }
  for (int64_t r = 0; r < q.rows; ++r) {
    float* row = s.row(r);
    const int64_t begin = first_key(a, p0 + r) - low, end = p0 + r + 1 - low;
    std::fill(row, row + begin, 0.0f);
    std::fill(row + end, row + width, 0.0f);
    for (int64_t j = begin; j < end; ++j) row[j] *= a.scale;
    double sum = k.exp_sum(row + begin, end - begin, k.max(row + begin, end - begin));
    const float inverse = static_cast<float>(1.0 / sum);
    for (int64_t j = begin; j < end; ++j) row[j] *= inverse;
  }
}

// One position: scores by dot products, values by weighted sums.
void attend_one(const Kernels& k, const Attention& a, const float* q, ConstMatrix keys,
                ConstMatrix values, int64_t p, float* scores, float* out) {
  const int64_t low = first_key(a, p), n = p + 1 - low;
  for (int64_t j = 0; j < n; ++j) scores[j] = a.scale * k.dot(q, keys.row(low + j), a.d_head);
  double sum = k.exp_sum(scores, n, k.max(scores, n));
  const float inverse = static_cast<float>(1.0 / sum);
  std::fill(out, out + a.d_head, 0.0f);
  for (int64_t j = 0; j < n; ++j) k.axpy(scores[j] * inverse, values.row(low + j), out, a.d_head);
}

}  // namespace

void attend(const Runtime& rt, const Attention& a, ConstMatrix q, HeadRows keys, HeadRows values,
            int64_t first, Matrix out) {
  const Kernels& k = rt.kernels;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads, n = first + q.rows;
  if (q.rows < 4) {
    rt.pool.parallel_for(q.rows * a.n_heads, [&](int64_t task, int) {
      const int64_t t = task / a.n_heads, h = task % a.n_heads, kv = h / group;
      AlignedBuffer<float> scores(static_cast<size_t>(first + t + 1));
      attend_one(k, a, q.row(t) + h * d, keys.head(kv, n, d), values.head(kv, n, d), first + t,
                 scores.data(), out.row(t) + h * d);
    });
    return;
  }
  const int64_t tiles = ceil_div(q.rows, kTile);
  rt.pool.parallel_for(tiles * a.n_heads, [&](int64_t task, int) {
    // The last tiles see the most keys: they go first.
    const int64_t tile = tiles - 1 - task / a.n_heads, h = task % a.n_heads, kv = h / group;
    const int64_t begin = tile * kTile, end = std::min(begin + kTile, q.rows);
    const int64_t low = first_key(a, first + begin), high = first + end;
    MatrixBuffer s(end - begin, high - low);
    AlignedBuffer<float> packed(static_cast<size_t>(d * kPanel));
    tile_probabilities(k, a, q.slice_rows(begin, end).slice_cols(h * d, (h + 1) * d),
                       keys.head(kv, n, d), first + begin, low, high, packed.data(), s);
    const ConstMatrix value = values.head(kv, n, d);
    for (int64_t c = 0; c < d; c += kPanel)
      k.gemm_panel(end - begin, std::min(kPanel, d - c), high - low, s.data(), s.cols(),
                   value.row(low) + c, value.stride, out.row(begin) + h * d + c, out.stride, false);
  });
}

void attend_backward(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
                     ConstMatrix values, ConstMatrix dout, Matrix dq, Matrix dk, Matrix dv) {
  const Kernels& k = rt.kernels;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads, n = q.rows;
  const int64_t tiles = ceil_div(n, kTile);
  auto cols = [&](auto m, int64_t head) { return m.slice_cols(head * d, (head + 1) * d); };
  // The query heads that share a KV head add into the same dk and dv, in order: so many of them
  // at once as their probabilities and gradients [n, n] fit in 64 MiB.
  const int64_t at_once =
      std::clamp<int64_t>((int64_t{64} << 20) / (8 * n * n), 1, std::max<int64_t>(1, group));
  MatrixBuffer p(at_once * n, n), ds(at_once * n, n);
  for (int64_t kv = 0; kv < a.n_kv_heads; ++kv) {
    auto key = cols(keys, kv), value = cols(values, kv);
    auto dkey = cols(dk, kv), dvalue = cols(dv, kv);
    for (int64_t first = kv * group; first < (kv + 1) * group; first += at_once) {
      const int64_t heads = std::min(at_once, (kv + 1) * group - first);
      // By tiles of queries: probabilities, their gradients, dq.
      rt.pool.parallel_for(tiles * heads, [&](int64_t task, int) {
        const int64_t tile = tiles - 1 - task / heads, h = task % heads;
        const int64_t begin = tile * kTile, end = std::min(begin + kTile, n), rows = end - begin;
        const int64_t low = first_key(a, begin), width = end - low;
        AlignedBuffer<float> packed(static_cast<size_t>(d * kPanel));
        auto qt = cols(q.slice_rows(begin, end), first + h);
        auto dot = cols(dout.slice_rows(begin, end), first + h);
        Matrix pt{p.row(h * n + begin) + low, rows, width, n};
        Matrix dst{ds.row(h * n + begin) + low, rows, width, n};
        tile_probabilities(k, a, qt, key, begin, low, end, packed.data(), pt);
        for (int64_t j = 0; j < width; j += kPanel) {
          const int64_t w = std::min(kPanel, width - j);
          k.transpose_panel(w, d, value.row(low + j), value.stride, packed.data());
          k.gemm_panel(rows, w, d, dot.data, dot.stride, packed.data(), kPanel, dst.data + j,
                       dst.stride, false);
        }
        // ds = scale * p * (dp - sum_j p dp)
        for (int64_t r = 0; r < rows; ++r) {
          const float mean = k.dot(pt.row(r), dst.row(r), width);
          for (int64_t j = 0; j < width; ++j)
            dst.row(r)[j] = a.scale * pt.row(r)[j] * (dst.row(r)[j] - mean);
        }
        for (int64_t c = 0; c < d; c += kPanel)
          k.gemm_panel(rows, std::min(kPanel, d - c), width, dst.data, dst.stride, key.row(low) + c,
                       key.stride, cols(dq, first + h).row(begin) + c, dq.stride, false);
      });
      // By tiles of keys: dk and dv, over heads and queries in order.
      rt.pool.parallel_for(tiles * 2, [&](int64_t task, int) {
        const int64_t begin = task / 2 * kTile, end = std::min(begin + kTile, n);
        const bool of_values = task % 2;
        const Matrix target = of_values ? dvalue : dkey;
        if (first == kv * group)
          for (int64_t j = begin; j < end; ++j) std::fill_n(target.row(j), d, 0.0f);
        alignas(64) float turned[2][kTile * kPanel];  // 32 queries each, side by side
        alignas(64) float staged[kTile * kPanel];
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t r0 = begin; r0 < n; r0 += kTile) {
            const int64_t rows = std::min(kTile, n - r0);
            const int64_t low = std::max(begin, first_key(a, r0)), high = std::min(end, r0 + rows);
            if (low >= high) continue;
            const MatrixBuffer& m = of_values ? p : ds;
            for (int64_t r = 0; r < rows; r += kPanel)
              k.transpose_panel(std::min(kPanel, rows - r), high - low, m.row(h * n + r0 + r) + low,
                                n, turned[r / kPanel]);
            auto x = cols(of_values ? dout : q, first + h);
            for (int64_t c = 0; c < d; c += kPanel) {
              const int64_t w = std::min(kPanel, d - c);
              for (int64_t r = 0; r < rows; ++r) {
                std::copy_n(x.row(r0 + r) + c, w, staged + r * kPanel);
                std::fill(staged + r * kPanel + w, staged + (r + 1) * kPanel, 0.0f);
              }
              for (int64_t r = 0; r < rows; r += kPanel)
                k.gemm_panel(high - low, w, std::min(kPanel, rows - r), turned[r / kPanel], kPanel,
                             staged + r * kPanel, kPanel, target.row(low) + c, target.stride, true);
            }
          }
      });
    }
  }
}

}  // namespace mt
