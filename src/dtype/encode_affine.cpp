// Encoders of the formats with a scale and an offset a block: Q4_1 and Q5_1.
#include <algorithm>
#include <cmath>

#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/dtype.h"
#include "dtype/fit_affine.h"
#include "dtype/recover_affine.h"

namespace mt {
namespace {

// Steps by which the lowest and the highest weight may lie outside the range of codes.
struct Q4_1Format {
  using Block = block::Q4_1;
  static constexpr int kTop = 15;
  static constexpr float kCuts[] = {0, -0.5f, 0.25f, -1, -1.75f};
  static constexpr float kStretches[] = {1.0f, 0.985f, 1.015f};
  static constexpr int kRounds = 3;
  static void pack(Block& b, const uint8_t codes[32]) {
    for (int i = 0; i < 16; ++i) b.qs[i] = static_cast<uint8_t>(codes[i] | codes[i + 16] << 4);
  }
};
struct Q5_1Format {
  using Block = block::Q5_1;
  static constexpr int kTop = 31;
  static constexpr float kCuts[] = {0, -0.5f, 0.25f, -1, -1.75f};
  static constexpr float kStretches[] = {1.0f, 0.993f, 1.007f};
  static constexpr int kRounds = 3;
  static void pack(Block& b, const uint8_t codes[32]) {
    uint32_t high = 0;
    for (int i = 0; i < 16; ++i) {
      b.qs[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
      high |= uint32_t{codes[i]} >> 4 << i | uint32_t{codes[i + 16]} >> 4 << (i + 16);
    }
    b.qh = high;
  }
};

template <class Format>
struct EncodeAffine {
  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    constexpr int kTop = Format::kTop;
    Columns<32> c;
    alignas(64) float scale[kLanes];
    alignas(64) float offset[kLanes];
    const int64_t n_blocks = n / 32;
    for (int64_t first = 0; first < n_blocks; first += kLanes) {
      const int used = static_cast<int>(std::min<int64_t>(kLanes, n_blocks - first));
      for (int l = 0; l < kLanes; ++l) {
        const int64_t at = (first + l) * 32;
        if (l < used) {
          fill_lane(c, l, src + at, importance == nullptr ? nullptr : importance + at,
                    65504.0f * kTop);
        } else {
          clear_lane(c, l);
        }
      }
      for (int l = 0; l < kLanes; l += W) {
        const AffineFacts<W> facts = affine_facts<W, 32>(c, l);
        const AffineFit<W> fit = search_affine<W, 32, kTop, Format>(c, l, facts);
        VF<W> d = fit.d, m = fit.m;
        settle_half_affine<W, 32, kTop>(c, l, facts.weight, d, m);
        store<W>(scale + l, d);
        store<W>(offset + l, m);
      }
      for (int l = 0; l < used; ++l) {
        const RecoveredPair found = recover_affine<W>(src + (first + l) * 32, 32, kTop);
        if (!found.found) continue;
        scale[l] = found.d;
        offset[l] = found.m;
      }
      alignas(64) float codes[32][kLanes];
      for (int l = 0; l < kLanes; l += W) {
        const VF<W> m = load<W>(offset + l), inverse = inverse_or_zero<W>(load<W>(scale + l));
        for (int i = 0; i < 32; ++i) {
          store<W>(&codes[i][l], nearest_code<W, kTop>((load<W>(&c.x[i][l]) - m) * inverse));
        }
      }
      for (int l = 0; l < used; ++l) {
        typename Format::Block b;
        b.d = float_to_half(scale[l]);
        b.m = float_to_half(offset[l]);
        uint8_t column[32];
        for (int i = 0; i < 32; ++i) column[i] = static_cast<uint8_t>(codes[i][l]);
        Format::pack(b, column);
        std::memcpy(dst, &b, sizeof b);
        dst += sizeof b;
      }
    }
  }
};

}  // namespace

void encode_q4_1(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeAffine<Q4_1Format>>(src, importance, dst, n);
}
void encode_q5_1(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeAffine<Q5_1Format>>(src, importance, dst, n);
}

}  // namespace mt
