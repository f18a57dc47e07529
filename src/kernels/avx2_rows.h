#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "kernels/attributes.h"

namespace mt {

MT_AVX2_INLINE __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int count = static_cast<int>(std::clamp<int64_t>(n, 0, 8));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}

// The sums of a product: R rows of c, n of 16 columns.
template <int R>
struct Rows256 {
  __m256 low[R], high[R];
};
template <int R>
MT_AVX2_INLINE void load_rows(Rows256<R>& sum, const float* c, int64_t ldc, int64_t n,
                              bool accumulate) {
  const __m256i low = first_lanes(n), high = first_lanes(n - 8);
  MT_UNROLL
  for (int r = 0; r < R; ++r) {
    sum.low[r] = accumulate ? _mm256_maskload_ps(c + r * ldc, low) : _mm256_setzero_ps();
    sum.high[r] = accumulate ? _mm256_maskload_ps(c + r * ldc + 8, high) : _mm256_setzero_ps();
  }
}
template <int R>
MT_AVX2_INLINE void store_rows(const Rows256<R>& sum, float* c, int64_t ldc, int64_t n) {
  const __m256i low = first_lanes(n), high = first_lanes(n - 8);
  MT_UNROLL
  for (int r = 0; r < R; ++r) {
    _mm256_maskstore_ps(c + r * ldc, low, sum.low[r]);
    _mm256_maskstore_ps(c + r * ldc + 8, high, sum.high[r]);
  }
}

}  // namespace mt
