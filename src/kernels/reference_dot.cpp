#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/checked.h"
#include "kernels/tables.h"

// The fast path's specification: what is rounded (the activations, to int8 per 32 values) and
// what is not (everything else, in f64 here).
namespace mt {

QuantisedLayout quantised_layout(int64_t n) {
  int64_t padded = ceil_div(n, 256) * 256;
  QuantisedLayout layout;
  layout.q = padded * 4;
  layout.d = layout.q + padded;
  layout.sum = layout.d + ceil_div(padded / 32 * 4, 64) * 64;
  layout.bytes = layout.sum + padded / 16 * 4;
  return layout;
}

int64_t reference_quantised_bytes(int64_t n) {
  return quantised_layout(n).bytes;
}

void reference_quantise(const float* x, int64_t n, std::byte* q) {
  QuantisedLayout layout = quantised_layout(n);
  std::memset(q, 0, static_cast<size_t>(layout.bytes));
  std::memcpy(q, x, static_cast<size_t>(n) * sizeof(float));
  for (int64_t block = 0; block < n / 32; ++block) {
    const float* xb = x + block * 32;
    float largest = 0.0f;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(xb[i]));
    float d = largest / 127.0f;
    float inverse = d > 0.0f ? 127.0f / largest : 0.0f;
    if (!std::isfinite(inverse)) d = inverse = 0.0f;
    float sum[2] = {};
    int8_t code[32];
    for (int i = 0; i < 32; ++i) {
      float scaled = xb[i] * inverse;
      code[i] = std::isfinite(scaled) ? static_cast<int8_t>(std::nearbyint(scaled)) : int8_t{0};
      sum[i / 16] += static_cast<float>(code[i]);
    }
    for (float& s : sum) s *= d;
    std::memcpy(q + layout.q + block * 32, code, 32);
    std::memcpy(q + layout.d + block * 4, &d, 4);
    std::memcpy(q + layout.sum + block * 8, sum, 8);
  }
}

bool reference_has_rows_dot(Dtype dtype) {
  switch (dtype) {
    case Dtype::F32:
    case Dtype::F16:
    case Dtype::BF16:
    case Dtype::Q4_0:
    case Dtype::Q4_1:
    case Dtype::Q5_0:
    case Dtype::Q5_1:
    case Dtype::Q8_0:
    case Dtype::Q2_K:
    case Dtype::Q3_K:
    case Dtype::Q4_K:
    case Dtype::Q5_K:
    case Dtype::Q6_K:
    case Dtype::IQ4_NL:
    case Dtype::IQ4_XS:
    case Dtype::MXFP4:
    case Dtype::Q1_0:
    case Dtype::Q2_0:
      return true;
    case Dtype::IQ2_XXS:
    case Dtype::IQ2_XS:
    case Dtype::IQ3_XXS:
    case Dtype::IQ1_S:
    case Dtype::IQ3_S:
    case Dtype::IQ2_S:
    case Dtype::I8:
    case Dtype::I16:
    case Dtype::I32:
    case Dtype::I64:
    case Dtype::F64:
    case Dtype::IQ1_M:
    case Dtype::TQ1_0:
    case Dtype::TQ2_0:
    case Dtype::NVFP4:
      return false;
  }
  return false;
}

void reference_rows_dot(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows,
                        const std::byte* q, int64_t n, float* y) {
  QuantisedLayout layout = quantised_layout(n);
  bool plain = dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16;
  std::vector<float> row(static_cast<size_t>(n)), x(static_cast<size_t>(n));
  std::memcpy(x.data(), q, static_cast<size_t>(n) * sizeof(float));
  if (!plain) {
    for (int64_t i = 0; i < n; ++i) {
      float d;
      std::memcpy(&d, q + layout.d + i / 32 * 4, 4);
      x[size_t(i)] = d * static_cast<float>(static_cast<int8_t>(q[layout.q + i]));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    mt::decode_row(dtype, w + r * row_bytes, row.data(), n);
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += double(row[size_t(i)]) * double(x[size_t(i)]);
    y[r] = static_cast<float>(sum);
  }
}

}  // namespace mt
