#include "model/arch/table.h"

namespace mt {

// Gemma 3: five layers of sliding windows, then one that sees everything. GGUF files hold the norm
// gains with the 1 already added.
extern const Architecture gemma3_architecture;
const Architecture gemma3_architecture{
    .name = "gemma3",
    .activation = Activation::gelu_tanh,
    .rope_neox = true,
    .qk_norm = true,
    .post_norms = true,
    .scaled_embedding = true,
    .tied_head_loads = true,
    .biases = OptionalBiases::none,
    .window_pattern = 6,
    .window_rope_base = 10000,
};

}  // namespace mt
