#pragma once
#include <cstdint>

namespace mt {

// Random numbers as a pure function of (seed, stream, index): the same on every machine, whatever
// the number of threads. The mixing is SplitMix64 (Steele, Lea, Flood 2014).
inline uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
  auto mix = [](uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  };
  constexpr uint64_t golden = 0x9e3779b97f4a7c15ull;
  return mix(mix(mix(seed + golden) ^ (stream + 2 * golden)) ^ (index + 3 * golden));
}

// In [0, 1).
inline double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  return static_cast<double>(random_bits(seed, stream, index) >> 11) * 0x1p-53;
}

}  // namespace mt
