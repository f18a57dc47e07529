#pragma once
#include <immintrin.h>

namespace mt {

// While it lives, denormal operands and results count as zeros, as in vdpbf16ps. What computes
// under it stands in functions of its own: the compiler may move arithmetic across the switch.
class DenormalsAreZero {
 public:
  DenormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~DenormalsAreZero() { _mm_setcsr(before_); }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
  unsigned before_;
};

}  // namespace mt
