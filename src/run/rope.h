#pragma once
#include <vector>

#include "flow/model.h"

namespace mt {

// Cosines and sines of consecutive positions: at(p) holds [n_pairs][cos, sin] of position p.
class RopeTable {
 public:
  RopeTable(const Attention& a, int64_t first_position, int64_t n_positions);
  const float* at(int64_t position) const {
    return values_.data() + static_cast<size_t>((position - first_) * n_pairs_ * 2);
  }
  int64_t n_pairs() const { return n_pairs_; }
  bool serves(const Attention& a) const;

 private:
  int64_t first_, n_pairs_;
  double base_, scale_;
  std::vector<float> factors_;
  std::vector<float> values_;
};

}  // namespace mt
