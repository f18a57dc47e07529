#include "model/arch/table.h"

namespace mt {

// Llama 2 and 3, Mistral, SmolLM2. GGUF files hold q and k with rows permuted for pairs (2i, 2i+1).
// llama.cpp's reader has taken a bias for each of the seven maps since early 2024.
extern const Architecture llama_architecture;
const Architecture llama_architecture{
    .name = "llama",
    .activation = Activation::silu,
    .rope_neox = false,
    .qk_norm = false,
    .post_norms = false,
    .scaled_embedding = false,
    .tied_head_loads = true,
    .biases = OptionalBiases::all,
    .window_pattern = 0,
    .window_rope_base = 0,
};

}  // namespace mt
