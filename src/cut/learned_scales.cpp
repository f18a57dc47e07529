#include "cut/learned_scales.h"

#include <algorithm>
#include <cmath>

#include "dtype/codes.h"
#include "dtype/scale_fields.h"
#include "run/layers.h"

namespace mt {
namespace {

int64_t blocks_of_row(const Weight& w) {
  return w.cols / info(w.dtype).block_length;
}
// Of one block.
size_t groups_of(Dtype dtype) {
  return scale_offsets(dtype).size();
}
size_t scales_of(Dtype dtype) {
  return groups_of(dtype) * static_cast<size_t>(sub_scales(dtype).count);
}

}  // namespace

int64_t n_sub_scales(const Weight& w) {
  return w.rows * blocks_of_row(w) * static_cast<int64_t>(scales_of(w.dtype));
}

void start_sub_scales(const Weight& w, const LatentScales& to) {
  const size_t n = scales_of(w.dtype);
  const int64_t step = info(w.dtype).block_bytes;
  float* latent = to.latent.data();
  for (int64_t at = 0; at < w.bytes(); at += step, latent += n) {
    int numbers[kMostSubScales];
    read_sub_scales(w.dtype, w.data.bytes.data() + at, numbers);
    std::copy_n(numbers, n, latent);
  }
  std::fill(to.mean.begin(), to.mean.end(), 0.0f);
  std::fill(to.square.begin(), to.square.end(), 0.0f);
}

void add_sub_scale_gradient(const Weight& w, int64_t block, std::span<const float> gradient,
                            float b1, float b2, const LatentScales& to) {
  const size_t at = static_cast<size_t>(block) * scales_of(w.dtype);
  float *mean = to.mean.data() + at, *square = to.square.data() + at;
  for (size_t i = 0; i < gradient.size(); ++i) {
    mean[i] += (1 - b1) * gradient[i];
    square[i] += (1 - b2) * gradient[i] * gradient[i];
  }
}

void move_sub_scales(const Runtime& rt, const Weight& w, float step, float b1, float b2, float c1,
                     float c2, const LatentScales& state) {
  const SubScales subs = sub_scales(w.dtype);
  // Levels are on both sides of zero, or above a min.
  const int levels = levels_of(w.dtype)->count;
  const auto reach = static_cast<float>(groups_of(w.dtype) > 1 ? levels - 1 : levels / 2);
  const auto low = static_cast<float>(subs.low), high = static_cast<float>(subs.high);
  const float rate = step * high / reach * c1;
  const auto per_row = static_cast<size_t>(blocks_of_row(w)) * scales_of(w.dtype);
  for_rows(rt, w.rows, [&](int64_t r) {
    const size_t begin = static_cast<size_t>(r) * per_row;
    for (size_t i = begin; i < begin + per_row; ++i) {
      const float move = rate * state.mean[i] / (std::sqrt(state.square[i] * c2) + 1e-20f);
      // In this order, what is no number becomes one.
      state.latent[i] = std::max(low, std::min(high, state.latent[i] - move));
      state.mean[i] *= b1;
      state.square[i] *= b2;
    }
  });
}

void write_sub_scales(const Runtime& rt, const Weight& w, std::span<const float> latent,
                      std::span<std::byte> bytes) {
  const int64_t per_row = blocks_of_row(w);
  const size_t n = scales_of(w.dtype);
  const auto step = static_cast<size_t>(info(w.dtype).block_bytes);
  const SubScales subs = sub_scales(w.dtype);
  const auto low = static_cast<float>(subs.low), high = static_cast<float>(subs.high);
  for_rows(rt, w.rows, [&](int64_t r) {
    for (int64_t b = r * per_row; b < (r + 1) * per_row; ++b) {
      int numbers[kMostSubScales];
      for (size_t i = 0; i < n; ++i) {
        // Steps stay in this range; what a damaged checkpoint holds need not, nor be a number.
        const float value = latent[static_cast<size_t>(b) * n + i];
        numbers[i] = static_cast<int>(std::nearbyint(std::max(low, std::min(high, value))));
      }
      write_sub_scales(w.dtype, numbers, bytes.data() + static_cast<size_t>(b) * step);
    }
  });
}

}  // namespace mt
