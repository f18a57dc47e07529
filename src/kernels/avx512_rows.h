#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/attributes.h"
#include "kernels/avx512_intrinsics.h"

namespace mt {

MT_AVX512F_INLINE __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << std::max<int64_t>(n, 0)) - 1u);
}

// The sums of a product: R rows of c, n of 32 columns.
template <int R>
struct Rows512 {
  __m512 low[R], high[R];
};
template <int R>
MT_AVX512F_INLINE void load_rows(Rows512<R>& sum, const float* c, int64_t ldc, int64_t n,
                                 bool accumulate) {
  const __mmask16 low = first_lanes(n), high = first_lanes(n - 16);
  MT_UNROLL
  for (int r = 0; r < R; ++r) {
    sum.low[r] = accumulate ? _mm512_maskz_loadu_ps(low, c + r * ldc) : _mm512_setzero_ps();
    sum.high[r] = accumulate ? _mm512_maskz_loadu_ps(high, c + r * ldc + 16) : _mm512_setzero_ps();
  }
}
template <int R>
MT_AVX512F_INLINE void store_rows(const Rows512<R>& sum, float* c, int64_t ldc, int64_t n) {
  const __mmask16 low = first_lanes(n), high = first_lanes(n - 16);
  MT_UNROLL
  for (int r = 0; r < R; ++r) {
    _mm512_mask_storeu_ps(c + r * ldc, low, sum.low[r]);
    _mm512_mask_storeu_ps(c + r * ldc + 16, high, sum.high[r]);
  }
}

}  // namespace mt
