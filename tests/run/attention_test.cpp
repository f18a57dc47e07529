#include "run/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "run/linear.h"
#include "run/rope.h"

// The fast path's attention beside the exact one over what the cache holds: for single tokens f32
// sums in another order, for prompts products of values rounded to bf16 (relative 2^-9 each).
namespace mt {
namespace {

struct Case {
  int64_t n_heads, n_kv_heads, d_head, window, first, n;
};

constexpr Case kCases[] = {
    {3, 1, 64, 0, 0, 1},      {6, 2, 64, 0, 700, 1},    {4, 4, 32, 0, 5, 3},
    {12, 2, 128, 0, 1300, 2}, {7, 1, 96, 100, 1000, 1}, {7, 1, 80, 100, 1000, 1},
    {9, 3, 64, 0, 0, 70},     {4, 2, 48, 0, 600, 33},   {2, 1, 256, 64, 900, 130},
    {9, 1, 16, 700, 1100, 5}, {9, 1, 32, 523, 1100, 5}, {10, 1, 32, 20, 33, 3},
    {6, 2, 64, 0, 1305, 8},   {3, 1, 64, 50, 250, 8},   {3, 1, 64, 0, 27, 8},
    {4, 1, 64, 33, 90, 20}};

constexpr Dtype kTypes[] = {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0};
constexpr Dtype kKeyTypes[] = {Dtype::F32,  Dtype::F16,  Dtype::BF16, Dtype::Q8_0,
                               Dtype::Q4_0, Dtype::Q4_1, Dtype::Q4_1};  // the last before RoPE

MatrixBuffer random_matrix(int64_t rows, int64_t cols, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  MatrixBuffer m(rows + 1, cols);  // attention reads 32 floats past the last row
  for (int64_t i = 0; i < (rows + 1) * cols; ++i)
    m.data()[i] = std::normal_distribution<float>()(random);
  return m;
}
ConstMatrix all(const MatrixBuffer& m) {
  return m.view().slice_rows(0, m.rows() - 1);
}

// Rows in a store's slot 1 of 3, and what a query at a position reads there, [n, heads*d] and a row
// to read past.
struct Cached {
  KvPart part;
  int64_t n_heads, d;
  KvStore store;
  Cached(KvPart part_, Dtype type, ConstMatrix rows, int64_t heads, int64_t width,
         const KeyTurns& turns = {})
      : part(part_),
        n_heads(heads),
        d(width),
        store(part, type, 3, n_heads, d, rows.rows + 5, turns) {
    ThreadPool pool(1);
    for (int64_t t = 0; t < rows.rows; ++t) {
      std::vector<float> other(size_t(rows.cols), 1e3f);  // the neighbours' rows do not count
      const ConstMatrix others{other.data(), 1, rows.cols, rows.cols};
      store.append(pool, 0, t, others);
      store.append(pool, 1, t, rows.slice_rows(t, t + 1));
      store.append(pool, 2, t, others);
    }
  }
  MatrixBuffer held(int64_t position) const {
    MatrixBuffer out(position + 2, n_heads * d);
    out.zero();
    const CachedRows r = store.rows(1);
    std::vector<float> strip(size_t(kStrip * d));
    for (int64_t h = 0; h < n_heads; ++h)
      for (int64_t t = 0; t <= position; ++t) {
        const KvPiece s = r.strip_at(h, t / kStrip, position);
        if (t % kStrip == 0 && part == KvPart::keys) load_keys(s, d, strip.data());
        if (t % kStrip == 0 && part == KvPart::values)
          load_values(s.dtype, d, s.data, strip.data());
        for (int64_t i = 0; i < d; ++i)
          out.row(t)[h * d + i] =
              strip[size_t(part == KvPart::keys ? i * kStrip + t % kStrip : t % kStrip * d + i)];
      }
    return out;
  }
};

Attention attention_of(const Case& c) {
  Attention a;
  a.n_heads = c.n_heads;
  a.n_kv_heads = c.n_kv_heads;
  a.d_head = c.d_head;
  a.window = c.window;
  a.scale = 1.0f / std::sqrt(static_cast<float>(c.d_head));
  a.rope_dims = c.d_head;
  a.rope_neox = c.n_heads % 2;
  return a;
}

TEST(AttendFast, IsNearTheExactOneAndTheSameForAnyThreads) {
  ThreadPool one(1), three(3);
  int number = 0;
  for (const Case& c : kCases) {
    const Attention a = attention_of(c);
    const MatrixBuffer q = random_matrix(c.n, c.n_heads * c.d_head, 1);
    const MatrixBuffer keys = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 2);
    const MatrixBuffer values = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 3);
    ++number;
    const BlockTurns turns(a, c.first + c.n + 5);
    for (size_t k = 0; k < std::size(kKeyTypes); ++k) {
      // Keys in every format, values in another one: the diagonal is met by some case.
      const Dtype key_type = kKeyTypes[k], value_type = kTypes[(k + size_t(number)) % 5];
      if (!kv_type_fits(key_type, c.d_head) || !kv_type_fits(value_type, c.d_head)) continue;
      const Cached key(KvPart::keys, key_type, all(keys), c.n_kv_heads, c.d_head,
                       k == 6 ? turns.turns() : KeyTurns{});
      const Cached value(KvPart::values, value_type, all(values), c.n_kv_heads, c.d_head);
      MatrixBuffer exact(c.n, c.n_heads * c.d_head);
      // Few queries: each by itself, with what it reads.
      const int64_t step = c.n < 9 ? 1 : c.n;
      for (int64_t t = 0; t < c.n; t += step) {
        const MatrixBuffer k_held = key.held(c.first + t + step - 1);
        const MatrixBuffer v_held = value.held(c.first + t + step - 1);
        attend({select_kernels(), three}, a, all(q).slice_rows(t, t + step),
               HeadRows::of(all(k_held), c.d_head), HeadRows::of(all(v_held), c.d_head),
               c.first + t, exact.view().slice_rows(t, t + step));
      }
      for (const Kernels* table : available_kernels()) {
        MatrixBuffer fast(c.n, c.n_heads * c.d_head), again(c.n, c.n_heads * c.d_head);
        attend_fast({*table, three}, a, all(q), key.store.rows(1), value.store.rows(1), c.first,
                    fast);
        attend_fast({*table, one}, a, all(q), key.store.rows(1), value.store.rows(1), c.first,
                    again);
        // bf16: scores are off by at most 2^-8 sum |q k| scale, about 3 % of the shares at worst
        // here. Bytes: a query is rounded to 2^-15.9 of its largest, scores to 1e-4 at worst.
        const bool bf16 = table->fast_pairs && c.n >= 9;
        const double bound = bf16 ? 0.03 : has_kv_scales(key_type) ? 1e-4 : 2e-6;
        for (int64_t i = 0; i < c.n * c.n_heads * c.d_head; ++i) {
          ASSERT_NEAR(fast.data()[i], exact.data()[i], bound)
              << table->name << " " << name(key_type) << " " << name(value_type) << " d "
              << c.d_head << " first " << c.first << " at " << i;
          ASSERT_EQ(fast.data()[i], again.data()[i]) << table->name << " " << name(key_type);
        }
      }
    }
  }
}

// Of the cache's rounding alone, in the root mean square over normal keys and values: a score is
// off by e (e: of one value, relative), so is a mixed value, and the two are independent.
TEST(AttendFast, FormatsCostTheirRounding) {
  ThreadPool pool(2);
  const Case c{6, 2, 64, 0, 700, 1};
  const Attention a = attention_of(c);
  const MatrixBuffer q = random_matrix(c.n, c.n_heads * c.d_head, 1);
  const MatrixBuffer keys = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 2);
  const MatrixBuffer values = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 3);
  MatrixBuffer exact(c.n, c.n_heads * c.d_head), fast(c.n, c.n_heads * c.d_head);
  attend({select_kernels(), pool}, a, all(q), HeadRows::of(all(keys), c.d_head),
         HeadRows::of(all(values), c.d_head), c.first, exact);
  // A block's largest of 32 normal values is 2.1 on average: steps of 2.1 / 127 and 2.1 / 8.
  // Q4_1: values in F16, and keys by channel have 15 steps from least to largest of 32, 4.1.
  const std::pair<Dtype, double> expected[] = {{Dtype::F16, 2.1e-4},
                                               {Dtype::BF16, 1.7e-3},
                                               {Dtype::Q8_0, 4.8e-3},
                                               {Dtype::Q4_0, 7.6e-2},
                                               {Dtype::Q4_1, 7.9e-2}};
  for (const auto& [type, e] : expected) {
    const Cached key(KvPart::keys, type, all(keys), c.n_kv_heads, c.d_head);
    const Cached value(KvPart::values, by_channel(type) ? Dtype::F16 : type, all(values),
                       c.n_kv_heads, c.d_head);
    attend_fast({select_kernels(), pool}, a, all(q), key.store.rows(1), value.store.rows(1),
                c.first, fast);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < c.n_heads * c.d_head; ++i) {
      difference += std::pow(double(fast.data()[i]) - double(exact.data()[i]), 2);
      size += std::pow(double(exact.data()[i]), 2);
    }
    const double relative = std::sqrt(difference / size);
    EXPECT_LT(relative, 2 * e) << name(type);
    EXPECT_GT(relative, 0.5 * e) << name(type);
  }
}

// Keys of real models have channels that lie far from zero and vary little: by rows they set the
// step of all others, by channel their own alone.
TEST(AttendFast, ByChannelLargeChannelsCostTheOthersNothing) {
  ThreadPool pool(2);
  const Case c{6, 2, 64, 0, 700, 1};
  const Attention a = attention_of(c);
  const MatrixBuffer q = random_matrix(c.n, c.n_heads * c.d_head, 1);
  MatrixBuffer keys = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 2);
  const MatrixBuffer values = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 3);
  for (int64_t t = 0; t <= c.first; ++t)
    for (int64_t i = 0; i < keys.cols(); i += 16) keys.row(t)[i] += 20;
  MatrixBuffer exact(c.n, c.n_heads * c.d_head), fast(c.n, c.n_heads * c.d_head);
  attend({select_kernels(), pool}, a, all(q), HeadRows::of(all(keys), c.d_head),
         HeadRows::of(all(values), c.d_head), c.first, exact);
  const Cached value(KvPart::values, Dtype::F16, all(values), c.n_kv_heads, c.d_head);
  auto error = [&](Dtype type) {
    const Cached key(KvPart::keys, type, all(keys), c.n_kv_heads, c.d_head);
    attend_fast({select_kernels(), pool}, a, all(q), key.store.rows(1), value.store.rows(1),
                c.first, fast);
    double sum = 0;
    for (int64_t i = 0; i < c.n_heads * c.d_head; ++i)
      sum += std::pow(double(fast.data()[i]) - double(exact.data()[i]), 2);
    return std::sqrt(sum);
  };
  const double rows = error(Dtype::Q4_0), channels = error(Dtype::Q4_1);
  EXPECT_LT(channels, 0.2 * rows) << channels << " " << rows;
}

}  // namespace
}  // namespace mt
