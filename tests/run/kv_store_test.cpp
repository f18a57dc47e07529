#include "run/kv_store.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace mt {
namespace {

TEST(KvStore, PositionsWrittenAgainLeaveNoTrace) {
  constexpr int64_t d = 64, n_heads = 2, n = 53;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> rows(n * n_heads * d), wrong(n_heads * d);
  for (float& x : rows) x = normal(random);
  for (Dtype type : {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0})
    for (KvPart part : {KvPart::keys, KvPart::values}) {
      KvStore once(part, type, 2, n_heads, d, n), again(part, type, 2, n_heads, d, n);
      for (int64_t p = 0; p < n; ++p) {
        once.write(1, p, rows.data() + p * n_heads * d);
        // Drafts that were not kept lie over the next positions, beyond a strip's end too.
        for (int64_t q = p; q < std::min(n, p + 7); ++q) {
          for (float& x : wrong) x = 100 * normal(random);
          again.write(1, q, wrong.data());
        }
        again.write(1, p, rows.data() + p * n_heads * d);
      }
      const CachedRows a = once.rows(1), b = again.rows(1);
      for (int64_t h = 0; h < n_heads; ++h)
        for (int64_t s = 0; s < n / kStrip; ++s)  // the last strip has positions without content
          EXPECT_EQ(
              std::memcmp(a.strip(h, s), b.strip(h, s), size_t(kv_strip_bytes(a.dtype_of(s), d))),
              0)
              << name(type) << " strip " << s;
    }
}

}  // namespace
}  // namespace mt
