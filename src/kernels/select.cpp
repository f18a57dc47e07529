#ifdef __x86_64__
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "kernels/amx.h"
#include "kernels/tables.h"

namespace mt {
namespace {

#ifdef __x86_64__
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1) != 0;
}

// __builtin_cpu_supports answers for processor and operating system together.
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool runs_avx512f() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool runs_avx512() {
  return runs_avx512f() && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
}

bool runs_avx512bf16() {
  return runs_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

constexpr std::string_view kNames[] = {"reference",  "avx2",      "avx512f", "avx512",
                                       "avx512bf16", "avx512amx", "neon"};

const Kernels& choose() {
  std::vector<const Kernels*> tables = available_kernels();
  const char* wanted = std::getenv("MICROTOME_ISA");
  if (wanted == nullptr || *wanted == '\0') return *tables.back();
  std::string names;
  for (const Kernels* table : tables) {
    if (table->name == wanted) return *table;
    names += names.empty() ? "" : ", ";
    names += table->name;
  }
  const bool known = std::ranges::any_of(kNames, [&](std::string_view n) { return n == wanted; });
  throw_error("MICROTOME_ISA: '{}' {}; this processor runs: {}", wanted,
              known ? "does not run here" : "is no name that this program knows", names);
}

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> tables = {&reference_kernels()};
#ifdef __x86_64__
  if (runs_avx2()) tables.push_back(&avx2_kernels());
  if (runs_avx512f()) tables.push_back(&avx512f_kernels());
  if (runs_avx512()) tables.push_back(&avx512_kernels());
  if (runs_avx512bf16()) tables.push_back(&avx512bf16_kernels());
  if (runs_avx512bf16() && amx_runs()) tables.push_back(&avx512amx_kernels());
#else
  tables.push_back(&neon_kernels());
#endif
  return tables;
}

const Kernels& select_kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace mt
