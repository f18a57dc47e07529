#pragma once
#include <span>

#include "flow/model.h"
#include "run/forward.h"

namespace mt {

// Rounding that is learned with the scales: every weight of a block format keeps a latent value in
// units of the block's scale, whose nearest level is its code; the gradient of the loss by the
// decoded weight is taken for the latent's own (straight-through: Bengio et al. 2013; for block
// formats AutoRound, Cheng et al. 2023, and PV-Tuning, Malinovskii et al. 2024).

// Weights that share one running mean of squared gradients. Within them the scale is the same, so
// that it cancels out of a step (one mean for many, after Adam-mini, Zhang et al. 2024).
constexpr int64_t kRoundingGroup = 16;

// Formats of few bits, whose codes are levels of their own: at four bits scales alone do better.
bool learns_rounding(Dtype dtype);

// State of one weight matrix; all row-major.
struct LatentCodes {
  std::span<float> latent;  // [rows * cols], in levels
  std::span<float> mean;    // [rows * cols], running mean of the gradient
  std::span<float> square;  // [rows * cols / kRoundingGroup]
};

// Latents from the original's values: within half a level of the code that `cut` has, so that the
// first rounding gives the same codes. The means become 0.
void start_latent(const Runtime& rt, const Weight& original, const Weight& cut,
                  const LatentCodes& to);

// Adds a tile of dW (d loss / d decoded weight): rows first .. first+rows-1, columns column ..
// column+width-1, `stride` floats apart. b1, b2: how the running means decay. Tiles of different
// rows may come from different threads.
void add_latent_gradient(const Weight& w, int64_t first, int64_t rows, int64_t column,
                         int64_t width, const float* dw, int64_t stride, float b1, float b2,
                         const LatentCodes& to);

// One step of Adam by about `step` levels, the means corrected by c1 and c2; then the means decay,
// ready for the next gradient.
void move_latent(const Runtime& rt, const Weight& w, float step, float b1, float b2, float c1,
                 float c2, const LatentCodes& state);

// The latents' nearest levels into the weight's bytes.
void write_latent(const Runtime& rt, const Weight& w, std::span<const float> latent,
                  std::span<std::byte> bytes);

}  // namespace mt
