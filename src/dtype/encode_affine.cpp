// Encoders of the formats with a scale and an offset a block: Q4_1 and Q5_1.
#include <algorithm>
#include <cmath>

#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/dtype.h"
#include "dtype/fit_affine.h"
#include "dtype/half.h"

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

bool reproduces(const float* x, float d, float m, int top) {
  for (int i = 0; i < 32; ++i) {
    const float q = d == 0.0f ? 0.0f : std::nearbyint((x[i] - m) / d);
    if (!(q >= 0.0f && q <= static_cast<float>(top)) || q * d + m != x[i]) return false;
  }
  return true;
}

float to_half_and_back(float v) {
  return half_value(float_to_half(v));
}

// Weights decoded from this format take few values, equally spaced but for f32 rounding: the
// smallest gap is a small multiple of d, and the offset lies a whole number of steps below the
// lowest weight. Gives the pair that reproduces all 32 weights, if there is one.
bool exact_affine(const float* x, int top, float* d_out, float* m_out) {
  float sorted[32];
  uint64_t seen[8] = {};  // most blocks that are on no grid have no two equal weights
  int repeats = 0;
  for (int i = 0; i < 32; ++i) {
    if (!std::isfinite(x[i])) return false;
    const uint32_t hash = std::bit_cast<uint32_t>(x[i]) * 2654435761u >> 23;
    repeats += static_cast<int>(seen[hash / 64] >> (hash % 64) & 1u);
    seen[hash / 64] |= uint64_t{1} << (hash % 64);
  }
  if (repeats < std::max(1, 31 - top)) return false;
  std::copy(x, x + 32, sorted);
  std::sort(sorted, sorted + 32);
  const float range = sorted[31] - sorted[0];
  float gap = range;
  for (int i = 1; i < 32; ++i) {
    const float g = sorted[i] - sorted[i - 1];
    if (g > 0.0f && g < gap) gap = g;
  }
  if (range == 0.0f) {
    if (to_half_and_back(x[0]) == x[0]) {
      *d_out = 0.0f;
      *m_out = x[0];
      return true;
    }
    gap = std::fabs(x[0]);  // a single level may still be m + k d
  }
  if (range > (static_cast<float>(top) + 0.5f) * gap) return false;
  for (int divisor = 1; divisor <= top; ++divisor) {
    const float step = gap / static_cast<float>(divisor);
    const float steps = std::nearbyint(range / step);
    if (steps > static_cast<float>(top)) break;
    const float nearest = to_half_and_back(steps > 0.0f ? range / steps : step);
    // Where the offset is thousands of steps, f32 rounding blurs d by an f16 number or two.
    for (int blur = 0; blur < 5; ++blur) {
      const int away_by = blur % 2 == 0 ? blur / 2 : -(blur + 1) / 2;
      const float d = half_value(static_cast<uint16_t>(float_to_half(nearest) + away_by));
      if (!(d > 0.0f) || !std::isfinite(d)) continue;
      // A negative d counts down from an offset above the highest weight.
      for (int away = 0; away + static_cast<int>(steps) <= top; ++away) {
        const float below = to_half_and_back(sorted[0] - static_cast<float>(away) * d);
        const float above = to_half_and_back(sorted[31] + static_cast<float>(away) * d);
        const bool up = std::isfinite(below) && reproduces(x, d, below, top);
        if (up || (std::isfinite(above) && reproduces(x, -d, above, top))) {
          *d_out = up ? d : -d;
          *m_out = up ? below : above;
          return true;
        }
      }
    }
  }
  return false;
}

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
        exact_affine(src + (first + l) * 32, kTop, &scale[l], &offset[l]);
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
