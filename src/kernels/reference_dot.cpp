#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
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

int64_t reference_quantised_bytes(int64_t n, int terms) {
  return terms * quantised_layout(n).bytes;
}

void quantise_padding(const float* x, int64_t n, std::byte* blob) {
  QuantisedLayout layout = quantised_layout(n);
  std::memcpy(blob, x, static_cast<size_t>(n) * 4);
  std::memset(blob + n * 4, 0, static_cast<size_t>(layout.q - n * 4));
  std::memset(blob + layout.q + n, 0, static_cast<size_t>(layout.d - layout.q - n));
  std::memset(blob + layout.d + n / 8, 0, static_cast<size_t>(layout.sum - layout.d - n / 8));
  std::memset(blob + layout.sum + n / 4, 0, static_cast<size_t>(layout.bytes - layout.sum - n / 4));
}

void quantise_scale(uint32_t largest_bits, float& d, float& inverse) {
  float largest = std::bit_cast<float>(largest_bits);
  d = inverse = 0.0f;
  if (largest_bits >= 0x7f800000u) {
    d = std::numeric_limits<float>::quiet_NaN();
  } else if (largest >= 1.27e-36f) {
    d = largest / 127.0f;
    inverse = 127.0f / largest;
  }
}

namespace {

// rest: the second of two terms.
void quantise_term(const float* x, int64_t n, std::byte* blob, bool rest) {
  QuantisedLayout layout = quantised_layout(n);
  quantise_padding(x, n, blob);
  for (int64_t block = 0; block < n / 32; ++block) {
    const float* xb = x + block * 32;
    uint32_t largest = 0;
    for (int i = 0; i < 32; ++i)
      largest = std::max(largest, std::bit_cast<uint32_t>(xb[i]) & 0x7fffffffu);
    float d, inverse;
    quantise_scale(largest, d, inverse);
    int8_t code[32] = {};
    int total[2] = {};
    if (rest) d /= float{kSecondSteps};
    for (int i = 0; i < 32 && inverse != 0.0f; ++i) {
      const float steps = xb[i] * inverse, whole = std::nearbyint(steps);
      code[i] =
          static_cast<int8_t>(rest ? std::nearbyint((steps - whole) * float{kSecondSteps}) : whole);
      total[i / 16] += code[i];
    }
    float sum[2] = {d * static_cast<float>(total[0]), d * static_cast<float>(total[1])};
    std::memcpy(blob + layout.q + block * 32, code, 32);
    std::memcpy(blob + layout.d + block * 4, &d, 4);
    std::memcpy(blob + layout.sum + block * 8, sum, 8);
  }
}

}  // namespace

void reference_quantise(const float* x, int64_t n, int terms, std::byte* blob) {
  quantise_term(x, n, blob, false);
  if (terms == 2) quantise_term(x, n, blob + quantised_layout(n).bytes, true);
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
                        const std::byte* q, int64_t q_bytes, int64_t tokens, int terms, int64_t n,
                        float* y, int64_t ldy) {
  QuantisedLayout layout = quantised_layout(n);
  bool plain = dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16;
  std::vector<float> row(static_cast<size_t>(n)), x(static_cast<size_t>(n));
  std::vector<double> rounded(static_cast<size_t>(n));
  for (int64_t t = 0; t < tokens; ++t, q += q_bytes) {
    std::memcpy(x.data(), q, static_cast<size_t>(n) * sizeof(float));
    for (int64_t i = 0; i < n; ++i) {
      rounded[size_t(i)] = plain ? double(x[size_t(i)]) : 0.0;
      for (const std::byte* term = q; !plain && term < q + terms * layout.bytes;
           term += layout.bytes) {
        float d;
        std::memcpy(&d, term + layout.d + i / 32 * 4, 4);
        rounded[size_t(i)] += double(d) * static_cast<int8_t>(term[layout.q + i]);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      mt::decode_row(dtype, w + r * row_bytes, row.data(), n);
      double sum = 0.0;
      for (int64_t i = 0; i < n; ++i) sum += double(row[size_t(i)]) * rounded[size_t(i)];
      y[t * ldy + r] = static_cast<float>(sum);
    }
  }
}

}  // namespace mt
