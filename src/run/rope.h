#pragma once
#include <span>
#include <vector>

#include "flow/model.h"

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

}  // namespace mt
