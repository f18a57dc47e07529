#pragma once
#include <cstdint>
#include <optional>

namespace mt {

// Products and sums of untrusted sizes: nothing where the result does not fit.
inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t r;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}
inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t r;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline uint64_t round_up(uint64_t a, uint64_t b) {
  return (a + b - 1) / b * b;
}

}  // namespace mt
