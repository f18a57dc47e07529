// Encoders of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: magnitudes are words of a fixed code,
// scaled by d times an odd number 1..31 of the sub-block.
#include <memory>

#include "dtype/codec.h"
#include "dtype/dtype.h"
#include "dtype/fit_lattice.h"
#include "dtype/half.h"
#include "dtype/lattice_formats.h"

namespace mt {
namespace {

// Scales that a sub-block tries by itself, as multiples of what its weighted energy suggests.
constexpr float kTrials[] = {0.54f, 0.61f, 0.68f, 0.75f, 0.82f, 0.9f,
                             0.98f, 1.07f, 1.17f, 1.28f, 1.42f, 1.6f};
constexpr int kTrialCount = static_cast<int>(std::size(kTrials));
static_assert(kTrialCount < kLines);
// Odd numbers, and between, on which the largest wanted scale is put.
constexpr float kTops[] = {37, 35, 33, 32, 31, 30, 29, 28, 27, 26, 25,
                           24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 13};
constexpr int kRefined = 2;  // of these are refined
constexpr int kRounds = 3;

// A super-block's scales, and what they cost less sum w x^2.
struct ScaleChoice {
  float d = 0.0f, cost = 3e38f;
  int scale[16] = {};
};

template <class Format>
struct EncodeLattice {
  using Work = LatticeWork<Format>;
  static constexpr int kSubs = Format::kSubs, kCellsPerSub = kCells / Format::kSubs;

  static MT_INLINE float step(float d, int scale) {
    return d * Format::kUnit * static_cast<float>(2 * scale + 1);
  }

  // The weights of one super-block; minus[cell] gets the signs. Returns whether any is not zero.
  static MT_INLINE bool fill(const float* src, const float* importance, Work& work,
                             uint8_t minus[kCells]) {
    constexpr float kLimit = 65504.0f * 31.0f * Format::kUnit * Format::kLargest;
    const double factor = importance_factor(importance, 256);
    bool any = false;
    for (int cell = 0; cell < kCells; ++cell) {
      unsigned signs = 0;
      for (int i = 0; i < 8; ++i) {
        const int at = 8 * cell + i;
        const float magnitude = std::fabs(src[at]);
        const float v = magnitude <= 3.4028234e38f ? std::min(magnitude, kLimit) : 0.0f;
        const float w = factor == 0.0 ? 1.0f : scaled_importance(importance[at], factor);
        work.w[at] = w;
        work.wx[at] = w * v;
        any = any || v > 0.0f;
        signs |= (src[at] < 0.0f && v > 0.0f ? 1u : 0u) << i;
      }
      minus[cell] = static_cast<uint8_t>(signs);
      work.odd[cell] = Format::kParity && __builtin_parity(signs) != 0;
    }
    return any;
  }

  // Lists the sub-block's winners; returns the scale it would choose.
  template <int W>
  static MT_INLINE float fit_alone(Work& work, int sub) {
    constexpr int kLength = 256 / kSubs;
    double energy = 0.0, weight = 0.0;
    for (int i = sub * kLength; i < (sub + 1) * kLength; ++i) {
      energy += static_cast<double>(work.wx[i]) * static_cast<double>(work.wx[i] / work.w[i]);
      weight += static_cast<double>(work.w[i]);
    }
    const auto typical = static_cast<float>(std::sqrt(energy / weight)) / Format::kTypical;
    alignas(64) float scales[kLanes], costs[kLanes];
    for (int t = 0; t < kLanes; ++t) scales[t] = typical * kTrials[std::min(t, kTrialCount - 1)];
    for (int cell = sub * kCellsPerSub; cell < (sub + 1) * kCellsPerSub; ++cell) {
      for (int h = 0; h < Work::kPerCell; ++h) {
        const int g = cell * Work::kPerCell + h;
        list_winners<W, Format::kWords, kTrialCount>(work.p2[g], work.q[g], scales, work.lines[g]);
        if constexpr (Work::kTurns) {
          if (!work.odd[cell]) continue;
          list_winners<W, Format::kWords, kTrialCount>(work.turned[g], work.q[g], scales,
                                                       work.turned_lines[g]);
        }
      }
    }
    sub_costs<W, Format>(work, sub, scales, costs);
    return scales[lowest_of_16<W>(costs)];
  }

  // Every sub-block's best of the 16 scales that d gives, by the lists.
  template <int W>
  static MT_INLINE ScaleChoice judge(const Work& work, float d) {
    ScaleChoice choice;
    choice.d = d;
    choice.cost = 0.0f;
    alignas(64) float scales[kLanes], costs[kLanes];
    for (int l = 0; l < kLanes; ++l) scales[l] = step(d, l);
    for (int sub = 0; sub < kSubs; ++sub) {
      sub_costs<W, Format>(work, sub, scales, costs);
      const int best = lowest_of_16<W>(costs);
      choice.scale[sub] = best;
      choice.cost += costs[best];
    }
    return choice;
  }

  // The exact cost of a choice, and the d that its words would like best.
  template <int W>
  static MT_INLINE float choose_all(const Work& work, ScaleChoice& choice, CellChoice* cells) {
    double cost = 0.0, sum_p = 0.0, sum_q = 0.0;
    for (int sub = 0; sub < kSubs; ++sub) {
      const float s = step(choice.d, choice.scale[sub]);
      double p2 = 0.0, q = 0.0;
      for (int cell = sub * kCellsPerSub; cell < (sub + 1) * kCellsPerSub; ++cell) {
        cells[cell] = choose_words<W, Format>(work, cell, s);
        p2 += static_cast<double>(cells[cell].p2);
        q += static_cast<double>(cells[cell].q);
      }
      const double unit = step(1.0f, choice.scale[sub]), exact = s;
      cost += exact * (exact * q - p2);
      sum_p += 0.5 * unit * p2;
      sum_q += unit * unit * q;
    }
    choice.cost = static_cast<float>(cost);
    return sum_q > 0.0 ? static_cast<float>(sum_p / sum_q) : 0.0f;
  }

  template <int W>
  static MT_INLINE void encode_block(const Words<Format>& words, const float* src,
                                     const float* importance, Work& work,
                                     typename Format::Block& block) {
    LatticeCodes coded{};
    if (!fill(src, importance, work, coded.minus)) return;
    for (int g = 0; g < Work::kGroups; g += kTogether) face_words<W, Format>(words, work, g);
    float largest = 0.0f;
    for (int sub = 0; sub < kSubs; ++sub) {
      largest = std::max(largest, fit_alone<W>(work, sub));
    }

    ScaleChoice starts[kRefined];
    for (const float top : kTops) {
      const float d =
          half_value(float_to_half(std::min(largest / (top * Format::kUnit), 65504.0f)));
      ScaleChoice choice = judge<W>(work, d);
      for (ScaleChoice& kept : starts) {
        if (choice.cost < kept.cost) std::swap(choice, kept);
      }
    }
    ScaleChoice best;
    CellChoice best_cells[kCells], cells[kCells];
    for (ScaleChoice choice : starts) {
      for (int round = 0; round < kRounds; ++round) {
        const float wish = choose_all<W>(work, choice, cells);
        if (choice.cost < best.cost) {
          best = choice;
          std::copy(cells, cells + kCells, best_cells);
        }
        const float d = half_value(float_to_half(std::clamp(wish, 0.0f, 65504.0f)));
        if (d == choice.d) break;
        choice = judge<W>(work, d);
      }
    }
    if (best.d == 0.0f) return;

    block.d = float_to_half(best.d);
    std::copy(best.scale, best.scale + 16, coded.scale);
    for (int cell = 0; cell < kCells; ++cell) {
      const CellChoice& chosen = best_cells[cell];
      std::copy(chosen.word, chosen.word + 2, coded.word[cell]);
      if (chosen.turned < 0) continue;
      const int first = chosen.turned * Format::kDims;
      int turn = 0;
      float least = 3e38f;
      for (int i = 0; i < Format::kDims; ++i) {
        const float cost =
            work.wx[8 * cell + first + i] * words.value[i][chosen.word[chosen.turned]];
        if (cost < least) {
          least = cost;
          turn = first + i;
        }
      }
      coded.minus[cell] = static_cast<uint8_t>(coded.minus[cell] ^ 1u << turn);
    }
    Format::pack(block, coded);
  }

  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    const Words<Format>& words = words_of<Format>();
    // Some 250 KB: a row is encoded in less time than fresh pages take.
    thread_local const auto work = std::make_unique_for_overwrite<Work>();
    for (int64_t i = 0; i < n; i += 256) {
      typename Format::Block b{};
      encode_block<W>(words, src + i, importance == nullptr ? nullptr : importance + i, *work, b);
      std::memcpy(dst, &b, sizeof b);
      dst += sizeof b;
    }
  }
};

}  // namespace

void encode_iq2_xxs(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeLattice<Iq2XxsFormat>>(src, importance, dst, n);
}
void encode_iq2_xs(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeLattice<Iq2XsFormat>>(src, importance, dst, n);
}
void encode_iq2_s(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeLattice<Iq2SFormat>>(src, importance, dst, n);
}
void encode_iq3_xxs(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeLattice<Iq3XxsFormat>>(src, importance, dst, n);
}
void encode_iq3_s(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeLattice<Iq3SFormat>>(src, importance, dst, n);
}

}  // namespace mt
