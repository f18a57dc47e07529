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

void attend(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
            ConstMatrix values, int64_t first, Matrix out) {
  const Kernels& k = rt.kernels;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads;
  if (q.rows < 4) {
    rt.pool.parallel_for(q.rows * a.n_heads, [&](int64_t task, int) {
      const int64_t t = task / a.n_heads, h = task % a.n_heads, kv = h / group;
      AlignedBuffer<float> scores(static_cast<size_t>(first + t + 1));
      attend_one(k, a, q.row(t) + h * d, keys.slice_cols(kv * d, (kv + 1) * d),
                 values.slice_cols(kv * d, (kv + 1) * d), first + t, scores.data(),
                 out.row(t) + h * d);
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
                       keys.slice_cols(kv * d, (kv + 1) * d), first + begin, low, high,
                       packed.data(), s);
    for (int64_t c = 0; c < d; c += kPanel)
      k.gemm_panel(end - begin, std::min(kPanel, d - c), high - low, s.data(), s.cols(),
                   values.row(low) + kv * d + c, values.stride, out.row(begin) + h * d + c,
                   out.stride, false);
  });
}

void attend_backward(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
                     ConstMatrix values, ConstMatrix dout, Matrix dq, Matrix dk, Matrix dv) {
  const Kernels& k = rt.kernels;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads, n = q.rows;
  // One task a KV head: the query heads that share it add into the same dk and dv, in order.
  rt.pool.parallel_for(a.n_kv_heads, [&](int64_t kv, int) {
    AlignedBuffer<float> packed(static_cast<size_t>(d * kPanel));
    AlignedBuffer<float> staged(static_cast<size_t>(kTile * kPanel));
    auto cols = [&](auto m, int64_t head) { return m.slice_cols(head * d, (head + 1) * d); };
    auto key = cols(keys, kv), value = cols(values, kv);
    auto dkey = cols(dk, kv), dvalue = cols(dv, kv);
    for (int64_t r = 0; r < n; ++r) {
      std::fill_n(dkey.row(r), d, 0.0f);
      std::fill_n(dvalue.row(r), d, 0.0f);
    }
    MatrixBuffer p(kTile, n), dp(kTile, n), turned(n, kTile);
    // target[j,:] += sum_r m[r,j] * x[r,:], for keys j in [low, high) and rows r of the tile
    auto scatter = [&](const MatrixBuffer& m, int64_t rows, int64_t width, ConstMatrix x,
                       int64_t low, Matrix target) {
      for (int64_t j = 0; j < width; ++j)
        for (int64_t r = 0; r < rows; ++r) turned.row(j)[r] = m.row(r)[j];
      for (int64_t c = 0; c < d; c += kPanel) {
        const int64_t w = std::min(kPanel, d - c);
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(x.row(r) + c, w, staged.data() + r * kPanel);
          std::fill(staged.data() + r * kPanel + w, staged.data() + (r + 1) * kPanel, 0.0f);
        }
        k.gemm_panel(width, w, rows, turned.data(), kTile, staged.data(), kPanel,
                     target.row(low) + c, target.stride, true);
      }
    };
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      for (int64_t begin = 0; begin < n; begin += kTile) {
        const int64_t end = std::min(begin + kTile, n), rows = end - begin;
        const int64_t low = first_key(a, begin), high = end, width = high - low;
        auto qt = cols(q.slice_rows(begin, end), h);
        auto dot = cols(dout.slice_rows(begin, end), h);
        Matrix pt{p.data(), rows, width, n}, dpt{dp.data(), rows, width, n};
        tile_probabilities(k, a, qt, key, begin, low, high, packed.data(), pt);
        scatter(p, rows, width, dot, low, dvalue);
        for (int64_t j = 0; j < width; j += kPanel) {
          const int64_t w = std::min(kPanel, width - j);
          k.transpose_panel(w, d, value.row(low + j), value.stride, packed.data());
          k.gemm_panel(rows, w, d, dot.data, dot.stride, packed.data(), kPanel, dpt.data + j,
                       dpt.stride, false);
        }
        // ds = scale * p * (dp - sum_j p dp)
        for (int64_t r = 0; r < rows; ++r) {
          const float mean = k.dot(pt.row(r), dpt.row(r), width);
          for (int64_t j = 0; j < width; ++j)
            dpt.row(r)[j] = a.scale * pt.row(r)[j] * (dpt.row(r)[j] - mean);
        }
        for (int64_t c = 0; c < d; c += kPanel)
          k.gemm_panel(rows, std::min(kPanel, d - c), width, dpt.data, dpt.stride, key.row(low) + c,
                       key.stride, cols(dq, h).row(begin) + c, dq.stride, false);
        scatter(dp, rows, width, qt, low, dkey);
      }
    }
  });
}

}  // namespace mt
