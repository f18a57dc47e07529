#pragma once
#include <cstdint>

#include "dtype/dtype.h"
#include "kernels/int8.h"

namespace mt {

// One row of a panel: w[i] = scale[i / 32 or i / 16] * code[i] + min[i / 32].
struct Int8Row {
  int8_t codes[256];
  float scale[16];
  float min[8];
};

// Formats whose groups of 16 have scales of their own, and those with minima.
constexpr bool int8_by_16(Dtype t) {
  return t == Dtype::Q6_K || t == Dtype::IQ2_XS || t == Dtype::IQ2_S;
}
constexpr bool int8_has_min(Dtype t) {
  return t == Dtype::Q4_1 || t == Dtype::Q5_1 || t == Dtype::Q4_K || t == Dtype::Q5_K;
}

// The largest magnitude of a format's codes.
constexpr int int8_largest(Dtype t) {
  switch (t) {
    case Dtype::Q4_0:
      return 8;
    case Dtype::Q4_1:
    case Dtype::Q4_K:
    case Dtype::IQ3_S:
      return 15;
    case Dtype::Q5_0:
      return 16;
    case Dtype::Q5_1:
    case Dtype::Q5_K:
      return 31;
    case Dtype::Q6_K:
      return 32;
    case Dtype::IQ2_XXS:
    case Dtype::IQ2_XS:
    case Dtype::IQ2_S:
      return 43;
    case Dtype::IQ3_XXS:
      return 62;
    default:
      return 128;
  }
}

// `depth` weights of a row, by plain C++.
void int8_plain_row(Dtype t, const std::byte* bytes, int64_t depth, Int8Row& row);
// Decoded weights rounded to 8 bits, one scale per 32.
void int8_rounded_row(const float* x, int64_t depth, Int8Row& row);
// Zero codes, scales and minima for the panel's rows from `rows` on.
void int8_clear_rows(int64_t rows, int64_t depth, Int8Panel& panel);

const Int8Kernels& avx2_int8_kernels();
const Int8Kernels& avx512_int8_kernels();

}  // namespace mt
