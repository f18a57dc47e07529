#pragma once
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cut/encode.h"
#include "cut/field_gradient.h"
#include "cut/refine.h"
#include "dtype/half.h"
#include "run/tiny.h"

namespace mt {

inline std::vector<std::vector<int32_t>> random_windows(int64_t n_vocab, int n, int length,
                                                        uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<int32_t>> windows(static_cast<size_t>(n));
  for (auto& w : windows)
    for (int i = 0; i < length; ++i)
      w.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(n_vocab)));
  return windows;
}

// Every map in the next format of the list that fits its rows.
inline Model cut_to(const Runtime& rt, const Model& model, const std::vector<Dtype>& formats) {
  Model cut = model;
  size_t next = 0;
  for (LinearMap* map : linear_maps(cut)) {
    while (map->weight.cols % info(formats[next % formats.size()]).block_length) ++next;
    map->weight = encode_weight(rt, map->weight, formats[next++ % formats.size()],
                                row_weights(nullptr, map->name, Role::map));
  }
  return cut;
}

inline double kl(const Runtime& rt, const Model& original, const Model& cut,
                 const std::vector<std::vector<int32_t>>& windows) {
  double sum = 0;
  for (const auto& w : windows) {
    MatrixBuffer p = all_logits(rt, original, w), q = all_logits(rt, cut, w);
    for (int64_t t = 0; t < p.rows(); ++t) {
      double zp = 0, zq = 0, loss = 0;
      for (int64_t v = 0; v < p.cols(); ++v) {
        zp += std::exp(double(p.row(t)[v]));
        zq += std::exp(double(q.row(t)[v]));
      }
      for (int64_t v = 0; v < p.cols(); ++v) {
        const double lp = double(p.row(t)[v]) - std::log(zp);
        const double lq = double(q.row(t)[v]) - std::log(zq);
        loss += std::exp(lp) * (lp - lq);
      }
      sum += loss / double(p.rows());
    }
  }
  return sum / double(windows.size());
}

// The field whose relative change moves the loss most.
inline size_t heaviest_field(const std::vector<float>& gradient, const std::vector<float>& fields) {
  size_t top = 0;
  for (size_t i = 0; i < gradient.size(); ++i)
    if (std::fabs(gradient[i] * fields[i]) > std::fabs(gradient[top] * fields[top])) top = i;
  return top;
}

// The difference of a field: a step up and down in f16, so that what is decoded is what is
// differenced, and the loss there. No step where f16 has none.
struct FieldDifference {
  double up = 0, down = 0, step = 0;
};
template <class Loss>
FieldDifference field_difference(const Runtime& rt, LinearMap& map, size_t field,
                                 const Loss& loss) {
  const Weight before = map.weight;
  std::vector<float> fields(static_cast<size_t>(n_fields(before)));
  read_fields(before, fields);
  auto with = [&](float value) {
    auto moved = fields;
    moved[field] = value;
    auto bytes = std::make_shared<AlignedBuffer<std::byte>>(size_t(before.bytes()));
    std::copy_n(before.data.bytes.data(), before.bytes(), bytes->data());
    write_fields(rt, before, moved, *bytes);
    map.weight.data = {bytes, std::span<const std::byte>(bytes->data(), bytes->size())};
    const double there = loss();
    map.weight = before;
    return there;
  };
  const float high = half_to_float(float_to_half(fields[field] * 1.005f));
  const float low = half_to_float(float_to_half(fields[field] * 0.995f));
  if (high == low) return {};
  return {with(high), with(low), double(high) - double(low)};
}

inline bool same_weights(const Model& a, const Model& b) {
  const auto ma = linear_maps(a), mb = linear_maps(b);
  for (size_t i = 0; i < ma.size(); ++i)
    if (std::memcmp(ma[i]->weight.data.bytes.data(), mb[i]->weight.data.bytes.data(),
                    static_cast<size_t>(ma[i]->weight.bytes())))
      return false;
  const auto na = norms(a), nb = norms(b);
  for (size_t i = 0; i < na.size(); ++i)
    if (*na[i].gain != *nb[i].gain) return false;
  return true;
}

inline RefineSettings quick_refinement(int64_t steps) {
  RefineSettings s;
  s.steps = steps;
  s.step_tokens = 0;  // one window
  s.scale_step = 7e-4;
  s.norm_step = 1e-3;
  s.warm_up = 4;
  return s;
}

}  // namespace mt
