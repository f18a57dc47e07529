#pragma once
#include <cstring>
#include <random>
#include <vector>

#include "dtype/dtype.h"

namespace mt {

// Random codes under scales that are finite and neither all alike nor far apart.
inline std::vector<std::byte> random_rows(std::mt19937& random, Dtype t, int64_t blocks) {
  const DtypeInfo& format = info(t);
  std::vector<std::byte> w(size_t(blocks * format.block_bytes));
  for (std::byte& b : w) b = std::byte(random() & 255);
  auto put_half = [&](int64_t at) {
    uint16_t h = float_to_half(std::uniform_real_distribution<float>(-0.1f, 0.1f)(random));
    std::memcpy(w.data() + at, &h, 2);
  };
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t at = b * format.block_bytes;
    if (t == Dtype::F32) {
      float f = std::normal_distribution<float>()(random);
      std::memcpy(w.data() + at, &f, 4);
    } else if (t == Dtype::BF16) {
      uint16_t h = float_to_bf16(std::normal_distribution<float>()(random));
      std::memcpy(w.data() + at, &h, 2);
    } else if (t == Dtype::MXFP4) {
      w[size_t(at)] = std::byte(120 + random() % 10);
    } else if (t == Dtype::Q2_K) {
      put_half(at + 80);
      put_half(at + 82);
    } else if (t == Dtype::Q3_K) {
      put_half(at + 108);
    } else if (t == Dtype::Q6_K) {
      put_half(at + 208);
    } else if (t == Dtype::TQ2_0) {
      put_half(at + 64);
    } else {
      put_half(at);
      if (t == Dtype::Q4_1 || t == Dtype::Q5_1 || t == Dtype::Q4_K || t == Dtype::Q5_K)
        put_half(at + 2);
    }
  }
  return w;
}

}  // namespace mt
