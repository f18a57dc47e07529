#include "run/rope.h"

#include <cmath>

#include "base/checked.h"

namespace mt {
namespace {

std::vector<int64_t> multiples(int64_t n, int64_t of) {
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < n; ++i) positions.push_back(i * of);
  return positions;
}

}  // namespace

RopeTable::RopeTable(const Attention& a, std::span<const int64_t> positions)
    : n_pairs_(a.rope_dims / 2),
      base_(a.rope_base),
      scale_(a.rope_scale),
      factors_(a.rope_factors),
      values_(positions.size() * static_cast<size_t>(a.rope_dims)) {
  float* out = values_.data();
  std::vector<double> frequency(static_cast<size_t>(n_pairs_));
  for (int64_t i = 0; i < n_pairs_; ++i) {
    size_t s = static_cast<size_t>(i);
    frequency[s] = scale_ * std::pow(base_, -2.0 * double(i) / double(a.rope_dims));
    if (!factors_.empty()) frequency[s] /= double(factors_[s]);
  }
  for (int64_t p : positions)
    for (double f : frequency) {
      *out++ = static_cast<float>(std::cos(double(p) * f));
      *out++ = static_cast<float>(std::sin(double(p) * f));
    }
}

bool RopeTable::serves(const Attention& a) const {
  return a.rope_base == base_ && a.rope_scale == scale_ && a.rope_dims == 2 * n_pairs_ &&
         a.rope_factors == factors_;
}

BlockTurns::BlockTurns(const Attention& a, int64_t capacity)
    : d_(a.d_head), neox_(a.rope_neox), lane_(a, multiples(kChannelBlock, 1)) {
  const int64_t n_blocks = ceil_div(capacity, kChannelBlock), half = d_ / 2;
  const RopeTable block(a, multiples(n_blocks, kChannelBlock));
  const int64_t n = block.n_pairs();
  channel_.resize(static_cast<size_t>(2 * half));
  blocks_.resize(static_cast<size_t>(n_blocks * 2 * half));
  lanes_.resize(static_cast<size_t>(half * 2 * kChannelBlock));
  for (int64_t i = 0; i < half; ++i) {
    const bool turned = i < n, apart = turned && neox_;
    channel_[size_t(i)] = static_cast<int32_t>(apart ? i : 2 * i);
    channel_[size_t(half + i)] = static_cast<int32_t>(apart ? n + i : 2 * i + 1);
    for (int64_t b = 0; b < n_blocks; ++b)
      for (int64_t part = 0; part < 2; ++part)
        blocks_[size_t((b * 2 + part) * half + i)] =
            turned ? block.row(b)[2 * i + part] : 1.0f - float(part);
    for (int64_t j = 0; j < kChannelBlock; ++j)
      for (int64_t part = 0; part < 2; ++part)
        lanes_[size_t((i * 2 + part) * kChannelBlock + j)] =
            turned ? lane_.row(j)[2 * i + part] : 1.0f - float(part);
  }
}

bool BlockTurns::serves(const Attention& a) const {
  return a.d_head == d_ && a.rope_neox == neox_ && lane_.serves(a);
}

}  // namespace mt
