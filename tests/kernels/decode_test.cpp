#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/kernels.h"

// Every table decodes every format to mt::decode_row's bits, whatever the bytes are.
namespace mt {
namespace {

TEST(Decode, RandomBytesInEveryFormat) {
  std::mt19937 random(11);
  for (const DtypeInfo& format : all_dtypes()) {
    if (!format.decodes) continue;
    for (int64_t blocks : {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 67}) {
      for (int round = 0; round < 3; ++round) {
        int64_t n = blocks * format.block_length, bytes = blocks * format.block_bytes;
        // A heap block of exactly the row's size, the sanitizer's fence behind it.
        std::unique_ptr<std::byte[]> src(new std::byte[size_t(bytes)]);
        for (int64_t i = 0; i < bytes; ++i) src[size_t(i)] = std::byte(random() & 255);
        std::unique_ptr<float[]> expected(new float[size_t(n)]), got(new float[size_t(n)]);
        decode_row(format.dtype, src.get(), expected.get(), n);
        for (const Kernels* table : available_kernels()) {
          std::fill_n(got.get(), n, 123.0f);
          table->decode_row(format.dtype, src.get(), got.get(), n);
          for (int64_t i = 0; i < n; ++i) {
            float a = expected[size_t(i)], b = got[size_t(i)];
            ASSERT_TRUE(std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b)))
                << table->name << " " << format.name << " n=" << n << " [" << i << "]: " << b
                << ", mt::decode_row " << a;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mt
