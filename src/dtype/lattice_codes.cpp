#include "dtype/lattice_codes.h"

#include <cstring>
#include <utility>

#include "base/error.h"
#include "dtype/fit_lattice.h"
#include "dtype/half.h"
#include "dtype/lattice_formats.h"

namespace mt {
namespace {

// Calls with a value of the format's type.
template <class Do>
auto with_format(Dtype dtype, Do&& act) {
  switch (dtype) {
    case Dtype::IQ2_XXS:
      return act(Iq2XxsFormat{});
    case Dtype::IQ2_XS:
      return act(Iq2XsFormat{});
    case Dtype::IQ2_S:
      return act(Iq2SFormat{});
    case Dtype::IQ3_XXS:
      return act(Iq3XxsFormat{});
    case Dtype::IQ3_S:
      return act(Iq3SFormat{});
    default:
      throw_error("{} has no words of magnitudes", name(dtype));
  }
}

// A cell under search.
struct Cell {
  int word[2];
  uint8_t minus;
  float level[8];
  float value;  // of the form
};

float form_of(const CellForm& f, const float* v) {
  float sum = 0;
  for (int i = 0; i < 8; ++i) {
    float along = 0;
    for (int j = 0; j < 8; ++j) along += f.a[i][j] * v[j];
    sum += v[i] * (along - 2 * f.b[i]);
  }
  return sum;
}

template <class Format>
struct LowerCell {
  static constexpr int kDims = Format::kDims, kParts = 8 / kDims;

  // The best word of one part under the cell's signs, the other part as it is.
  template <int W>
  static MT_INLINE int best_of_part(const CellForm& f, const Cell& cell, int part) {
    const auto& words = words_of<Format>();
    const int first = part * kDims;
    float sign[8], a[kDims][kDims], b[kDims];
    for (int i = 0; i < 8; ++i) sign[i] = (cell.minus >> i & 1) ? -1.0f : 1.0f;
    for (int i = 0; i < kDims; ++i) {
      float rest = f.b[first + i];
      for (int j = 0; j < 8; ++j)
        if (j < first || j >= first + kDims) rest -= f.a[first + i][j] * cell.level[j];
      b[i] = 2 * sign[first + i] * rest;
      for (int j = 0; j < kDims; ++j)
        a[i][j] =
            f.a[first + i][first + j] * sign[first + i] * sign[first + j] * (i == j ? 1.0f : 2.0f);
    }
    VF<W> least = splat<W>(3e38f);
    VI<W> at = {};
    for (int k = 0; k < Format::kWords; k += W) {
      VF<W> v[kDims], sum = splat<W>(0.0f);
#pragma GCC unroll 8
      for (int i = 0; i < kDims; ++i) v[i] = load<W>(&words.value[i][k]);
#pragma GCC unroll 8
      for (int i = 0; i < kDims; ++i) {
        VF<W> along = v[i] * a[i][i] - b[i];
#pragma GCC unroll 8
        for (int j = i + 1; j < kDims; ++j) along += v[j] * a[i][j];
        sum += v[i] * along;
      }
      const VI<W> better = sum < least;
      least = better ? sum : least;
      at = better ? VI<W>{} + k : at;
    }
    const float lowest = -largest_lane<W>(-least);
    const VI<W> none = VI<W>{} + (Format::kWords - 1);
    return smallest_lane<W>(least == lowest ? at + lane_numbers<W>() : none);
  }

  static MT_INLINE void set_levels(Cell& cell, int part) {
    const auto& words = words_of<Format>();
    for (int i = 0; i < kDims; ++i) {
      const int at = part * kDims + i;
      const float v = words.value[i][cell.word[part]];
      cell.level[at] = (cell.minus >> at & 1) ? -v : v;
    }
  }

  // Turns signs, singly or (where only seven are stored) in pairs, while that helps.
  static MT_INLINE bool turn_signs(const CellForm& f, Cell& cell) {
    bool any = false;
    float g[8];
    for (int i = 0; i < 8; ++i) {
      g[i] = -f.b[i];
      for (int j = 0; j < 8; ++j) g[i] += f.a[i][j] * cell.level[j];
    }
    for (int turn = 0; turn < 4; ++turn) {
      float least = -1e-6f * std::fabs(cell.value), alone[8];
      int one = -1, two = -1;
      for (int i = 0; i < 8; ++i) alone[i] = 4 * cell.level[i] * (cell.level[i] * f.a[i][i] - g[i]);
      for (int i = 0; i < 8; ++i) {
        if (!Format::kParity && alone[i] < least) {
          least = alone[i];
          one = two = i;
        }
        if (Format::kParity)
          for (int j = 0; j < i; ++j) {
            const float both = alone[i] + alone[j] + 8 * f.a[i][j] * cell.level[i] * cell.level[j];
            if (both < least) {
              least = both;
              one = i;
              two = j;
            }
          }
      }
      if (one < 0) break;
      any = true;
      for (int i : {one, two}) {
        for (int j = 0; j < 8; ++j) g[j] -= 2 * cell.level[i] * f.a[j][i];
        cell.level[i] = -cell.level[i];
        cell.minus = static_cast<uint8_t>(cell.minus ^ 1u << i);
        if (one == two) break;
      }
    }
    return any;
  }

  template <int W>
  static MT_INLINE void run(const CellForm* form, Cell* cell, bool* changed) {
    const CellForm& f = *form;
    Cell found = *cell;
    unsigned minus = 0;
    int cheapest = 0;
    for (int i = 0; i < 8; ++i) {
      minus |= (f.free[i] < 0 ? 1u : 0u) << i;
      if (std::fabs(f.free[i]) * f.a[i][i] < std::fabs(f.free[cheapest]) * f.a[cheapest][cheapest])
        cheapest = i;
    }
    if (Format::kParity && __builtin_parity(minus)) minus ^= 1u << cheapest;
    found.minus = static_cast<uint8_t>(minus);
    std::copy_n(f.free, 8, found.level);  // a part that has no word yet errs nowhere
    for (int round = 0; round < 3; ++round) {
      for (int part = 0; part < kParts; ++part) {
        found.word[part] = best_of_part<W>(f, found, part);
        set_levels(found, part);
      }
      found.value = form_of(f, found.level);
      if (!turn_signs(f, found)) break;
    }
    found.value = form_of(f, found.level);
    *changed = found.value < cell->value - 1e-6f * std::fabs(cell->value);
    if (*changed) *cell = found;
  }
};

}  // namespace

int lattice_subs(Dtype dtype) {
  switch (dtype) {
    case Dtype::IQ2_XXS:
    case Dtype::IQ2_XS:
    case Dtype::IQ2_S:
    case Dtype::IQ3_XXS:
    case Dtype::IQ3_S:
      return with_format(dtype, [](auto f) { return decltype(f)::kSubs; });
    default:
      return 0;
  }
}

void read_lattice(Dtype dtype, const std::byte* block, LatticeCodes& codes) {
  with_format(dtype, [&](auto f) {
    typename decltype(f)::Block b;
    std::memcpy(&b, block, sizeof b);
    decltype(f)::unpack(b, codes);
  });
}

void write_lattice(Dtype dtype, const LatticeCodes& codes, std::byte* block) {
  with_format(dtype, [&](auto f) {
    typename decltype(f)::Block old, b{};
    std::memcpy(&old, block, sizeof old);
    b.d = old.d;
    decltype(f)::pack(b, codes);
    std::memcpy(block, &b, sizeof b);
  });
}

float lattice_unit(Dtype dtype, const std::byte* block) {
  return with_format(dtype, [&](auto f) {
    typename decltype(f)::Block b;
    std::memcpy(&b, block, sizeof b);
    return half_value(b.d) * decltype(f)::kUnit;
  });
}

void cell_levels(Dtype dtype, const LatticeCodes& codes, int cell, float* levels) {
  with_format(dtype, [&](auto f) {
    using Format = decltype(f);
    for (int i = 0; i < 8; ++i) {
      const int word = codes.word[cell][i / Format::kDims];
      const float v = words_of<Format>().value[i % Format::kDims][word];
      levels[i] = (codes.minus[cell] >> i & 1) ? -v : v;
    }
  });
}

bool lower_cell(Dtype dtype, const CellForm& form, LatticeCodes& codes, int cell, float* levels) {
  Cell c{};
  std::copy_n(codes.word[cell], 2, c.word);
  c.minus = codes.minus[cell];
  std::copy_n(levels, 8, c.level);
  c.value = form_of(form, levels);
  bool changed = false;
  with_format(dtype, [&](auto f) { run_widest<LowerCell<decltype(f)>>(&form, &c, &changed); });
  if (!changed) return false;
  std::copy_n(c.word, 2, codes.word[cell]);
  codes.minus[cell] = c.minus;
  std::copy_n(c.level, 8, levels);
  return true;
}

}  // namespace mt
