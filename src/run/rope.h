#pragma once
#include <span>
#include <vector>

#include "flow/model.h"
#include "kernels/kv_strips.h"

namespace mt {

// Cosines and sines of positions: row(r) holds [n_pairs][cos, sin] of positions[r].
class RopeTable {
 public:
  RopeTable(const Attention& a, std::span<const int64_t> positions);
  const float* row(int64_t r) const {
    return values_.data() + static_cast<size_t>(r * n_pairs_ * 2);
  }
  int64_t n_pairs() const { return n_pairs_; }
  bool serves(const Attention& a) const;

 private:
  int64_t n_pairs_;
  double base_, scale_;
  std::vector<float> factors_;
  std::vector<float> values_;
};

// RoPE of cached keys that are rounded before it, of positions below `capacity`.
class BlockTurns {
 public:
  BlockTurns(const Attention& a, int64_t capacity);
  // Good as long as this is, or what it was moved to.
  KeyTurns turns() const { return {channel_.data(), blocks_.data(), lanes_.data()}; }
  bool serves(const Attention& a) const;

 private:
  int64_t d_;
  bool neox_;
  RopeTable lane_;
  std::vector<int32_t> channel_;
  std::vector<float> blocks_, lanes_;
};

}  // namespace mt
