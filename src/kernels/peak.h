#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace mt {

// A multiplying unit of this processor: what a product could reach if nothing but the unit
// mattered.
struct Peak {
  std::string_view name;  // "f32 fma", "bf16 dot", "int8 vnni", "int8 avx2", "bf16 amx", "int8 amx"
  // Does at least `rounds` rounds of independent multiply-adds between registers on the calling
  // thread; returns how many multiply-adds those were.
  int64_t (*run)(int64_t rounds);
};

// The units that this processor has. Where tiles (AMX) need the kernel's permission it is asked
// for; without it they are left out.
std::vector<Peak> available_peaks();

}  // namespace mt
