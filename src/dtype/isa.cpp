#include <cstdlib>
#include <string_view>

#include "dtype/lanes.h"

namespace mt {

Isa encode_isa() {
  static const Isa isa = [] {
    Isa widest = Isa::kBaseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) widest = Isa::kAvx2;
    if (widest == Isa::kAvx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      widest = Isa::kAvx512;
    }
#endif
    const char* asked = std::getenv("MT_DTYPE_ISA");
    const std::string_view name = asked == nullptr ? "" : asked;
    if (name == "baseline") return Isa::kBaseline;
    if (name == "avx2" && widest == Isa::kAvx512) return Isa::kAvx2;
    return widest;
  }();
  return isa;
}

}  // namespace mt
