#pragma once
#include <span>

#include "flow/model.h"
#include "run/forward.h"

namespace mt {

// Whole-number scales of sub-blocks (dtype/scale_fields.h) that are learned with the f16 fields
// they multiply: every one keeps a latent value, whose nearest whole number is written; the
// gradient of the loss by the number is taken for the latent's own (straight-through).

// State of one weight matrix: [blocks, fields, count]. Unlike codes (cut/learned_rounding.h) every
// number has a running mean of squared gradients of its own: one is a step of several per cent of
// the scale, and should be taken only where windows agree on its direction, however small the
// gradient.
struct LatentScales {
  std::span<float> latent;
  std::span<float> mean;    // running mean of the gradient
  std::span<float> square;  // and of its square
};

// Scales of sub-blocks of a weight; 0 where its format has none.
int64_t n_sub_scales(const Weight& w);

// Latents at the numbers that are there. The means become 0.
void start_sub_scales(const Weight& w, const LatentScales& to);

// One block's gradient; b1, b2: how the running means decay. Different blocks may come from
// different threads. What reaches a block in several parts in one step (windows taken together; of
// a tied embedding the head's part and one for every token that was read) adds each part's square,
// not the square of their sum: where parts agree, steps are longer than those of plain Adam, by up
// to the root of their number.
void add_sub_scale_gradient(const Weight& w, int64_t block, std::span<const float> gradient,
                            float b1, float b2, const LatentScales& to);

// One step of Adam, within what the format holds, by about so much that the largest code's weight
// under the largest number moves by `step` levels: formats of many bits move their scales less. The
// means are corrected by c1 and c2; then they decay, ready for the next gradient.
void move_sub_scales(const Runtime& rt, const Weight& w, float step, float b1, float b2, float c1,
                     float c2, const LatentScales& state);

// The latents' nearest numbers that the format holds into the weight's bytes.
void write_sub_scales(const Runtime& rt, const Weight& w, std::span<const float> latent,
                      std::span<std::byte> bytes);

}  // namespace mt
