#include <arm_neon.h>
#include <sys/auxv.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/attributes.h"
#include "kernels/denormals.h"
#include "kernels/exp_constants.h"
#include "kernels/int8_codes.h"
#include "kernels/tables.h"

// NEON: the reference's 16 lanes are four vector registers. Rotations, transposing, decoding and
// the rounding of activations are the reference's own.
namespace mt {
namespace {

constexpr int kQuads = 4;  // registers of 16 columns

// The first n of 16 columns of c, or zeros.
void load_columns(float32x4_t (&sum)[kQuads], const float* c, int64_t n, bool accumulate) {
  float columns[16] = {};
  if (accumulate) std::copy_n(c, std::min<int64_t>(n, 16), columns);
  for (int j = 0; j < kQuads; ++j) sum[j] = vld1q_f32(columns + 4 * j);
}
void store_columns(const float32x4_t (&sum)[kQuads], float* c, int64_t n) {
  float columns[16];
  for (int j = 0; j < kQuads; ++j) vst1q_f32(columns + 4 * j, sum[j]);
  std::copy_n(columns, std::min<int64_t>(n, 16), c);
}

// R rows by 16 columns: 4 R sums, R <= 6 leaves registers for b and a.
template <int R>
void gemm_rows(int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
               float* c, int64_t ldc, bool accumulate) {
  float32x4_t sum[R][kQuads];
  MT_UNROLL
  for (int r = 0; r < R; ++r) load_columns(sum[r], c + r * ldc, n, accumulate);
  for (int64_t p = 0; p < k; ++p, b += ldb) {
    float32x4_t v[kQuads];
    MT_UNROLL
    for (int j = 0; j < kQuads; ++j) v[j] = vld1q_f32(b + 4 * j);
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const float32x4_t x = vdupq_n_f32(a[r * lda + p]);
      MT_UNROLL
      for (int j = 0; j < kQuads; ++j) sum[r][j] = vfmaq_f32(sum[r][j], x, v[j]);
    }
  }
  MT_UNROLL
  for (int r = 0; r < R; ++r) store_columns(sum[r], c + r * ldc, n);
}

using GemmRows = void (*)(int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*,
                          int64_t, bool);
constexpr GemmRows gemm_rows_of[7] = {nullptr,      gemm_rows<1>, gemm_rows<2>, gemm_rows<3>,
                                      gemm_rows<4>, gemm_rows<5>, gemm_rows<6>};

void gemm_panel(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  for (int64_t i = 0; i < m; i += 6)
    for (int64_t j = 0; j < n; j += 16)
      gemm_rows_of[std::min<int64_t>(6, m - i)](n - j, k, a + i * lda, lda, b + j, ldb,
                                                c + i * ldc + j, ldc, accumulate);
}

float32x4_t high_half(uint32x4_t pair) {
  return vreinterpretq_f32_u32(vandq_u32(pair, vdupq_n_u32(0xffff0000u)));
}
float32x4_t low_half(uint32x4_t pair) {
  return vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
}

template <int R>
void pair_rows(int64_t n, int64_t k, const uint32_t* a, int64_t a_row, int64_t a_pair,
               const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  float32x4_t sum[R][kQuads];
  MT_UNROLL
  for (int r = 0; r < R; ++r) load_columns(sum[r], c + r * ldc, n, accumulate);
  for (int64_t p = 0; p < k; ++p, b += ldb) {
    float32x4_t high[kQuads], low[kQuads];
    MT_UNROLL
    for (int j = 0; j < kQuads; ++j) {
      const uint32x4_t v = vld1q_u32(b + 4 * j);
      high[j] = high_half(v);
      low[j] = low_half(v);
    }
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint32x4_t x = vdupq_n_u32(a[r * a_row + p * a_pair]);
      MT_UNROLL
      for (int j = 0; j < kQuads; ++j) sum[r][j] = vfmaq_f32(sum[r][j], high_half(x), high[j]);
      MT_UNROLL
      for (int j = 0; j < kQuads; ++j) sum[r][j] = vfmaq_f32(sum[r][j], low_half(x), low[j]);
    }
  }
  MT_UNROLL
  for (int r = 0; r < R; ++r) store_columns(sum[r], c + r * ldc, n);
}

using PairRows = void (*)(int64_t, int64_t, const uint32_t*, int64_t, int64_t, const uint32_t*,
                          int64_t, float*, int64_t, bool);
constexpr PairRows pair_rows_of[4] = {nullptr, pair_rows<1>, pair_rows<2>, pair_rows<3>};

// Whether a result was flushed to zero since the last call.
bool take_underflow() {
  constexpr uint64_t kUnderflow = 1 << 3;
  uint64_t word;
  asm volatile("mrs %0, fpsr" : "=r"(word) : : "memory");
  asm volatile("msr fpsr, %0" : : "r"(word & ~kUnderflow) : "memory");
  return (word & kUnderflow) != 0;
}

// This processor calls a result tiny before it is rounded, the specification after: where one was
// flushed the tile is computed again as the reference does it.
void gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row, int64_t a_pair,
                const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  constexpr int64_t kRows = 3;
  for (int64_t i = 0; i < m; i += kRows)
    for (int64_t j = 0; j < n; j += 16) {
      const int64_t rows = std::min(kRows, m - i), columns = std::min<int64_t>(16, n - j);
      float before[kRows][16];
      for (int64_t r = 0; accumulate && r < rows; ++r)
        std::copy_n(c + (i + r) * ldc + j, columns, before[r]);
      bool underflow;
      {
        const DenormalsAreZero flags;
        take_underflow();
        pair_rows_of[rows](columns, k, a + i * a_row, a_row, a_pair, b + j, ldb, c + i * ldc + j,
                           ldc, accumulate);
        underflow = take_underflow();
      }
      if (!underflow) continue;
      for (int64_t r = 0; accumulate && r < rows; ++r)
        std::copy_n(before[r], columns, c + (i + r) * ldc + j);
      reference_gemm_pairs(rows, columns, k, a + i * a_row, a_row, a_pair, b + j, ldb,
                           c + i * ldc + j, ldc, accumulate);
    }
}

float32x4_t exponential(float32x4_t x) {
  using namespace exp_constants;
  const float32x4_t t = vfmaq_f32(vdupq_n_f32(magic), x, vdupq_n_f32(log2_e));
  const float32x4_t n = vsubq_f32(t, vdupq_n_f32(magic));
  float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(minus_ln2_high));
  r = vfmaq_f32(r, n, vdupq_n_f32(minus_ln2_low));
  float32x4_t p = vdupq_n_f32(q4);
  for (float q : {q3, q2, q1, q0, 1.0f, 1.0f}) p = vfmaq_f32(vdupq_n_f32(q), p, r);
  const uint32x4_t exponent =
      vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(t), 23), vdupq_n_u32(0x3f800000u));
  float32x4_t y = vmulq_f32(p, vreinterpretq_f32_u32(exponent));
  y = vbslq_f32(vcltq_f32(x, vdupq_n_f32(lowest)), vdupq_n_f32(0.0f), y);
  return vbslq_f32(vcgtq_f32(x, vdupq_n_f32(highest)),
                   vdupq_n_f32(std::numeric_limits<float>::infinity()), y);
}

// y[i] = f(x[i], z[i]), four at a time; the last ones beside zeros.
template <class F>
void by_fours(const float* x, const float* z, float* y, int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(y + i, f(vld1q_f32(x + i), vld1q_f32(z + i)));
  if (i == n) return;
  float a[4] = {}, b[4] = {};
  std::copy_n(x + i, n - i, a);
  std::copy_n(z + i, n - i, b);
  vst1q_f32(a, f(vld1q_f32(a), vld1q_f32(b)));
  std::copy_n(a, n - i, y + i);
}

double exp_sum(float* x, int64_t n, float shift) {
  by_fours(x, x, x, n, [&](float32x4_t v, float32x4_t) {
    return exponential(vsubq_f32(v, vdupq_n_f32(shift)));
  });
  double lane[16] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % 16] += double(x[i]);
  return add_pairwise(lane);
}

void silu_mul(const float* g, const float* u, float* y, int64_t n) {
  const float32x4_t one = vdupq_n_f32(1.0f);
  by_fours(g, u, y, n, [&](float32x4_t x, float32x4_t up) {
    const float32x4_t e = exponential(vsubq_f32(vdupq_n_f32(0.0f), x));
    return vmulq_f32(vdivq_f32(x, vaddq_f32(one, e)), up);
  });
}

void gelu_mul(const float* g, const float* u, float* y, int64_t n) {
  using namespace exp_constants;
  const float32x4_t one = vdupq_n_f32(1.0f);
  by_fours(g, u, y, n, [&](float32x4_t x, float32x4_t up) {
    const float32x4_t w =
        vmulq_f32(vfmaq_f32(vdupq_n_f32(gelu_linear), vmulq_f32(x, x), vdupq_n_f32(gelu_cubic)), x);
    return vmulq_f32(vdivq_f32(x, vaddq_f32(one, exponential(w))), up);
  });
}

float dot(const float* x, const float* y, int64_t n) {
  float32x4_t sum[kQuads] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < kQuads; ++j)
      sum[j] = vfmaq_f32(sum[j], vld1q_f32(x + i + 4 * j), vld1q_f32(y + i + 4 * j));
  float lane[16];
  for (int j = 0; j < kQuads; ++j) vst1q_f32(lane + 4 * j, sum[j]);
  for (int l = 0; i + l < n; ++l) lane[l] = __builtin_fmaf(x[i + l], y[i + l], lane[l]);
  return add_pairwise(lane);
}

void axpy(float a, const float* x, float* y, int64_t n) {
  by_fours(x, y, y, n,
           [&](float32x4_t v, float32x4_t sum) { return vfmaq_f32(sum, vdupq_n_f32(a), v); });
}

void add(const float* x, float* y, int64_t n) {
  by_fours(x, y, y, n, [](float32x4_t v, float32x4_t sum) { return vaddq_f32(sum, v); });
}

void scale_mul(const float* x, const float* gain, float s, float* y, int64_t n) {
  by_fours(x, gain, y, n, [&](float32x4_t v, float32x4_t g) {
    return vmulq_f32(vmulq_f32(v, vdupq_n_f32(s)), g);
  });
}

// ---- dot products: int8 codes of 32 inputs, 16 a register ----
// sum of 16 products of bytes, four lanes that are still to be added
using Products = int32x4_t (*)(int8x16_t, int8x16_t);

inline int32x4_t products_plain(int8x16_t a, int8x16_t b) {
  return vpadalq_s16(vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b))), vmull_high_s8(a, b));
}

#define MT_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
MT_DOTPROD inline int32x4_t products_dot(int8x16_t a, int8x16_t b) {
  return vdotq_s32(vdupq_n_s32(0), a, b);
}

// What a row's codes of `depth` inputs give with activations at `q`, from input `first` on.
#define MT_ROW_DOT(name, isa, products)                                                            \
  isa float name(const Int8Row& row, bool by_16, bool has_min, int64_t depth, int64_t first,       \
                 const QuantisedLayout& layout, const std::byte* q) {                              \
    const auto* codes = reinterpret_cast<const int8_t*>(q + layout.q) + first;                     \
    const auto* d = reinterpret_cast<const float*>(q + layout.d) + first / 32;                     \
    const auto* sums = reinterpret_cast<const float*>(q + layout.sum) + first / 16;                \
    float total = 0;                                                                               \
    for (int64_t g = 0; g < depth / 32; ++g) {                                                     \
      const int32x4_t a = products(vld1q_s8(row.codes + 32 * g), vld1q_s8(codes + 32 * g));        \
      const int32x4_t b =                                                                          \
          products(vld1q_s8(row.codes + 32 * g + 16), vld1q_s8(codes + 32 * g + 16));              \
      const float scaled = by_16 ? row.scale[2 * g] * static_cast<float>(vaddvq_s32(a)) +          \
                                       row.scale[2 * g + 1] * static_cast<float>(vaddvq_s32(b))    \
                                 : row.scale[g] * static_cast<float>(vaddvq_s32(vaddq_s32(a, b))); \
      total += d[g] * scaled;                                                                      \
      if (has_min) total += row.min[g] * (sums[2 * g] + sums[2 * g + 1]);                          \
    }                                                                                              \
    return total;                                                                                  \
  }
MT_ROW_DOT(row_dot_plain, , products_plain)
MT_ROW_DOT(row_dot_dotprod, MT_DOTPROD, products_dot)
#undef MT_ROW_DOT

bool has_dotprod() {
  static const bool has = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  return has;
}

void rows_dot(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows, const std::byte* q,
              int64_t q_bytes, int64_t tokens, int terms, int64_t n, float* y, int64_t ldy) {
  constexpr int64_t kDepth = 256;
  const QuantisedLayout layout = quantised_layout(n);
  const DtypeInfo& format = info(dtype);
  const bool plain = dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16;
  const bool own_codes = !plain && int8_own_codes(dtype);
  const auto row_dot = has_dotprod() ? row_dot_dotprod : row_dot_plain;
  for (int64_t r = 0; r < rows; ++r, w += row_bytes) {
    for (int64_t t = 0; t < tokens; ++t) y[t * ldy + r] = 0;
    for (int64_t i = 0; i < n; i += kDepth) {
      const int64_t depth = std::min(kDepth, n - i);
      const std::byte* from = w + i / format.block_length * format.block_bytes;
      Int8Row row;
      float values[kDepth], x[kDepth];
      if (own_codes)
        int8_plain_row(dtype, from, depth, row);
      else
        mt::decode_row(dtype, from, values, depth);
      for (int64_t t = 0; t < tokens; ++t) {
        const std::byte* term = q + t * q_bytes;
        float& sum = y[t * ldy + r];
        if (plain) {
          sum += dot(values, reinterpret_cast<const float*>(term) + i, depth);
          continue;
        }
        for (int k = 0; k < terms; ++k, term += layout.bytes) {
          if (own_codes) {
            sum += row_dot(row, int8_by_16(dtype), int8_has_min(dtype), depth, i, layout, term);
            continue;
          }
          for (int64_t j = 0; j < depth; ++j)
            x[j] = reinterpret_cast<const float*>(term + layout.d)[(i + j) / 32] *
                   static_cast<float>(reinterpret_cast<const int8_t*>(term + layout.q)[i + j]);
          sum += dot(values, x, depth);
        }
      }
    }
  }
}

}  // namespace

const Kernels& neon_kernels() {
  static const Kernels table = [] {
    Kernels t = reference_kernels();
    t.name = "neon";
    t.gemm_panel = gemm_panel;
    t.exp_sum = exp_sum;
    t.silu_mul = silu_mul;
    t.gelu_mul = gelu_mul;
    t.dot = dot;
    t.axpy = axpy;
    t.add = add;
    t.scale_mul = scale_mul;
    t.gemm_pairs = gemm_pairs;
    t.rows_dot = rows_dot;
    return t;
  }();
  return table;
}

}  // namespace mt
