// Encoders of the formats with one scale a block: Q4_0 Q5_0 Q8_0 IQ4_NL Q1_0 Q2_0 TQ2_0 MXFP4.
#include <algorithm>
#include <cmath>

#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/dtype.h"
#include "dtype/fit_scale.h"
#include "dtype/recover.h"

namespace mt {
namespace {

using Codes = float (*)[kLanes];

uint8_t code_at(Codes codes, int i, int lane) {
  return static_cast<uint8_t>(codes[i][lane]);
}

struct Iq4Table {
  static constexpr const float (&kLevels)[16] = kIq4Values;
};
struct E2m1Table {  // ascending, without the second zero
  static constexpr float kLevels[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
};

// Targets: the largest element is put on level t for every t listed. All levels of the format are
// in the list, so values on one of its grids are found; the fractions let outliers be cut.
struct Q4_0Format {
  using Block = block::Q4_0;
  using Levels = IntegerLevels<-8, 7>;
  static constexpr int kLength = 32;
  static constexpr float kTargets[] = {-8,    -7,   -6,   -5,  -4, -3,   -2,  -1,   1,  2,
                                       3,     4,    5,    6,   7,  -7.5, 7.5, -8.5, 8,  8.5,
                                       -9.25, 9.25, -6.5, 6.5, 10, -10,  11,  -11,  12, -12};
  static constexpr int kFine = 2;
  static constexpr float kFineStep = 0.03f;
  static void pack(Block& b, Codes codes, int lane) {
    for (int i = 0; i < 16; ++i) {
      b.qs[i] = static_cast<uint8_t>(code_at(codes, i, lane) | code_at(codes, i + 16, lane) << 4);
    }
  }
};

struct Iq4NlFormat {
  using Block = block::IQ4_NL;
  using Levels = ListedLevels<Iq4Table>;
  static constexpr int kLength = 32;
  static constexpr float kTargets[] = {-127, -104, -83, -65, -49,  -35,  -22, -10, 1,    13,
                                       25,   38,   53,  69,  89,   113,  -94, 100, -115, 107,
                                       -121, 120,  127, 138, -140, -155, 150, 170, -175, 80};
  static constexpr int kFine = 2;
  static constexpr float kFineStep = 0.03f;
  static constexpr auto& pack = Q4_0Format::pack;
};

struct Q5_0Format {
  using Block = block::Q5_0;
  using Levels = IntegerLevels<-16, 15>;
  static constexpr int kLength = 32;
  static constexpr float kTargets[] = {
      -16, -15, -14,  -13,   -12,  -11,   -10,  -9,    -8,   -7,    -6, -5,  -4, -3, -2,
      -1,  1,   2,    3,     4,    5,     6,    7,     8,    9,     10, 11,  12, 13, 14,
      15,  16,  14.5, -14.5, 15.5, -15.5, 16.5, -16.5, 17.5, -17.5, 19, -19, 21, -21};
  static constexpr int kFine = 2;
  static constexpr float kFineStep = 0.015f;
  static void pack(Block& b, Codes codes, int lane) {
    uint32_t high = 0;
    for (int i = 0; i < 16; ++i) {
      const unsigned first = code_at(codes, i, lane), second = code_at(codes, i + 16, lane);
      b.qs[i] = static_cast<uint8_t>((first & 15) | (second & 15) << 4);
      high |= first >> 4 << i | second >> 4 << (i + 16);
    }
    b.qh = high;
  }
};

struct Q2_0Format {
  using Block = block::Q2_0;
  using Levels = IntegerLevels<-1, 2>;
  static constexpr int kLength = 64;
  static constexpr float kTargets[] = {1,    2,     -1,   -2,    1.5f,  -1.5f, 1.75f, -1.75f,
                                       2.3f, -2.3f, 2.6f, -2.6f, 3,     -3,    3.5f,  -3.5f,
                                       4,    -4,    5,    -5,    1.25f, -1.25f};
  static constexpr int kFine = 2;
  static constexpr float kFineStep = 0.05f;
  static void pack(Block& b, Codes codes, int lane) {
    for (int i = 0; i < 16; ++i) {
      unsigned byte = 0;
      for (int k = 0; k < 4; ++k) byte |= unsigned{code_at(codes, 4 * i + k, lane)} << (2 * k);
      b.qs[i] = static_cast<uint8_t>(byte);
    }
  }
};

struct Tq2_0Format {
  using Block = block::TQ2_0;
  using Levels = IntegerLevels<-1, 1>;  // the fourth code, 2, is not for other readers
  static constexpr int kLength = 256;
  static constexpr float kTargets[] = {1, 1.2f, 1.4f, 1.6f, 1.8f, 2, 2.3f, 2.6f, 3, 3.5f, 4, 5};
  static constexpr int kFine = 1;
  static constexpr float kFineStep = 0.04f;
  static void pack(Block& b, Codes codes, int lane) {
    for (int i = 0; i < 64; ++i) {
      unsigned byte = 0;
      for (int k = 0; k < 4; ++k) {
        byte |= unsigned{code_at(codes, 128 * (i / 32) + 32 * k + i % 32, lane)} << (2 * k);
      }
      b.qs[i] = static_cast<uint8_t>(byte);
    }
  }
};

// The scale for 8 bits: rounding the scale itself to f16 costs as much as a poor choice, so every
// candidate is judged by its true error after that rounding.
template <int W>
MT_INLINE VF<W> search_q8_scale(const Columns<32>& c, int lane) {
  using Levels = IntegerLevels<-128, 127>;
  static constexpr float kTargets[] = {127,    -128,   126.5f, 127.4f,  126, -127.4f,
                                       125.4f, 128.4f, 124.8f, -128.4f, 124, 123,
                                       122,    129,    121,    120};
  const VF<W> e = extreme<W, 32>(c, lane);
  VF<W> best = splat<W>(0.0f), best_error = scale_error<W, 32, Levels>(c, lane, best);
  for (const float target : kTargets) {
    const VF<W> d = round_to_half<W>(e * (1.0f / target));
    const VF<W> error = scale_error<W, 32, Levels>(c, lane, d);
    const VI<W> better = error < best_error;
    best_error = better ? error : best_error;
    best = better ? d : best;
  }
  ScaleFit<W> ignored{best, splat<W>(0.0f)};
  const VF<W> refitted = try_scale<W, 32, Levels>(c, lane, best, ignored);
  VF<W> error;
  const VF<W> d = settle_half_scale<W, 32, Levels>(c, lane, refitted, &error);
  return error < best_error ? d : best;
}

// Where the weights of lane l lie on a grid, its scale; where that grid's scale is no f16 number,
// the nearest one if it is better than what the search found.
template <int W, int N, class Levels>
MT_INLINE void recover_lane(const Columns<N>& c, int lane, const float* src, float* scale) {
  const RecoveredScale found = recover_scale<W, Levels>(src, N);
  if (found.d == 0.0f) return;
  auto error_at = [&](float d) {
    double error = 0.0;
    for (int i = 0; i < N; ++i) {
      const float v = d == 0.0f ? 0.0f : d * nearest_level<Levels>(c.x[i][lane] / d);
      const double e = static_cast<double>(c.x[i][lane]) - static_cast<double>(v);
      error += static_cast<double>(c.w[i][lane]) * e * e;
    }
    return error;
  };
  if (found.to_the_bit || error_at(found.d) < error_at(scale[lane])) scale[lane] = found.d;
}

template <class Format>
struct EncodeScale {
  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    constexpr int kLength = Format::kLength;
    using Levels = typename Format::Levels;
    Columns<kLength> c;
    alignas(64) float scale[kLanes];
    alignas(64) float codes[kLength][kLanes];
    const int64_t n_blocks = n / kLength;
    for (int64_t first = 0; first < n_blocks; first += kLanes) {
      const int used = static_cast<int>(std::min<int64_t>(kLanes, n_blocks - first));
      for (int l = 0; l < kLanes; ++l) {
        const int64_t at = (first + l) * kLength;
        if (l < used) {
          fill_lane(c, l, src + at, importance == nullptr ? nullptr : importance + at,
                    65504.0f * Levels::kLargest);
        } else {
          clear_lane(c, l);
        }
      }
      for (int l = 0; l < kLanes; l += W) {
        const ScaleFit<W> fit = search_scale<W, kLength, Levels, Format>(c, l);
        const VF<W> d = settle_half_scale<W, kLength, Levels>(c, l, fit.d, nullptr);
        store<W>(scale + l, d);
      }
      for (int l = 0; l < used; ++l) {
        recover_lane<W, kLength, Levels>(c, l, src + (first + l) * kLength, scale);
      }
      for (int l = 0; l < kLanes; l += W) {
        put_codes<W, kLength, Levels>(c, l, load<W>(scale + l), codes);
      }
      for (int l = 0; l < used; ++l) {
        typename Format::Block b;
        b.d = float_to_half(scale[l]);
        Format::pack(b, codes, l);
        std::memcpy(dst, &b, sizeof b);
        dst += sizeof b;
      }
    }
  }
};

struct EncodeQ8 {
  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    using Levels = IntegerLevels<-128, 127>;
    Columns<32> c;
    alignas(64) float scale[kLanes];
    alignas(64) float codes[32][kLanes];
    const int64_t n_blocks = n / 32;
    for (int64_t first = 0; first < n_blocks; first += kLanes) {
      const int used = static_cast<int>(std::min<int64_t>(kLanes, n_blocks - first));
      for (int l = 0; l < kLanes; ++l) {
        const int64_t at = (first + l) * 32;
        if (l < used) {
          fill_lane(c, l, src + at, importance == nullptr ? nullptr : importance + at,
                    65504.0f * 127.0f);
        } else {
          clear_lane(c, l);
        }
      }
      for (int l = 0; l < kLanes; l += W) store<W>(scale + l, search_q8_scale<W>(c, l));
      for (int l = 0; l < used; ++l) {
        recover_lane<W, 32, Levels>(c, l, src + (first + l) * 32, scale);
      }
      for (int l = 0; l < kLanes; l += W) {
        put_codes<W, 32, Levels>(c, l, load<W>(scale + l), codes);
      }
      for (int l = 0; l < used; ++l) {
        block::Q8_0 b;
        b.d = float_to_half(scale[l]);
        for (int i = 0; i < 32; ++i) {
          b.qs[i] = static_cast<int8_t>(static_cast<int>(codes[i][l]) - 128);
        }
        std::memcpy(dst, &b, sizeof b);
        dst += sizeof b;
      }
    }
  }
};

// One bit: the best d is the weighted mean magnitude, no search.
struct EncodeQ1 {
  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    Columns<128> c;
    alignas(64) float scale[kLanes];
    const int64_t n_blocks = n / 128;
    for (int64_t first = 0; first < n_blocks; first += kLanes) {
      const int used = static_cast<int>(std::min<int64_t>(kLanes, n_blocks - first));
      for (int l = 0; l < kLanes; ++l) {
        const int64_t at = (first + l) * 128;
        if (l < used) {
          fill_lane(c, l, src + at, importance == nullptr ? nullptr : importance + at, 65504.0f);
        } else {
          clear_lane(c, l);
        }
      }
      for (int l = 0; l < kLanes; l += W) {
        VF<W> weight = splat<W>(0.0f), magnitude = weight;
        for (int i = 0; i < 128; ++i) {
          weight += load<W>(&c.w[i][l]);
          magnitude += load<W>(&c.w[i][l]) * vabs<W>(load<W>(&c.x[i][l]));
        }
        store<W>(scale + l, round_to_half<W>(magnitude / weight));
      }
      for (int l = 0; l < used; ++l) {
        block::Q1_0 b{};
        b.d = float_to_half(scale[l]);
        for (int i = 0; i < 128; ++i) {
          b.qs[i / 8] = static_cast<uint8_t>(b.qs[i / 8] | (c.x[i][l] >= 0.0f ? 1 : 0) << (i % 8));
        }
        std::memcpy(dst, &b, sizeof b);
        dst += sizeof b;
      }
    }
  }
};

// The scale is a power of two: five of them are tried on weights brought to a largest of 1..2.
struct EncodeMxfp4 {
  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    using Levels = ListedLevels<E2m1Table>;
    static constexpr uint8_t kCode[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
    Columns<32> c;
    alignas(64) float scale[kLanes];
    alignas(64) float codes[32][kLanes];
    alignas(64) float exponent[kLanes];
    const int64_t n_blocks = n / 32;
    for (int64_t first = 0; first < n_blocks; first += kLanes) {
      const int used = static_cast<int>(std::min<int64_t>(kLanes, n_blocks - first));
      for (int l = 0; l < kLanes; ++l) {
        exponent[l] = 0.0f;
        if (l >= used) {
          clear_lane(c, l);
          continue;
        }
        const int64_t at = (first + l) * 32;
        fill_lane(c, l, src + at, importance == nullptr ? nullptr : importance + at, 3.4e38f);
        float largest = 0.0f;
        for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(c.x[i][l]));
        if (largest == 0.0f) continue;
        const int e = std::ilogb(largest);
        exponent[l] = static_cast<float>(e);
        const double factor = std::ldexp(1.0, -e);
        for (int i = 0; i < 32; ++i) {
          c.x[i][l] = static_cast<float>(static_cast<double>(c.x[i][l]) * factor);
        }
      }
      for (int l = 0; l < kLanes; l += W) {
        const VF<W> e = load<W>(exponent + l);
        VF<W> best = splat<W>(0.0f), best_error = splat<W>(3e38f), best_k = splat<W>(-4.0f);
        for (int k = -4; k <= 0; ++k) {
          const VF<W> d = splat<W>(1.0f / static_cast<float>(1 << -k));
          const VF<W> stored = e + static_cast<float>(k);
          const VF<W> error = scale_error<W, 32, Levels>(c, l, d);
          // 2^124 is the largest scale under which every level is finite.
          const VI<W> better = (error < best_error) & (stored >= -128.0f) & (stored <= 124.0f);
          best_error = better ? error : best_error;
          best = better ? d : best;
          best_k = better ? splat<W>(static_cast<float>(k)) : best_k;
        }
        store<W>(scale + l, e + best_k);
        put_codes<W, 32, Levels>(c, l, best, codes);
      }
      for (int l = 0; l < used; ++l) {
        block::MXFP4 b;
        b.e = static_cast<uint8_t>(std::clamp(scale[l] + 128.0f, 0.0f, 252.0f));
        for (int i = 0; i < 16; ++i) {
          b.qs[i] = static_cast<uint8_t>(kCode[code_at(codes, i, l)] |
                                         kCode[code_at(codes, i + 16, l)] << 4);
        }
        std::memcpy(dst, &b, sizeof b);
        dst += sizeof b;
      }
    }
  }
};

}  // namespace

void encode_q4_0(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeScale<Q4_0Format>>(src, importance, dst, n);
}
void encode_q5_0(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeScale<Q5_0Format>>(src, importance, dst, n);
}
void encode_q8_0(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeQ8>(src, importance, dst, n);
}
void encode_iq4_nl(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeScale<Iq4NlFormat>>(src, importance, dst, n);
}
void encode_q1_0(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeQ1>(src, importance, dst, n);
}
void encode_q2_0(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeScale<Q2_0Format>>(src, importance, dst, n);
}
void encode_tq2_0(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeScale<Tq2_0Format>>(src, importance, dst, n);
}
void encode_mxfp4(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeMxfp4>(src, importance, dst, n);
}

}  // namespace mt
