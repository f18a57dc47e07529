#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "flow/model.h"
#include "run/forward.h"

namespace mt {

// A backward pass through the whole model at every step, or layer after layer on the layer's own
// output; automatic: by layer where the whole has no room.
enum class RefineBy { automatic, model, layer };

struct RefineSettings {
  int64_t steps = 80;  // by layer: of every layer
  RefineBy by = RefineBy::automatic;
  int64_t room_bytes = 0;  // memory that decides; 0: what is free
  // By layer: how much an error in each channel of the stream after a layer counts, layer by layer
  // [n_layers][d_model]; empty: all alike.
  std::vector<std::vector<float>> channel_weights;
  // By layer: both models' streams of all windows stay within this; else fewer windows are read.
  int64_t stream_bytes = int64_t{512} << 20;
  // Short windows are taken together while a step has not read so many tokens. One window of
  // sampled text: a step then costs half, and for the same tokens the loss is no higher
  // (docs/results.md).
  int64_t step_tokens = 256;
  uint64_t seed = 1;  // of the order of the windows
  // How far a parameter moves in a step, relative to its own size at the start.
  double scale_step = 5e-4;
  double norm_step = 1e-3;
  // How far the whole-number scales of sub-blocks move in a step (cut/learned_scales.h), in levels
  // of the largest weights under them; 0: they stay. Only in these formats, the only one where a
  // gain was measured on a model that people use (docs/methods.md).
  double sub_scale_step = 1e-2;
  std::vector<Dtype> sub_scale_formats{Dtype::Q3_K};
  // How far a weight of a format that learns_rounding moves in a step, in levels; 0: its code
  // stays.
  double rounding_step = 5e-3;
  // Memory for the latents of both: scales (12 bytes each) for every weight that can have them,
  // then codes in place of them while there is room; in each, formats of the fewest bits first.
  int64_t latent_bytes = int64_t{512} << 20;
  // From the first step's loss (nats a token) on, steps are taken whole; where it is less they are
  // shorter by the square root of their ratio: a loss goes as the square of the errors that made
  // it.
  double whole_steps_from = 5e-3;
  double beta1 = 0.9, beta2 = 0.98;
  int64_t warm_up = 10;    // steps in which the step size rises to its full value
  double decay_to = 0.02;  // share of the step size that a half cosine leaves at the end
  Path path = Path::bf16;  // of both models' passes; bf16 or exact
  bool kept = false;       // tensors that still are the original's bytes are refined too
  // Where the state lies between runs; empty: nowhere. By layer: files whose names begin so, each
  // layer's when it is finished; the refined model's weights are mapped from them. A run that finds
  // the state of a run with the same models, windows and settings goes on from there and ends with
  // the same bytes; any other state is overwritten. The caller removes the file when it is no
  // longer wanted.
  std::filesystem::path checkpoint;
  int64_t checkpoint_every = 20;
  // Called after every step with the number of steps done and the step's loss; may be empty.
  std::function<void(int64_t done, double loss)> after_step;
};

struct Refined {
  // Its refined weights lie in memory of their own; by layer, with a checkpoint, in its files.
  Model model;
  // Of every step, before it: mean KL over the step's tokens, nats a token. By layer: the steps of
  // every layer, whose loss is the error of its output as a share of what the layer adds; then
  // those of final norm and head, whose loss is the KL.
  std::vector<double> losses;
  size_t first_kl = 0;                             // the losses from here on are KLs
  int64_t n_scales = 0, n_norms = 0, n_codes = 0;  // parameters that were free
  bool by_layer = false;
  int64_t n_windows = 0;     // that were read
  int64_t needed_bytes = 0;  // of memory for steps on the whole; 0: not asked
  int64_t room_bytes = 0;    // that were free

  // Means over the first and the last tenth of the KLs: different windows, so a rough guide.
  double first_loss() const;
  double last_loss() const;
};

// Gradient descent on the block scales (the f16 fields of scale_offsets) and on the f32 norms of a
// cut, against the mean over all positions of a step's windows of KL(original || cut): Adam (Kingma
// and Ba 2015) with warm-up and cosine decay, steps relative to each parameter's size, on f32
// masters whose rounding to f16 the model reads. With a sub_scale_step, the whole-number scales of
// sub-blocks too (cut/learned_scales.h), with a rounding_step, codes of formats of few bits
// (cut/learned_rounding.h); other codes and biases stay. Windows come in a seeded order, each as
// often as the others. The same bytes for any number of threads and
// in every instruction set. Norms that the original's file does not hold as F32 stay. Throws Error
// as forward does, where the vocabularies differ, where there is no window or the checkpoint cannot
// be written.
Refined refine(const Runtime& rt, const Model& original, const Model& cut,
               const std::vector<std::vector<int32_t>>& windows, const RefineSettings& settings);

// What refine() needs at most for steps on the whole model, in bytes of memory beside the models.
int64_t whole_refinement_bytes(const Model& original, const Model& cut,
                               const std::vector<std::vector<int32_t>>& windows,
                               const RefineSettings& settings);

// Loss of one window and its gradient by every field (in the order of read_fields) and gain that
// refine would move, under the tensors' names.
struct KlSlope {
  double loss = 0;
  std::map<std::string, std::vector<float>> by_tensor;
  // By the scales of sub-blocks, taken for real numbers: [blocks, fields, count].
  std::map<std::string, std::vector<float>> sub_scales;
};
KlSlope kl_slope(const Runtime& rt, const Model& original, const Model& cut,
                 std::span<const int32_t> window, bool kept = false, Path path = Path::exact);

// KL(original || cut) of every row; replaces the cut's logits by the gradient of
// sum over rows of KL times `weight`: (softmax(cut) - softmax(original)) * weight.
// original is overwritten. losses[row] receives each row's KL. Both: [rows, n_vocab]
void kl_gradient(const Runtime& rt, Matrix original, Matrix cut, float weight,
                 std::span<double> losses);

}  // namespace mt
