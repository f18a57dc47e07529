#include <algorithm>
#include <atomic>

#include "dtype/lanes.h"

namespace mt {
namespace {

Isa widest_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") ||
      !__builtin_cpu_supports("bmi2")) {
    return Isa::kBaseline;
  }
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? Isa::kAvx512 : Isa::kAvx2;
#else
  return Isa::kBaseline;
#endif
}

std::atomic<Isa> limit{Isa::kAvx512};

}  // namespace

Isa encode_isa() {
  static const Isa widest = widest_isa();
  return std::min(widest, limit.load(std::memory_order_relaxed));
}

Isa limit_encode_isa(Isa at_most) {
  limit = at_most;
  return encode_isa();
}

}  // namespace mt
