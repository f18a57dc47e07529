#pragma once
#include <cstdint>
#include <cstring>

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
  if (t == Dtype::Q4_0) return 8;
  if (t == Dtype::Q4_1 || t == Dtype::Q4_K || t == Dtype::IQ3_S) return 15;
  if (t == Dtype::Q5_0) return 16;
  if (t == Dtype::Q5_1 || t == Dtype::Q5_K) return 31;
  if (t == Dtype::Q6_K) return 32;
  if (t == Dtype::IQ2_XXS || t == Dtype::IQ2_XS || t == Dtype::IQ2_S) return 43;
  return t == Dtype::IQ3_XXS ? 62 : 128;
}

// What the panel says of its format.
inline void int8_describe(Dtype t, Int8Panel& panel) {
  panel.by_16 = int8_by_16(t);
  panel.has_min = int8_has_min(t);
  panel.largest = int8_largest(t);
}

// Blocks of 32.
constexpr bool int8_small(Dtype t) {
  return t == Dtype::Q4_0 || t == Dtype::Q4_1 || t == Dtype::Q5_0 || t == Dtype::Q5_1 ||
         t == Dtype::Q8_0 || t == Dtype::IQ4_NL;
}

// f.operator()<format>() of a format whose codes are its own, lattices apart; false: of no such.
template <class F>
bool int8_by_format(Dtype t, F&& f) {
  auto one_of = [&]<Dtype... T>() {
    return ((t == T && (f.template operator()<T>(), true)) || ...);
  };
  return one_of.template
  operator()<Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q8_0, Dtype::IQ4_NL,
             Dtype::Q3_K, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K, Dtype::IQ4_XS>();
}

// f.operator()<by groups of 16, with minima, terms>().
template <class F>
void int8_by_layout(const Int8Panel& panel, int terms, F&& f) {
  auto in_terms = [&]<bool kBy16, bool kMin>() {
    if (terms == 1)
      f.template operator()<kBy16, kMin, 1>();
    else
      f.template operator()<kBy16, kMin, 2>();
  };
  if (panel.by_16)
    in_terms.template operator()<true, false>();
  else if (panel.has_min)
    in_terms.template operator()<false, true>();
  else
    in_terms.template operator()<false, false>();
}

// Zeros for the block's tokens from `rows` on.
inline void int8_clear_tokens(int64_t rows, Int8Block& block) {
  for (int64_t t = rows; t < kInt8Tokens; ++t) {
    std::memset(block.codes[t], 128, 32);
    block.d[t] = block.sum[t] = 0.0f;
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
