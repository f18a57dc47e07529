#include "model/arch/table.h"

namespace mt {

// Qwen2 and Qwen2.5: biases on q, k and v.
extern const Architecture qwen2_architecture;
const Architecture qwen2_architecture{
    .name = "qwen2",
    .activation = Activation::silu,
    .rope_neox = true,
    .qk_norm = false,
    .post_norms = false,
    .scaled_embedding = false,
    .tied_head_loads = true,
    .biases = OptionalBiases::none,
    .window_pattern = 0,
    .window_rope_base = 0,
};

// Qwen3: no biases, norms of q and k.
extern const Architecture qwen3_architecture;
const Architecture qwen3_architecture{
    .name = "qwen3",
    .activation = Activation::silu,
    .rope_neox = true,
    .qk_norm = true,
    .post_norms = false,
    .scaled_embedding = false,
    .tied_head_loads = true,
    .biases = OptionalBiases::none,
    .window_pattern = 0,
    .window_rope_base = 0,
};

}  // namespace mt
