#pragma once
#include <cstdint>
#include <cstring>
#include <memory>

#include "dtype/blocks.h"
#include "dtype/fit_lattice.h"
#include "dtype/grids.h"
#include "dtype/lattice_codes.h"

// How the lattice formats with magnitudes and signs lie in their blocks: IQ2_XXS, IQ2_XS, IQ2_S,
// IQ3_XXS and IQ3_S.
namespace mt {

struct Iq2 {
  static constexpr int kDims = 8;
  static constexpr float kUnit = 0.125f;  // a weight is d * kUnit * odd number * magnitude
  static constexpr float kLargest = 43;
  static constexpr float kTypical = 22;  // magnitude over scale where both suit each other
  static float magnitude(uint16_t word, int i) { return kIq2Magnitudes[word >> (2 * i) & 3]; }
};
struct Iq2XxsFormat : Iq2 {
  using Block = block::IQ2_XXS;
  static constexpr int kWords = 256, kSubs = 8;
  static constexpr bool kParity = true;
  static constexpr auto& kGrid = kGridIq2Xxs;
  static void pack(Block& b, const LatticeCodes& c) {
    for (int sub = 0; sub < 8; ++sub) {
      uint32_t words = 0, rest = static_cast<uint32_t>(c.scale[sub]) << 28;
      for (int g = 0; g < 4; ++g) {
        words |= static_cast<uint32_t>(c.word[4 * sub + g][0]) << (8 * g);
        rest |= (c.minus[4 * sub + g] & 127u) << (7 * g);
      }
      b.qs[sub][0] = words;
      b.qs[sub][1] = rest;
    }
  }
  static void unpack(const Block& b, LatticeCodes& c) {
    for (int cell = 0; cell < kCells; ++cell) {
      const uint32_t words = b.qs[cell / 4][0], rest = b.qs[cell / 4][1];
      const int at = cell % 4;
      c.scale[cell / 4] = static_cast<int>(rest >> 28);
      c.word[cell][0] = static_cast<int>(words >> (8 * at) & 255);
      c.minus[cell] = eight_signs(rest >> (7 * at) & 127);
    }
  }
};
template <int N>
void pack_nibble_scales(uint8_t (&scales)[N], const LatticeCodes& c) {
  for (int i = 0; i < N; ++i) {
    scales[i] = static_cast<uint8_t>(c.scale[2 * i] | c.scale[2 * i + 1] << 4);
  }
}
template <int N>
void unpack_nibble_scales(const uint8_t (&scales)[N], LatticeCodes& c) {
  for (int i = 0; i < 2 * N; ++i) c.scale[i] = scales[i / 2] >> (4 * (i % 2)) & 15;
}
struct Iq2XsFormat : Iq2 {
  using Block = block::IQ2_XS;
  static constexpr int kWords = 512, kSubs = 16;
  static constexpr bool kParity = true;
  static constexpr auto& kGrid = kGridIq2Xs;
  static void pack(Block& b, const LatticeCodes& c) {
    pack_nibble_scales(b.scales, c);
    for (int g = 0; g < 32; ++g) {
      b.qs[g] = static_cast<uint16_t>(c.word[g][0] | (c.minus[g] & 127) << 9);
    }
  }
  static void unpack(const Block& b, LatticeCodes& c) {
    unpack_nibble_scales(b.scales, c);
    for (int g = 0; g < 32; ++g) {
      c.word[g][0] = b.qs[g] & 511;
      c.minus[g] = eight_signs(static_cast<uint32_t>(b.qs[g] >> 9));
    }
  }
};
struct Iq2SFormat : Iq2 {
  using Block = block::IQ2_S;
  static constexpr int kWords = 1024, kSubs = 16;
  static constexpr bool kParity = false;
  static constexpr auto& kGrid = kGridIq2S;
  static void pack(Block& b, const LatticeCodes& c) {
    pack_nibble_scales(b.scales, c);
    for (int g = 0; g < 32; ++g) {
      b.qs[g] = static_cast<uint8_t>(c.word[g][0]);
      b.signs[g] = c.minus[g];
      b.qh[g / 4] = static_cast<uint8_t>(b.qh[g / 4] | c.word[g][0] >> 8 << (2 * (g % 4)));
    }
  }
  static void unpack(const Block& b, LatticeCodes& c) {
    unpack_nibble_scales(b.scales, c);
    for (int g = 0; g < 32; ++g) {
      c.word[g][0] = b.qs[g] | (b.qh[g / 4] >> (2 * (g % 4)) & 3) << 8;
      c.minus[g] = b.signs[g];
    }
  }
};

struct Iq3XxsFormat {
  using Block = block::IQ3_XXS;
  static constexpr int kDims = 4, kWords = 256, kSubs = 8;
  static constexpr bool kParity = true;
  static constexpr float kUnit = 0.25f, kLargest = 62, kTypical = 24;
  static constexpr auto& kGrid = kGridIq3Xxs;
  static float magnitude(uint16_t word, int i) { return kIq3XxsMagnitudes[word >> (4 * i) & 7]; }
  static void pack(Block& b, const LatticeCodes& c) {
    for (int sub = 0; sub < 8; ++sub) {
      uint32_t rest = static_cast<uint32_t>(c.scale[sub]) << 28;
      for (int g = 0; g < 4; ++g) {
        const int cell = 4 * sub + g;
        rest |= (c.minus[cell] & 127u) << (7 * g);
        b.qs[2 * cell] = static_cast<uint8_t>(c.word[cell][0]);
        b.qs[2 * cell + 1] = static_cast<uint8_t>(c.word[cell][1]);
      }
      b.signs[sub] = rest;
    }
  }
  static void unpack(const Block& b, LatticeCodes& c) {
    for (int cell = 0; cell < kCells; ++cell) {
      const uint32_t rest = b.signs[cell / 4];
      c.scale[cell / 4] = static_cast<int>(rest >> 28);
      c.minus[cell] = eight_signs(rest >> (7 * (cell % 4)) & 127);
      for (int h = 0; h < 2; ++h) c.word[cell][h] = b.qs[2 * cell + h];
    }
  }
};
struct Iq3SFormat {
  using Block = block::IQ3_S;
  static constexpr int kDims = 4, kWords = 512, kSubs = 8;
  static constexpr bool kParity = false;
  static constexpr float kUnit = 1.0f, kLargest = 15, kTypical = 5.5f;
  static constexpr auto& kGrid = kGridIq3S;
  static float magnitude(uint16_t word, int i) {
    return static_cast<float>(2 * (word >> (4 * i) & 7) + 1);
  }
  static void pack(Block& b, const LatticeCodes& c) {
    pack_nibble_scales(b.scales, c);
    for (int cell = 0; cell < kCells; ++cell) {
      b.signs[cell] = c.minus[cell];
      for (int h = 0; h < 2; ++h) {
        const int g = 2 * cell + h;
        b.qs[g] = static_cast<uint8_t>(c.word[cell][h]);
        b.qh[g / 8] = static_cast<uint8_t>(b.qh[g / 8] | c.word[cell][h] >> 8 << (g % 8));
      }
    }
  }
  static void unpack(const Block& b, LatticeCodes& c) {
    unpack_nibble_scales(b.scales, c);
    for (int cell = 0; cell < kCells; ++cell) {
      c.minus[cell] = b.signs[cell];
      for (int h = 0; h < 2; ++h) {
        const int g = 2 * cell + h;
        c.word[cell][h] = b.qs[g] | (b.qh[g / 8] >> (g % 8) & 1) << 8;
      }
    }
  }
};

template <class Format>
const Words<Format>& words_of() {
  static const auto table = [] {
    auto words = std::make_unique<Words<Format>>();
    for (int k = 0; k < Format::kWords; ++k) {
      for (int i = 0; i < Format::kDims; ++i) {
        const float v = Format::magnitude(Format::kGrid[k], i);
        words->value[i][k] = v;
        words->square[i][k] = v * v;
      }
    }
    return words;
  }();
  return *table;
}

}  // namespace mt
