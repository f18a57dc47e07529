#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cut/field_gradient.h"
#include "cut/learned_rounding.h"
#include "cut/learned_scales.h"
#include "cut/refine.h"
#include "cut/refine_state.h"
#include "run/backward.h"

namespace mt {

// Which tensors move, by name; empty: all that can.
using IsFree = std::function<bool(const std::string& tensor)>;

// What a refinement moves of a cut: the f16 fields of the blocks, the norms' gains, learned codes
// and scales of sub-blocks (share_latents says which), and Adam's state of each. The cut's free
// weights are given memory of their own.
class RefineParameters {
 public:
  RefineParameters(const Runtime& rt, const Model& original, Model& cut,
                   const RefineSettings& settings, const IsFree& is_free = {});
  RefineParameters(const RefineParameters&) = delete;
  RefineParameters& operator=(const RefineParameters&) = delete;

  // What they take in memory, weights of their own included; nothing is allocated.
  static int64_t bytes(const Model& original, Model cut, const RefineSettings& settings,
                       const IsFree& is_free = {});

  // The names of the tensors that move.
  static std::set<std::string> names(const Model& original, Model cut,
                                     const RefineSettings& settings, const IsFree& is_free = {});

  RefineState& state() { return state_; }
  int64_t n_scales() const {
    return static_cast<int64_t>(layout_.n_scales) + std::ssize(state_.sub_latent);
  }
  int64_t n_codes() const { return std::ssize(state_.latent); }
  int64_t n_norms() const { return static_cast<int64_t>(layout_.count - layout_.n_scales); }

  void clear_gradient();
  // What a backward pass adds to the gradient. They point into this.
  BackwardTaps taps();
  // Adam on every parameter; the model then reads the rounded masters. share: of a whole step.
  void descend(int64_t step, double share);
  // The masters' roundings into the model.
  void publish();

  std::map<std::string, std::vector<float>> by_tensor();
  std::map<std::string, std::vector<float>> sub_scales_by_tensor();

 private:
  // A tensor's parameters: a range of the flat arrays.
  struct Range {
    size_t begin, count;
  };
  struct FreeWeight {
    LinearMap* map;
    Range range;
    std::shared_ptr<AlignedBuffer<std::byte>> bytes;
    std::optional<size_t> latents;  // where its latent codes begin, if they are learned
    std::optional<Range> subs;      // its scales of sub-blocks, if they are learned
  };
  struct FreeNorm {
    std::vector<float>* gain;
    Range range;
  };
  struct Layout {
    std::map<std::string, FreeWeight> weights;
    std::map<std::string, FreeNorm> norms;
    size_t n_scales = 0, count = 0;  // the first so many parameters are scales; norms follow
    size_t codes = 0, subs = 0;      // learned
  };

  static Layout lay_out(const Model& original, Model& cut, const RefineSettings& settings,
                        const IsFree& is_free);
  static void share_latents(Layout& layout, const RefineSettings& settings);
  void start_latents(const Model& original);

  LatentScales latent_scales(const FreeWeight& w);
  LatentCodes latents(const FreeWeight& w);
  SubScaleTap sub_tap(const FreeWeight& w);
  TileTap tile_tap(const FreeWeight& w);
  std::span<float> part(Range r) { return part(gradient_, r); }
  static std::span<float> part(std::vector<float>& all, Range r) {
    return std::span(all).subspan(r.begin, r.count);
  }
  double rate_of(int64_t step) const;

  const Runtime& rt_;
  const RefineSettings& settings_;
  const LinearMap* embedding_;
  Layout layout_;
  RefineState state_;
  std::vector<float> gradient_, size_;
};

}  // namespace mt
