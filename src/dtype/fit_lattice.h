#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "dtype/lanes.h"
#include "dtype/lattice_codes.h"

// scale * word with signs: the search for words and scales of one super-block of 256 weights.
//
// For a scale s a word v costs sum w (|x| - s v)^2 = sum w x^2 - 2 s p + s^2 q with p = sum w |x| v
// and q = sum w v^2. p and q do not depend on s: they are computed once for every word, and after
// that any scale is judged by two products a word. Under a range of scales few words ever win;
// these are listed, and the search over scales runs on the lists. Words are chosen among all at the
// end.
//
// Where only seven signs of eight weights are stored and the number of minus signs is odd, one
// weight is given the wrong sign: that adds 4 s w |x| v, so the cheapest under the word in hand
// takes 2 min w |x| v from p. Eight weights that share signs are a cell, of one or two words.
namespace mt {

inline constexpr int kLines = 16;

// Components of a code's words, one row a component.
template <class Format>
struct Words {
  alignas(64) float value[Format::kDims][Format::kWords];
  alignas(64) float square[Format::kDims][Format::kWords];
};

// The words that win somewhere: cost s (s q - 2 p).
struct Lines {
  int count;
  float p2[kLines], q[kLines];
};

template <class Format>
struct LatticeWork {
  static constexpr int kGroups = 256 / Format::kDims;
  static constexpr int kPerCell = 8 / Format::kDims;
  // Two words share a sign: either may hold the turned weight, so both costs are kept.
  static constexpr bool kTurns = Format::kParity && kPerCell == 2;
  alignas(64) float p2[kGroups][Format::kWords];
  alignas(64) float q[kGroups][Format::kWords];
  alignas(64) float turned[kTurns ? kGroups : 1][Format::kWords];
  float w[256], wx[256];  // importance; importance times magnitude
  bool odd[kCells];
  Lines lines[kGroups], turned_lines[kTurns ? kGroups : 1];
};

// What a cell's words are: their numbers, and which word holds the turned weight (-1: none).
struct CellChoice {
  int word[2];
  int turned;
  float p2, q;
};

// 2 p and q of every word for the weights of kTogether groups: the words are read once for all of
// them. Groups that must turn a sign get 2 p less what the cheapest costs, in `turned` where both
// are asked for.
inline constexpr int kTogether = 4;
template <int W, class Format>
MT_INLINE void face_words(const Words<Format>& words, LatticeWork<Format>& work, int first) {
  using Work = LatticeWork<Format>;
  constexpr int kDims = Format::kDims;
  bool odd[kTogether] = {};
  for (int j = 0; j < kTogether; ++j) odd[j] = work.odd[(first + j) / Work::kPerCell];
  for (int k = 0; k < Format::kWords; k += W) {
    VF<W> p[kTogether], q[kTogether], least[kTogether];
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) {
      p[j] = q[j] = splat<W>(0.0f);
      least[j] = splat<W>(3e38f);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kDims; ++i) {
      const VF<W> value = load<W>(&words.value[i][k]), square = load<W>(&words.square[i][k]);
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        const int at = (first + j) * kDims + i;
        const VF<W> product = value * work.wx[at];
        p[j] += product;
        q[j] += square * work.w[at];
        if (Format::kParity) least[j] = vmin<W>(least[j], product);
      }
    }
    for (int j = 0; j < kTogether; ++j) {
      const VF<W> p2 = p[j] + p[j], turned = p2 - 4.0f * least[j];
      store<W>(&work.q[first + j][k], q[j]);
      if constexpr (Work::kTurns) {
        store<W>(&work.p2[first + j][k], p2);
        if (odd[j]) store<W>(&work.turned[first + j][k], turned);
      } else {
        store<W>(&work.p2[first + j][k], Format::kParity && odd[j] ? turned : p2);
      }
    }
  }
}

// The first of the lowest among 16.
template <int W>
MT_INLINE int lowest_of_16(const float* costs) {
  VF<W> least = load<W>(costs);
  for (int l = W; l < kLanes; l += W) least = vmin<W>(least, load<W>(costs + l));
  const float lowest = -largest_lane<W>(-least);
  VI<W> at = VI<W>{} + kLanes;
  for (int l = kLanes - W; l >= 0; l -= W) {
    at = load<W>(costs + l) == lowest ? lane_numbers<W>() + l : at;
  }
  return smallest_lane<W>(at) & (kLanes - 1);
}

// The word of least s (s q - 2 p), the first among equals.
template <int W, int N>
MT_INLINE int best_word(const float* p2, const float* q, float s) {
  // Two chains: a comparison need not wait for the one before.
  VF<W> best[2] = {splat<W>(-3e38f), splat<W>(-3e38f)};
  VI<W> at[2] = {};
  for (int k = 0; k < N; k += 2 * W) {
    for (int j = 0; j < 2; ++j) {
      const VF<W> gain = load<W>(p2 + k + j * W) - load<W>(q + k + j * W) * s;
      const VI<W> better = gain > best[j];
      best[j] = better ? gain : best[j];
      at[j] = better ? VI<W>{} + (k + j * W) : at[j];
    }
  }
  const float most = largest_lane<W>(vmax<W>(best[0], best[1]));
  const VI<W> lane = lane_numbers<W>(), none = VI<W>{} + (N - 1);
  const VI<W> even = best[0] == most ? at[0] + lane : none;
  const VI<W> other = best[1] == most ? at[1] + lane : none;
  return smallest_lane<W>(even < other ? even : other);
}

// Winners at ascending scales, and word 0, the smallest, for scales beyond. A word's number takes
// the lowest bits of its gain, so that one maximum finds both; what that blurs is no more than a
// 2^-13th.
template <int W, int N, int Count>
MT_INLINE void list_winners(const float* p2, const float* q, const float* scales, Lines& lines) {
  static_assert(Count % 4 == 0);
  const VI<W> lane = lane_numbers<W>();
  lines.count = 0;
  int last = -1;
  for (int t = 0; t < Count; t += 4) {
    VF<W> best[4] = {VF<W>{}, VF<W>{}, VF<W>{}, VF<W>{}};
    for (int k = 0; k < N; k += W) {
      const VF<W> p = load<W>(p2 + k), q_k = load<W>(q + k);
      const VI<W> number = lane + k;
      for (int j = 0; j < 4; ++j) {
        const VF<W> gain = p - q_k * scales[t + j];
        best[j] = vmax<W>(best[j], (VF<W>)(((VI<W>)gain & ~(N - 1)) | number));
      }
    }
    for (int j = 0; j < 4; ++j) {
      const float most = largest_lane<W>(best[j]);
      const int word = most > 0.0f ? std::bit_cast<int>(most) & (N - 1) : 0;
      if (word == last) continue;
      last = word;
      lines.p2[lines.count] = p2[word];
      lines.q[lines.count++] = q[word];
    }
  }
  if (last != 0) {
    lines.p2[lines.count] = p2[0];
    lines.q[lines.count++] = q[0];
  }
}

template <int W>
MT_INLINE VF<W> least_cost(const Lines& lines, VF<W> s) {
  VF<W> least = splat<W>(3e38f);
  for (int k = 0; k < lines.count; ++k) {
    least = vmin<W>(least, s * (s * lines.q[k] - lines.p2[k]));
  }
  return least;
}

// Costs of one sub-block at 16 scales, from the lists.
template <int W, class Format>
MT_INLINE void sub_costs(const LatticeWork<Format>& work, int sub, const float* scales,
                         float* costs) {
  using Work = LatticeWork<Format>;
  constexpr int kCellsPerSub = kCells / Format::kSubs;
  for (int l = 0; l < kLanes; l += W) {
    const VF<W> s = load<W>(scales + l);
    VF<W> total = splat<W>(0.0f);
    for (int cell = sub * kCellsPerSub; cell < (sub + 1) * kCellsPerSub; ++cell) {
      if constexpr (Work::kPerCell == 1) {
        total += least_cost<W>(work.lines[cell], s);
      } else {
        const VF<W> first = least_cost<W>(work.lines[2 * cell], s);
        const VF<W> second = least_cost<W>(work.lines[2 * cell + 1], s);
        if (Work::kTurns && work.odd[cell]) {
          total += vmin<W>(least_cost<W>(work.turned_lines[2 * cell], s) + second,
                           first + least_cost<W>(work.turned_lines[2 * cell + 1], s));
        } else {
          total += first + second;
        }
      }
    }
    store<W>(costs + l, total);
  }
}

// The best words of a cell at scale s, among all words.
template <int W, class Format>
MT_INLINE CellChoice choose_words(const LatticeWork<Format>& work, int cell, float s) {
  using Work = LatticeWork<Format>;
  constexpr int kWords = Format::kWords;
  if constexpr (Work::kPerCell == 1) {
    const int word = best_word<W, kWords>(work.p2[cell], work.q[cell], s);
    return {{word, 0}, work.odd[cell] ? 0 : -1, work.p2[cell][word], work.q[cell][word]};
  } else {
    const int a = 2 * cell, b = a + 1;
    const int first = best_word<W, kWords>(work.p2[a], work.q[a], s);
    const int second = best_word<W, kWords>(work.p2[b], work.q[b], s);
    CellChoice plain{{first, second},
                     -1,
                     work.p2[a][first] + work.p2[b][second],
                     work.q[a][first] + work.q[b][second]};
    if (!Work::kTurns || !work.odd[cell]) return plain;
    const int turned_first = best_word<W, kWords>(work.turned[a], work.q[a], s);
    const int turned_second = best_word<W, kWords>(work.turned[b], work.q[b], s);
    const CellChoice one{{turned_first, second},
                         0,
                         work.turned[a][turned_first] + work.p2[b][second],
                         work.q[a][turned_first] + work.q[b][second]};
    const CellChoice two{{first, turned_second},
                         1,
                         work.p2[a][first] + work.turned[b][turned_second],
                         work.q[a][first] + work.q[b][turned_second]};
    return s * one.q - one.p2 <= s * two.q - two.p2 ? one : two;
  }
}

}  // namespace mt
