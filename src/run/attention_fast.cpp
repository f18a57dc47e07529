#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked.h"
#include "kernels/attention.h"
#include "run/attention.h"
#include "run/linear.h"

// Attention of the fast path: what a token sees is taken in runs of keys, each with its own maximum
// and sum (online softmax, Milakov and Gimelshein 2018), and the runs are joined at the end. For
// single tokens the runs are what threads divide among themselves (as in Flash-Decoding, Dao et al.
// 2023); for prompts a run's scores stay in the second-level cache.
namespace mt {
namespace {

constexpr int64_t kRun = 512;       // keys of a run; a result depends on it, not on the threads
constexpr int64_t kTile = 64;       // queries of a prompt that go together
constexpr int64_t kFewQueries = 9;  // fewer go one by one, in f32

int64_t first_key(const Attention& a, int64_t p) {
  return a.window > 0 ? std::max<int64_t>(0, p + 1 - a.window) : 0;
}

// The query heads of one KV head at position p. Partial results of each run: out[run][head][d],
// and its maximum and sum.
void attend_one(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
                ConstMatrix values, int64_t p, float* out) {
  const Kernels& k = rt.kernels;
  const AttentionKernels& products = attention_kernels(k);
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads;
  const int64_t low = first_key(a, p), seen = p + 1 - low, runs = ceil_div(seen, kRun);
  AlignedBuffer<float> scaled(static_cast<size_t>(a.n_heads * d));
  for (int64_t i = 0; i < a.n_heads * d; ++i) scaled[size_t(i)] = q.data[i] * a.scale;
  AlignedBuffer<float> partial(static_cast<size_t>(runs * a.n_heads * d));
  AlignedBuffer<float> maximum(static_cast<size_t>(runs * a.n_heads));
  AlignedBuffer<double> total(static_cast<size_t>(runs * a.n_heads));
  rt.pool.parallel_for(runs * a.n_kv_heads, [&](int64_t task, int) {
    const int64_t run = task / a.n_kv_heads, kv = task % a.n_kv_heads;
    const int64_t begin = low + run * kRun, n = std::min(kRun, p + 1 - begin);
    // Heads by as many as the scratch holds.
    constexpr int64_t kHeads = 8;
    alignas(64) float s[kHeads * kRun];
    for (int64_t first = 0; first < group; first += kHeads) {
      const int64_t heads = std::min(kHeads, group - first), h0 = kv * group + first;
      products.scores(heads, n, d, scaled.data() + h0 * d, d, keys.row(begin) + kv * d, keys.stride,
                      s, kRun);
      for (int64_t h = 0; h < heads; ++h) {
        const auto at = static_cast<size_t>(run * a.n_heads + h0 + h);
        maximum[at] = k.max(s + h * kRun, n);
        total[at] = k.exp_sum(s + h * kRun, n, maximum[at]);
      }
      products.mix(heads, n, d, s, kRun, values.row(begin) + kv * d, values.stride,
                   partial.data() + (run * a.n_heads + h0) * d, d);
    }
  });
  for (int64_t h = 0; h < a.n_heads; ++h) {
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t run = 0; run < runs; ++run)
      largest = std::max(largest, maximum[size_t(run * a.n_heads + h)]);
    double sum = 0;
    for (int64_t run = 0; run < runs; ++run) {
      const auto at = static_cast<size_t>(run * a.n_heads + h);
      sum += total[at] * std::exp(double(maximum[at]) - double(largest));
    }
    std::fill_n(out + h * d, d, 0.0f);
    for (int64_t run = 0; run < runs; ++run) {
      const auto at = static_cast<size_t>(run * a.n_heads + h);
      const double share = std::exp(double(maximum[at]) - double(largest)) / sum;
      k.axpy(static_cast<float>(share), partial.data() + static_cast<int64_t>(at) * d, out + h * d,
             d);
    }
  }
}

// Keys and values of one KV head as gemm_pairs takes them.
struct PackedKeys {
  int64_t low, n, d;  // positions low .. low + n
  int64_t pairs_d, pairs_n, columns;
  AlignedBuffer<uint32_t> keys;    // by panels of 32 positions: [pairs of channels][32]
  AlignedBuffer<uint32_t> values;  // by panels of 32 channels: [pairs of positions][32]

  PackedKeys(int64_t low_, int64_t n_, int64_t d_)
      : low(low_),
        n(n_),
        d(d_),
        pairs_d(ceil_div(d_, 2)),
        pairs_n(ceil_div(n_, kPanel) * kPanel / 2),
        columns(ceil_div(d_, kPanel)) {
    keys = AlignedBuffer<uint32_t>(static_cast<size_t>(2 * pairs_n * pairs_d));
    values = AlignedBuffer<uint32_t>(static_cast<size_t>(columns * pairs_n * kPanel));
  }
  uint32_t* key_panel(int64_t j) { return keys.data() + j * pairs_d; }  // j: a multiple of 32
  uint32_t* value_panel(int64_t c, int64_t j) {
    return values.data() + (c * pairs_n + j / 2) * kPanel;
  }
  // Positions low + j .. of one panel.
  void pack(const Kernels& k, ConstMatrix key, ConstMatrix value, int64_t j) {
    const int64_t here = std::min(kPanel, n - j);
    AlignedBuffer<uint32_t> rows(static_cast<size_t>(kPanel * pairs_d));
    for (int64_t r = 0; r < here; ++r)
      k.round_pairs(key.row(low + j + r), d, rows.data() + r * pairs_d);
    k.transpose_pairs(here, pairs_d, rows.data(), pairs_d, key_panel(j));
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t width = std::min(kPanel, d - c * kPanel);
      uint32_t* to = value_panel(c, j);
      std::fill_n(to, kPanel / 2 * kPanel, 0u);
      k.interleave_pairs(width, here, value.row(low + j) + c * kPanel, value.stride, to, kPanel);
    }
  }
};

// Queries of one head at positions p0 ..: q, out: [rows, d].
void attend_tile(const Kernels& k, const Attention& a, ConstMatrix q, PackedKeys& packed,
                 int64_t p0, Matrix out) {
  const int64_t d = a.d_head, rows = q.rows, pairs_d = packed.pairs_d;
  alignas(64) float s[kTile * kRun];
  alignas(64) uint32_t shares[kTile * kRun / 2];
  AlignedBuffer<uint32_t> queries(static_cast<size_t>(rows * pairs_d));
  AlignedBuffer<float> scaled(static_cast<size_t>(d));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < d; ++i) scaled[size_t(i)] = q.row(r)[i] * a.scale;
    k.round_pairs(scaled.data(), d, queries.data() + r * pairs_d);
  }
  float maximum[kTile];
  double total[kTile] = {};
  std::fill_n(maximum, kTile, -std::numeric_limits<float>::infinity());
  const int64_t begin = (first_key(a, p0) - packed.low) / kPanel * kPanel;
  const int64_t end = p0 + rows - packed.low;
  for (int64_t j = begin; j < end; j += kRun) {
    const int64_t n = std::min(kRun, end - j);
    for (int64_t c = 0; c < n; c += kPanel)
      k.gemm_pairs(rows, std::min(kPanel, n - c), pairs_d, queries.data(), pairs_d, 1,
                   packed.key_panel(j + c), kPanel, s + c, kRun, false);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = s + r * kRun;
      const int64_t from = std::clamp<int64_t>(first_key(a, p0 + r) - packed.low - j, 0, n);
      const int64_t to = std::clamp<int64_t>(p0 + r + 1 - packed.low - j, from, n);
      std::fill(row, row + from, 0.0f);
      std::fill(row + to, row + n, 0.0f);
      if (from < to) {
        const float largest = std::max(maximum[r], k.max(row + from, to - from));
        if (maximum[r] < largest && total[r] > 0) {  // what was summed so far shrinks
          const float shrink = std::exp(maximum[r] - largest);
          total[r] *= shrink;
          for (int64_t i = 0; i < d; ++i) out.row(r)[i] *= shrink;
        }
        maximum[r] = largest;
        total[r] += k.exp_sum(row + from, to - from, largest);
      }
      k.round_pairs(row, n, shares + r * kRun / 2);
    }
    for (int64_t c = 0; c < packed.columns; ++c)
      k.gemm_pairs(rows, std::min(kPanel, d - c * kPanel), ceil_div(n, 2), shares, kRun / 2, 1,
                   packed.value_panel(c, j), kPanel, out.data + c * kPanel, out.stride, j > begin);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const auto inverse = static_cast<float>(1.0 / total[r]);
    for (int64_t i = 0; i < d; ++i) out.row(r)[i] *= inverse;
  }
}

}  // namespace

void attend_fast(const Runtime& rt, const Attention& a, ConstMatrix q, ConstMatrix keys,
                 ConstMatrix values, int64_t first, Matrix out) {
  const Kernels& k = rt.kernels;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads;
  if (q.rows < kFewQueries) {
    for (int64_t t = 0; t < q.rows; ++t)
      attend_one(rt, a, q.slice_rows(t, t + 1), keys, values, first + t, out.row(t));
    return;
  }
  if (!k.fast_pairs) return attend(rt, a, q, keys, values, first, out);
  const int64_t low = first_key(a, first), n = first + q.rows - low;
  std::vector<PackedKeys> packed;
  for (int64_t kv = 0; kv < a.n_kv_heads; ++kv) packed.emplace_back(low, n, d);
  const int64_t panels = ceil_div(n, kPanel);
  rt.pool.parallel_for(panels * a.n_kv_heads, [&](int64_t task, int) {
    const int64_t kv = task / panels;
    packed[size_t(kv)].pack(k, keys.slice_cols(kv * d, (kv + 1) * d),
                            values.slice_cols(kv * d, (kv + 1) * d), task % panels * kPanel);
  });
  const int64_t tiles = ceil_div(q.rows, kTile);
  rt.pool.parallel_for(tiles * a.n_heads, [&](int64_t task, int) {
    // The last tiles see the most keys: they go first.
    const int64_t tile = tiles - 1 - task / a.n_heads, h = task % a.n_heads;
    const int64_t begin = tile * kTile, end = std::min(begin + kTile, q.rows);
    attend_tile(k, a, q.slice_rows(begin, end).slice_cols(h * d, (h + 1) * d),
                packed[size_t(h / group)], first + begin,
                out.slice_rows(begin, end).slice_cols(h * d, (h + 1) * d));
  });
}

}  // namespace mt
