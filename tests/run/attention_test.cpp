#include "run/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "run/linear.h"

// The fast path's attention beside the exact one: for single tokens f32 sums in another order, for
// prompts products of values rounded to bf16 (relative 2^-9 each).
namespace mt {
namespace {

struct Case {
  int64_t n_heads, n_kv_heads, d_head, window, first, n;
};

MatrixBuffer random_matrix(int64_t rows, int64_t cols, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  MatrixBuffer m(rows + 1, cols);  // attention reads 32 floats past the last row
  for (int64_t i = 0; i < (rows + 1) * cols; ++i)
    m.data()[i] = std::normal_distribution<float>()(random);
  return m;
}

TEST(AttendFast, IsNearTheExactOneAndTheSameForAnyThreads) {
  ThreadPool one(1), three(3);
  for (const Case& c :
       {Case{3, 1, 64, 0, 0, 1}, Case{6, 2, 64, 0, 700, 1}, Case{4, 4, 32, 0, 5, 3},
        Case{12, 2, 128, 0, 1300, 2}, Case{7, 1, 80, 100, 1000, 1}, Case{9, 3, 64, 0, 0, 70},
        Case{4, 2, 48, 0, 600, 33}, Case{2, 1, 256, 64, 900, 130}, Case{9, 1, 16, 700, 1100, 5}}) {
    Attention a;
    a.n_heads = c.n_heads;
    a.n_kv_heads = c.n_kv_heads;
    a.d_head = c.d_head;
    a.window = c.window;
    a.scale = 1.0f / std::sqrt(static_cast<float>(c.d_head));
    const MatrixBuffer q = random_matrix(c.n, c.n_heads * c.d_head, 1);
    const MatrixBuffer keys = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 2);
    const MatrixBuffer values = random_matrix(c.first + c.n, c.n_kv_heads * c.d_head, 3);
    auto all = [&](const MatrixBuffer& m) { return m.view().slice_rows(0, m.rows() - 1); };
    for (const Kernels* table : available_kernels()) {
      MatrixBuffer exact(c.n, c.n_heads * c.d_head), fast(c.n, c.n_heads * c.d_head),
          again(c.n, c.n_heads * c.d_head);
      attend({*table, three}, a, all(q), all(keys), all(values), c.first, exact);
      attend_fast({*table, three}, a, all(q), all(keys), all(values), c.first, fast);
      attend_fast({*table, one}, a, all(q), all(keys), all(values), c.first, again);
      // Scores are off by at most 2^-8 sum |q k| scale, about 3 % of the shares at worst here.
      const double bound = table->fast_pairs && c.n >= 9 ? 0.03 : 2e-6;
      for (int64_t i = 0; i < c.n * c.n_heads * c.d_head; ++i) {
        ASSERT_NEAR(fast.data()[i], exact.data()[i], bound)
            << table->name << " d " << c.d_head << " first " << c.first << " at " << i;
        ASSERT_EQ(fast.data()[i], again.data()[i]) << table->name;
      }
    }
  }
}

}  // namespace
}  // namespace mt
