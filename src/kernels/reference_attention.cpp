#include <algorithm>
#include <cassert>
#include <vector>

#include "kernels/attention.h"

namespace mt {
namespace {

template <Dtype T>
void scores(int64_t heads, int64_t n_strips, int64_t d, const float* q, int64_t ldq,
            const std::byte* keys, float* s, int64_t lds) {
  std::vector<float> strip(static_cast<size_t>(kStrip * d));
  for (int64_t b = 0; b < n_strips; ++b) {
    if constexpr (by_channel(T))
      load_key_block(d, keys + b / 2 * 2 * kv_strip_bytes(T, d), b % 2, strip.data());
    else
      load_keys(T, d, keys + b * kv_strip_bytes(T, d), strip.data());
    for (int64_t h = 0; h < heads; ++h) {
      float* to = s + h * lds + b * kStrip;
      std::fill_n(to, kStrip, 0.0f);
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = 0; j < kStrip; ++j)
          to[j] += q[h * ldq + i] * strip[size_t(i * kStrip + j)];
    }
  }
}

// sum over pairs of x (q_x cos + q_y sin) + y (q_y cos - q_x sin): the query is turned back to the
// key's place, first by the block, then by the lane.
void turned_scores(int64_t heads, int64_t first, int64_t n_blocks, int64_t d, const float* q,
                   int64_t ldq, const std::byte* keys, const KeyTurns& turns, float* s,
                   int64_t lds) {
  constexpr Dtype T = Dtype::Q4_1;
  constexpr int64_t kStrips = kChannelBlock / kStrip;
  const int64_t pairs = d / 2;
  std::vector<float> strip(static_cast<size_t>(kStrip * d));
  for (int64_t b = 0; b < n_blocks; ++b)
    for (int64_t half = 0; half < kStrips; ++half) {
      load_key_block(d, keys + b * kStrips * kv_strip_bytes(T, d), half, strip.data());
      for (int64_t h = 0; h < heads; ++h) {
        float* to = s + h * lds + b * kChannelBlock + half * kStrip;
        std::fill_n(to, kStrip, 0.0f);
        for (int64_t i = 0; i < pairs; ++i) {
          const float qx = q[h * ldq + i], qy = q[h * ldq + pairs + i];
          const float* block = turns.blocks + (first + b) * d + i;
          const float u = qx * block[0] + qy * block[pairs];
          const float v = qy * block[0] - qx * block[pairs];
          const float* cos_j = turns.lanes + i * 2 * kChannelBlock + half * kStrip;
          const float* sin_j = cos_j + kChannelBlock;
          const float* x = strip.data() + i * kStrip;
          const float* y = strip.data() + (pairs + i) * kStrip;
          for (int64_t j = 0; j < kStrip; ++j)
            to[j] += x[j] * (u * cos_j[j] + v * sin_j[j]) + y[j] * (v * cos_j[j] - u * sin_j[j]);
        }
      }
    }
}

template <Dtype T>
void mix(int64_t heads, int64_t from, int64_t to, int64_t d, const float* p, int64_t ldp,
         const std::byte* values, float* out, int64_t ldo, bool accumulate) {
  std::vector<float> strip(static_cast<size_t>(kStrip * d));
  if (!accumulate)
    for (int64_t h = 0; h < heads; ++h) std::fill_n(out + h * ldo, d, 0.0f);
  for (int64_t j = from; j < to; ++j) {
    if (j == from || j % kStrip == 0)
      load_values(T, d, values + j / kStrip * kv_strip_bytes(T, d), strip.data());
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < d; ++i)
        out[h * ldo + i] += p[h * ldp + j] * strip[size_t(j % kStrip * d + i)];
  }
}

template <Dtype T>
AttentionKernels kernels() {
  return {.scores = scores<T>, .mix = mix<T>};
}

}  // namespace

AttentionKernels reference_attention_kernels(Dtype dtype) {
  assert(is_key_type(dtype));
  if (by_channel(dtype))
    return {.scores = scores<Dtype::Q4_1>, .mix = nullptr, .turned_scores = turned_scores};
  if (dtype == Dtype::F16) return kernels<Dtype::F16>();
  if (dtype == Dtype::BF16) return kernels<Dtype::BF16>();
  if (dtype == Dtype::Q8_0) return kernels<Dtype::Q8_0>();
  if (dtype == Dtype::Q4_0) return kernels<Dtype::Q4_0>();
  return kernels<Dtype::F32>();
}

AttentionKernels attention_kernels([[maybe_unused]] const Kernels& table, Dtype dtype) {
#ifdef __x86_64__
  if (table.name == "avx2") return avx2_attention_kernels(dtype);
  if (table.name == "avx512f") return avx512f_attention_kernels(dtype);
  if (table.name.starts_with("avx512")) return avx512_attention_kernels(dtype);
#endif
  return reference_attention_kernels(dtype);
}

}  // namespace mt
