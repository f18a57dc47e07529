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
constexpr int64_t kShares = 2;      // tasks a thread that a decode step's runs are divided into
constexpr int64_t kTile = 64;       // queries of a prompt that go together
constexpr int64_t kFewQueries = 9;  // fewer go one by one, in f32

int64_t first_key(const Attention& a, int64_t p) {
  return a.window > 0 ? std::max<int64_t>(0, p + 1 - a.window) : 0;
}

// Strips [begin, end) of a head as a query at position p reads them, by formats.
template <class F>
void for_pieces(const CachedRows& rows, int64_t head, int64_t begin, int64_t end, int64_t p,
                F&& fn) {
  while (begin < end) {
    const KvPiece piece = rows.piece(head, begin, end, p);
    fn(piece);
    begin = piece.end;
  }
}

// The query heads of each KV head at position p. Partial results of each run: out[run][head][d],
// and its maximum and sum.
void attend_one(const Runtime& rt, const Attention& a, ConstMatrix q, const CachedRows& keys,
                const CachedRows& values, int64_t p, float* out) {
  const Kernels& k = rt.kernels;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads;
  const int64_t low = first_key(a, p), start = low / kChannelBlock * kChannelBlock;
  const int64_t runs = ceil_div(p + 1 - start, kRun);
  AlignedBuffer<float> scaled(static_cast<size_t>(a.n_heads * d));
  for (int64_t i = 0; i < a.n_heads * d; ++i) scaled[size_t(i)] = q.data[i] * a.scale;
  // Of blocks rounded before RoPE, in the order of their places.
  AlignedBuffer<float> placed(static_cast<size_t>(keys.turns ? a.n_heads * d : 0));
  if (keys.turns)
    for (int64_t h = 0; h < a.n_heads; ++h)
      for (int64_t i = 0; i < d; ++i)
        placed[size_t(h * d + i)] = scaled[size_t(h * d + keys.turns.channel[i])];
  AlignedBuffer<float> partial(static_cast<size_t>(runs * a.n_heads * d));
  AlignedBuffer<float> maximum(static_cast<size_t>(runs * a.n_heads));
  AlignedBuffer<double> total(static_cast<size_t>(runs * a.n_heads));
  auto attend_run = [&](int64_t kv, int64_t run) {
    const int64_t begin = start + run * kRun, n = std::min(kRun, p + 1 - begin);
    const int64_t hidden = std::max<int64_t>(0, low - begin);  // of the first strip, by a window
    const int64_t strip = begin / kStrip, last = strip + ceil_div(n, kStrip);
    // Heads by as many as the scratch holds.
    constexpr int64_t kHeads = 8, kStrips = kChannelBlock / kStrip;
    alignas(64) float s[kHeads * kRun];
    for (int64_t first = 0; first < group; first += kHeads) {
      const int64_t heads = std::min(kHeads, group - first), h0 = kv * group + first;
      for_pieces(keys, kv, strip, last, p, [&](const KvPiece& key) {
        const AttentionKernels with = attention_kernels(k, key.dtype);
        float* to = s + (key.begin - strip) * kStrip;
        const int64_t n_strips = key.end - key.begin;
        if (key.turns)
          with.turned_scores(heads, key.begin / kStrips, n_strips / kStrips, d,
                             placed.data() + h0 * d, d, key.data, key.turns, to, kRun);
        else
          with.scores(heads, n_strips, d, scaled.data() + h0 * d, d, key.data, to, kRun);
      });
      for (int64_t h = 0; h < heads; ++h) {
        const auto at = static_cast<size_t>(run * a.n_heads + h0 + h);
        float* row = s + h * kRun + hidden;
        maximum[at] = k.max(row, n - hidden);
        total[at] = k.exp_sum(row, n - hidden, maximum[at]);
      }
      float* mixed = partial.data() + (run * a.n_heads + h0) * d;
      for_pieces(values, kv, strip, last, p, [&](const KvPiece& value) {
        const int64_t skipped = (value.begin - strip) * kStrip;
        attention_kernels(k, value.dtype)
            .mix(heads, std::max<int64_t>(0, hidden - skipped),
                 std::min(n - skipped, (value.end - value.begin) * kStrip), d, s + skipped, kRun,
                 value.data, mixed, d, skipped > 0);
      });
    }
  };
  // A head's runs lie behind each other: a thread takes several in a row.
  const int64_t all = runs * a.n_kv_heads;
  const int64_t some = ceil_div(all, kShares * int64_t{rt.pool.size()});
  rt.pool.parallel_for(ceil_div(all, some), [&](int64_t task, int) {
    for (int64_t i = task * some; i < std::min(all, (task + 1) * some); ++i)
      attend_run(i / runs, i % runs);
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

// A strip in f32: keys [d][16], values [16][d].
void unpack_keys(const Kernels& k, const KvPiece& strip, int64_t d, float* y) {
  if (strip.dtype == Dtype::F16 || strip.dtype == Dtype::BF16)
    k.decode_row(strip.dtype, strip.data, y, kStrip * d);
  else
    load_keys(strip, d, y);
}
void unpack_values(const Kernels& k, const KvPiece& strip, int64_t d, float* y) {
  if (strip.dtype == Dtype::F16 || strip.dtype == Dtype::BF16)
    k.decode_row(strip.dtype, strip.data, y, kStrip * d);
  else
    load_values(strip.dtype, d, strip.data, y);
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
  // Positions low + j .. of one panel of KV head `head`, as the last query reads them.
  void pack(const Kernels& k, const CachedRows& key, const CachedRows& value, int64_t head,
            int64_t j) {
    AlignedBuffer<float> strip(static_cast<size_t>(kStrip * d));
    for (int64_t c = 0; c < columns; ++c) std::fill_n(value_panel(c, j), kPanel / 2 * kPanel, 0u);
    for (int64_t half = 0; half < kPanel && j + half < n; half += kStrip) {
      const int64_t s = (low + j + half) / kStrip, here = std::min(kStrip, n - j - half);
      unpack_keys(k, key.strip_at(head, s, low + n - 1), d, strip.data());
      k.interleave_pairs(kStrip, d, strip.data(), kStrip, key_panel(j) + half, kPanel);
      unpack_values(k, value.strip_at(head, s, low + n - 1), d, strip.data());
      for (int64_t c = 0; c < columns; ++c)
        k.interleave_pairs(std::min(kPanel, d - c * kPanel), here, strip.data() + c * kPanel, d,
                           value_panel(c, j + half), kPanel);
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

// Prompts where products of pairs are slow: what is seen, in f32.
void attend_unpacked(const Runtime& rt, const Attention& a, ConstMatrix q, const CachedRows& keys,
                     const CachedRows& values, int64_t first, Matrix out) {
  const int64_t d = a.d_head, low = first_key(a, first) / kStrip * kStrip;
  const int64_t strips = ceil_div(first + q.rows - low, kStrip), last = first + q.rows - 1;
  const int64_t head = (strips * kStrip + kPanel) * d;  // readable a panel past the end
  AlignedBuffer<float> key(static_cast<size_t>(a.n_kv_heads * head));
  AlignedBuffer<float> value(static_cast<size_t>(a.n_kv_heads * head));
  rt.pool.parallel_for(strips * a.n_kv_heads, [&](int64_t task, int) {
    const int64_t kv = task / strips, at = task % strips, s = low / kStrip + at;
    AlignedBuffer<float> strip(static_cast<size_t>(kStrip * d));
    unpack_keys(rt.kernels, keys.strip_at(kv, s, last), d, strip.data());
    float* to = key.data() + kv * head + at * kStrip * d;
    for (int64_t j = 0; j < kStrip; ++j)
      for (int64_t i = 0; i < d; ++i) to[j * d + i] = strip[size_t(i * kStrip + j)];
    unpack_values(rt.kernels, values.strip_at(kv, s, last), d,
                  value.data() + kv * head + at * kStrip * d);
  });
  // Positions are counted from `low`; what a window hides does not change by that.
  attend(rt, a, q, {key.data(), d, head}, {value.data(), d, head}, first - low, out);
}

}  // namespace

void attend_fast(const Runtime& rt, const Attention& a, ConstMatrix q, const CachedRows& keys,
                 const CachedRows& values, int64_t first, Matrix out) {
  const Kernels& k = rt.kernels;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads;
  if (q.rows < kFewQueries) {
    for (int64_t t = 0; t < q.rows; ++t)
      attend_one(rt, a, q.slice_rows(t, t + 1), keys, values, first + t, out.row(t));
    return;
  }
  if (!k.fast_pairs) return attend_unpacked(rt, a, q, keys, values, first, out);
  const int64_t low = first_key(a, first) / kStrip * kStrip, n = first + q.rows - low;
  std::vector<PackedKeys> packed;
  for (int64_t kv = 0; kv < a.n_kv_heads; ++kv) packed.emplace_back(low, n, d);
  const int64_t panels = ceil_div(n, kPanel);
  rt.pool.parallel_for(panels * a.n_kv_heads, [&](int64_t task, int) {
    const int64_t kv = task / panels;
    packed[size_t(kv)].pack(k, keys, values, kv, task % panels * kPanel);
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
