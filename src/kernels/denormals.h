#pragma once
#include <cstdint>
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace mt {

// While it lives, denormal operands and results count as zeros, as in vdpbf16ps. What computes
// under it stands in functions of its own: the compiler may move arithmetic across the switch.
class DenormalsAreZero {
 public:
  DenormalsAreZero() : before_(get()) { set(before_ | kBits); }
  ~DenormalsAreZero() { set(before_); }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
#ifdef __x86_64__
  using Word = unsigned;
  static constexpr Word kBits = 0x8040;
  static Word get() {
    return _mm_getcsr();
  }
  static void set(Word word) {
    _mm_setcsr(word);
  }
#else
  using Word = uint64_t;
  static constexpr Word kBits = 1 << 24;
  static Word get() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(Word word) {
    asm volatile("msr fpcr, %0" : : "r"(word));
  }
#endif

  Word before_;
};

}  // namespace mt
