#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dtype/lanes.h"

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

inline constexpr int kCells = 32;
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
  float p[kLines], q[kLines];
};

template <class Format>
struct LatticeWork {
  static constexpr int kGroups = 256 / Format::kDims;
  static constexpr int kPerCell = 8 / Format::kDims;
  // Two words share a sign: either may hold the turned weight, so both costs are kept.
  static constexpr bool kTurns = Format::kParity && kPerCell == 2;
  alignas(64) float p[kGroups][Format::kWords];
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
  float p, q;
};

// p and q of every word for the weights of one group. At `turned`, where wanted, p less what the
// cheapest turned sign costs.
template <int W, class Format>
MT_INLINE void face_words(const Words<Format>& words, const float* w, const float* wx, float* p,
                          float* q, float* turned) {
  for (int k = 0; k < Format::kWords; k += W) {
    VF<W> sum_p = splat<W>(0.0f), sum_q = sum_p, least = splat<W>(3e38f);
#pragma GCC unroll 8
    for (int i = 0; i < Format::kDims; ++i) {
      const VF<W> product = load<W>(&words.value[i][k]) * wx[i];
      sum_p += product;
      sum_q += load<W>(&words.square[i][k]) * w[i];
      if (turned != nullptr) least = vmin<W>(least, product);
    }
    if (p != nullptr) store<W>(p + k, sum_p);
    store<W>(q + k, sum_q);
    if (turned != nullptr) store<W>(turned + k, sum_p - 2.0f * least);
  }
}

// The word of least s (s q - 2 p), the first among equals.
template <int W, int N>
MT_INLINE int best_word(const float* p, const float* q, float s) {
  VF<W> best = splat<W>(-3e38f);
  VI<W> at{};
  for (int k = 0; k < N; k += W) {
    const VF<W> gain = load<W>(p + k) * 2.0f - load<W>(q + k) * s;
    const VI<W> better = gain > best;
    best = better ? gain : best;
    at = better ? VI<W>{} + k : at;
  }
  int word = N;
  float most = -3.1e38f;
  for (int l = 0; l < W; ++l) {
    const int here = at[l] + l;
    if (best[l] > most || (best[l] == most && here < word)) {
      most = best[l];
      word = here;
    }
  }
  return word;
}

// Winners at ascending scales, and word 0, the smallest, for scales beyond.
template <int W, int N>
MT_INLINE void list_winners(const float* p, const float* q, const float* scales, int n_scales,
                            Lines& lines) {
  lines.count = 0;
  int last = -1;
  for (int t = 0; t < n_scales; ++t) {
    const int word = best_word<W, N>(p, q, scales[t]);
    if (word == last) continue;
    last = word;
    lines.p[lines.count] = p[word];
    lines.q[lines.count++] = q[word];
  }
  if (last != 0) {
    lines.p[lines.count] = p[0];
    lines.q[lines.count++] = q[0];
  }
}

template <int W>
MT_INLINE VF<W> least_cost(const Lines& lines, VF<W> s) {
  VF<W> least = splat<W>(3e38f);
  for (int k = 0; k < lines.count; ++k) {
    least = vmin<W>(least, s * (s * lines.q[k] - 2.0f * lines.p[k]));
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
    const int word = best_word<W, kWords>(work.p[cell], work.q[cell], s);
    return {{word, 0}, work.odd[cell] ? 0 : -1, work.p[cell][word], work.q[cell][word]};
  } else {
    const int a = 2 * cell, b = a + 1;
    const int first = best_word<W, kWords>(work.p[a], work.q[a], s);
    const int second = best_word<W, kWords>(work.p[b], work.q[b], s);
    CellChoice plain{{first, second},
                     -1,
                     work.p[a][first] + work.p[b][second],
                     work.q[a][first] + work.q[b][second]};
    if (!Work::kTurns || !work.odd[cell]) return plain;
    const int turned_first = best_word<W, kWords>(work.turned[a], work.q[a], s);
    const int turned_second = best_word<W, kWords>(work.turned[b], work.q[b], s);
    const CellChoice one{{turned_first, second},
                         0,
                         work.turned[a][turned_first] + work.p[b][second],
                         work.q[a][turned_first] + work.q[b][second]};
    const CellChoice two{{first, turned_second},
                         1,
                         work.p[a][first] + work.turned[b][turned_second],
                         work.q[a][first] + work.q[b][turned_second]};
    return s * one.q - 2.0f * one.p <= s * two.q - 2.0f * two.p ? one : two;
  }
}

}  // namespace mt
