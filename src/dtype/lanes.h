#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

// Arithmetic on 16 blocks side by side: lane l of every vector belongs to block l, so no sum ever
// crosses lanes and the bytes that come out do not depend on how many lanes a register holds.
// Vectors are the compiler's own; the search loops are compiled for three widths and one is chosen
// at run time. Everything here is forced inline: it takes the instruction set of its caller.
#define MT_INLINE inline __attribute__((always_inline))

namespace mt {

inline constexpr int kLanes = 16;

template <int W>
struct Vec;
template <>
struct Vec<4> {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
};
template <>
struct Vec<8> {
  typedef float F __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
};
template <>
struct Vec<16> {
  typedef float F __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
};
template <int W>
using VF = typename Vec<W>::F;
template <int W>
using VI = typename Vec<W>::I;

// 16 columns of N weights and their importances, lane l being column l.
template <int N>
struct alignas(64) Columns {
  float x[N][kLanes];
  float w[N][kLanes];
};

template <int W>
MT_INLINE VF<W> load(const float* p) {
  return *reinterpret_cast<const VF<W>*>(p);  // rows of Columns and lane arrays are aligned
}
template <int W>
MT_INLINE void store(float* p, VF<W> v) {
  *reinterpret_cast<VF<W>*>(p) = v;
}
template <int W>
MT_INLINE VF<W> splat(float value) {
  return VF<W>{} + value;
}
template <int W>
MT_INLINE VF<W> vmin(VF<W> a, VF<W> b) {
  return a < b ? a : b;
}
template <int W>
MT_INLINE VF<W> vmax(VF<W> a, VF<W> b) {
  return a > b ? a : b;
}
template <int W>
MT_INLINE VF<W> vabs(VF<W> a) {
  return (VF<W>)((VI<W>)a & 0x7fffffff);
}
// Nearest integer, ties to even, for magnitudes below 2^22.
template <int W>
MT_INLINE VF<W> vround(VF<W> a) {
  return (a + 12582912.0f) - 12582912.0f;
}
// 1/a, and 0 where a is 0 or so small that the quotient would not be finite.
template <int W>
MT_INLINE VF<W> inverse_or_zero(VF<W> a) {
  const VI<W> usable = vabs<W>(a) > 1e-30f;
  return usable ? 1.0f / (usable ? a : splat<W>(1.0f)) : splat<W>(0.0f);
}
// a/b, and 0 where b is not above zero.
template <int W>
MT_INLINE VF<W> ratio_or_zero(VF<W> a, VF<W> b) {
  const VI<W> usable = b > 1e-37f;
  return usable ? a / (usable ? b : splat<W>(1.0f)) : splat<W>(0.0f);
}

// The nearest f16 number, as f32; magnitudes beyond 65504 become 65504.
template <int W>
MT_INLINE VF<W> round_to_half(VF<W> a) {
  const VI<W> sign = (VI<W>)a & static_cast<int32_t>(0x80000000);
  const VF<W> magnitude = vmin<W>(vabs<W>(a), splat<W>(65504.0f));
  const VI<W> bits = (VI<W>)magnitude;
  const VF<W> normal = (VF<W>)((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fff);
  const VF<W> subnormal = (magnitude + 0.5f) - 0.5f;
  const VF<W> rounded = vmin<W>(magnitude < 0x1p-14f ? subnormal : normal, splat<W>(65504.0f));
  return (VF<W>)((VI<W>)rounded | sign);
}
// Distance of an f16 number from the next larger one.
template <int W>
MT_INLINE VF<W> half_step(VF<W> a) {
  const VF<W> exponent = (VF<W>)((VI<W>)vabs<W>(a) & 0x7f800000);
  return vmax<W>(exponent, splat<W>(0x1p-14f)) * 0x1p-10f;
}

// The largest lane, as a scalar. Which lanes are joined first does not matter to a maximum.
template <int W>
MT_INLINE float largest_lane(VF<W> v) {
  if constexpr (W == 16) {
    v = vmax<W>(
        v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = vmax<W>(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3));
  } else if constexpr (W == 8) {
    v = vmax<W>(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  }
  return std::max(std::max(v[0], v[1]), std::max(v[2], v[3]));
}

template <int W>
MT_INLINE VI<W> vmin(VI<W> a, VI<W> b) {
  return a < b ? a : b;
}
template <int W>
MT_INLINE int smallest_lane(VI<W> v) {
  if constexpr (W == 16) {
    v = vmin<W>(
        v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = vmin<W>(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3));
  } else if constexpr (W == 8) {
    v = vmin<W>(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  }
  return std::min(std::min(v[0], v[1]), std::min(v[2], v[3]));
}
template <int W>
MT_INLINE VI<W> lane_numbers() {
  VI<W> lane{};
  for (int l = 0; l < W; ++l) lane[l] = l;
  return lane;
}

enum class Isa { kBaseline, kAvx2, kAvx512 };
// The widest of the three this machine has, unless narrowed.
Isa encode_isa();
// For tests: encoders use at most this from now on. Returns what encode_isa() will say.
Isa limit_encode_isa(Isa at_most);

#ifdef __x86_64__
template <class Kernel, class... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2"))) void run_avx512(
    Args... args) {
  Kernel::template run<16>(args...);
}
template <class Kernel, class... Args>
__attribute__((target("avx2,bmi,bmi2"))) void run_avx2(Args... args) {
  Kernel::template run<8>(args...);
}
#endif
template <class Kernel, class... Args>
void run_baseline(Args... args) {
  Kernel::template run<4>(args...);
}
// Kernel::run<W>(args...) with W the lanes of this machine's registers.
template <class Kernel, class... Args>
void run_widest(Args... args) {
#ifdef __x86_64__
  switch (encode_isa()) {
    case Isa::kAvx512:
      return run_avx512<Kernel>(args...);
    case Isa::kAvx2:
      return run_avx2<Kernel>(args...);
    case Isa::kBaseline:
      break;
  }
#endif
  run_baseline<Kernel>(args...);
}

// What brings n importances to a mean of 1; 0 where none is positive: then all count alike.
// Negative and non-finite ones are 0.
MT_INLINE float clean_importance(float v) {
  return v > 0.0f && v <= 3.0e38f ? v : 0.0f;
}
MT_INLINE double importance_factor(const float* importance, int n) {
  if (importance == nullptr) return 0.0;
  double sum = 0.0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(clean_importance(importance[i]));
  return sum > 0.0 ? n / sum : 0.0;
}

// A millionth of the mean importance is added, so that a weight nobody asks for still lands near
// its value.
MT_INLINE float scaled_importance(float v, double factor) {
  return static_cast<float>(static_cast<double>(clean_importance(v)) * factor) + 1e-6f;
}

// Fills lane `lane` with the N weights at src. What is not finite is 0; magnitudes above `limit`
// (what the format can hold) are cut to it, so that nothing later overflows.
template <int N>
MT_INLINE void fill_lane(Columns<N>& c, int lane, const float* src, const float* importance,
                         double factor, float limit) {
  for (int i = 0; i < N; ++i) {
    const float v = src[i];
    const float m = v > limit ? limit : v < -limit ? -limit : v;
    c.x[i][lane] = std::fabs(v) <= 3.4028234e38f ? m : 0.0f;
  }
  if (factor == 0.0) {
    for (int i = 0; i < N; ++i) c.w[i][lane] = 1.0f;
    return;
  }
  for (int i = 0; i < N; ++i) c.w[i][lane] = scaled_importance(importance[i], factor);
}
// A block by itself.
template <int N>
MT_INLINE void fill_lane(Columns<N>& c, int lane, const float* src, const float* importance,
                         float limit) {
  fill_lane(c, lane, src, importance, importance_factor(importance, N), limit);
}
template <int N>
MT_INLINE void clear_lane(Columns<N>& c, int lane) {
  for (int i = 0; i < N; ++i) {
    c.x[i][lane] = 0.0f;
    c.w[i][lane] = 1.0f;
  }
}

}  // namespace mt
