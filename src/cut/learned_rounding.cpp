#include "cut/learned_rounding.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/checked.h"
#include "dtype/codes.h"

namespace mt {
namespace {

constexpr int64_t kRows = 16;  // a piece of work

template <class F>
void for_rows(const Runtime& rt, const Weight& w, F&& work) {
  rt.pool.parallel_for(ceil_div(w.rows, kRows), [&](int64_t piece, int) {
    for (int64_t r = piece * kRows; r < std::min(w.rows, (piece + 1) * kRows); ++r) work(r);
  });
}

}  // namespace

bool learns_rounding(Dtype dtype) {
  constexpr double kMostBits = 3.5;
  const DtypeInfo& format = info(dtype);
  const Levels* levels = levels_of(dtype);
  return levels && 8.0 * format.block_bytes <= kMostBits * format.block_length;
}

void start_latent(const Runtime& rt, const Weight& original, const Weight& cut,
                  const LatentCodes& to) {
  const Levels& levels = *levels_of(cut.dtype);
  const DtypeInfo& format = info(cut.dtype);
  const bool same = original.rows == cut.rows && original.cols == cut.cols;
  std::fill(to.mean.begin(), to.mean.end(), 0.0f);
  std::fill(to.square.begin(), to.square.end(), 0.0f);
  for_rows(rt, cut, [&](int64_t r) {
    std::vector<float> values(static_cast<size_t>(cut.cols));
    if (same) rt.kernels.decode_row(original.dtype, original.row(r), values.data(), cut.cols);
    float* latent = to.latent.data() + r * cut.cols;
    BlockCodes codes;
    for (int64_t b = 0; b < cut.cols; b += format.block_length) {
      read_codes(cut.dtype, cut.row(r) + b / format.block_length * format.block_bytes, codes);
      for (int i = 0; i < codes.length; ++i) {
        const float level = levels.value(codes.code[i]);
        const float scale = codes.scale[i / codes.sub], offset = codes.offset[i / codes.sub];
        const float exact = same && scale != 0
                                ? (values[static_cast<size_t>(b + i)] - offset) / scale - level
                                : 0.0f;
        // Inside the half: on the border the nearest level could be the next.
        latent[b + i] = level + (std::isfinite(exact) ? std::clamp(exact, -0.49f, 0.49f) : 0.0f);
      }
    }
  });
}

void add_latent_gradient(const Weight& w, int64_t first, int64_t rows, int64_t column,
                         int64_t width, const float* dw, int64_t stride, float b1, float b2,
                         const LatentCodes& to) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (first + r) * w.cols + column;
    float* mean = to.mean.data() + at;
    float* square = to.square.data() + at / kRoundingGroup;
    const float* g = dw + r * stride;
    for (int64_t i = 0; i < width; ++i) mean[i] += (1 - b1) * g[i];
    for (int64_t i = 0; i < width; i += kRoundingGroup) {
      float sum = 0;
      for (int64_t j = i; j < i + kRoundingGroup; ++j) sum += g[j] * g[j];
      square[i / kRoundingGroup] += (1 - b2) * sum * (1.0f / kRoundingGroup);
    }
  }
}

void move_latent(const Runtime& rt, const Weight& w, float step, float b1, float b2, float c1,
                 float c2, const LatentCodes& state) {
  const DtypeInfo& format = info(w.dtype);
  for_rows(rt, w, [&](int64_t r) {
    // The sign of a scale turns the latent's direction round.
    BlockCodes codes;
    for (int64_t b = 0; b < w.cols; b += format.block_length) {
      read_codes(w.dtype, w.row(r) + b / format.block_length * format.block_bytes, codes);
      for (int64_t i = 0; i < format.block_length; i += kRoundingGroup) {
        const auto at = static_cast<size_t>(r * w.cols + b + i);
        float& square = state.square[at / kRoundingGroup];
        const float scale = codes.scale[i / codes.sub];
        float rate = step * c1 / (std::sqrt(square * c2) + 1e-20f);
        if (scale == 0) rate = 0;
        if (scale < 0) rate = -rate;
        for (size_t j = at; j < at + kRoundingGroup; ++j) {
          state.latent[j] -= rate * state.mean[j];
          state.mean[j] *= b1;
        }
        square *= b2;
      }
    }
  });
}

void write_latent(const Runtime& rt, const Weight& w, std::span<const float> latent,
                  std::span<std::byte> bytes) {
  const Levels& levels = *levels_of(w.dtype);
  const DtypeInfo& format = info(w.dtype);
  for_rows(rt, w, [&](int64_t r) {
    std::vector<uint8_t> codes(static_cast<size_t>(format.block_length));
    std::byte* block = bytes.data() + (w.row(r) - w.row(0));
    for (int64_t b = 0; b < w.cols; b += format.block_length, block += format.block_bytes) {
      const float* from = latent.data() + r * w.cols + b;
      for (int64_t i = 0; i < format.block_length; ++i)
        codes[static_cast<size_t>(i)] = levels.nearest(from[i]);
      write_codes(w.dtype, codes.data(), block);
    }
  });
}

}  // namespace mt
