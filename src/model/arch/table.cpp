#include "model/arch/table.h"

#include <array>

namespace mt {

extern const Architecture llama_architecture, qwen2_architecture, qwen3_architecture,
    gemma3_architecture;

namespace {
const std::array<const Architecture*, 4> table{&llama_architecture, &qwen2_architecture,
                                               &qwen3_architecture, &gemma3_architecture};
}

std::span<const Architecture* const> all_architectures() {
  return table;
}

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture* a : table)
    if (a->name == name) return a;
  return nullptr;
}

}  // namespace mt
