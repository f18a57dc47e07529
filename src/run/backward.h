#pragma once
#include <functional>
#include <span>

#include "run/forward.h"

namespace mt {

// What the backward pass shows of one linear map: y = x W^T, dy = d loss / d y.
// x:[n_tokens,in]  dy:[n_tokens,out]; valid during the call only.
using MapTap = std::function<void(const LinearMap& map, ConstMatrix x, ConstMatrix dy)>;
// d loss / d gain of a norm, by the GGUF name of the norm's tensor.
using NormTap = std::function<void(const std::string& norm, std::span<const float> dgain)>;
// d loss / d (embedding row as it enters the stream, before any scale): [n_tokens, d_model].
using EmbedTap = std::function<void(std::span<const int32_t> tokens, ConstMatrix d_embedding)>;

// The head alike, in slices of rows: x:[rows,d_model] is the normed final stream,
// dy:[rows,n_vocab] the gradient before any soft cap.
using HeadTap = std::function<void(const LinearMap& map, ConstMatrix x, ConstMatrix dy)>;

struct BackwardTaps {
  MapTap map;      // every map of the layers, last layer first; not the head
  NormTap norm;    // may be empty
  EmbedTap embed;  // may be empty
  HeadTap head;    // may be empty
};

// Fills dlogits from logits for rows first .. first+rows-1 of the window. Called for slices of
// rows, in order, from one thread. logits may be overwritten: dlogits is the same memory.
using LogitsLoss = std::function<void(int64_t first, ConstMatrix hidden, Matrix logits)>;

struct BackwardOptions {
  Path path = Path::exact;  // of the products with weights; all else is f32
  // What the forward pass computed and need not be computed again: up to so many bytes. The
  // results do not depend on it.
  int64_t kept_bytes = int64_t{320} << 20;
  // Start with this stream [n_tokens, d_model] instead of the embedding; taps.embed is not called.
  const MatrixBuffer* stream = nullptr;
};

// One window of at least one token, from position 0: forward, loss, backward. The stream before
// every step is kept (n_steps x n_tokens x d_model floats), and of what layers computed what
// options allow; all else is computed again layer by layer. Throws Error as forward does.
void backward(const Runtime& rt, const Model& model, std::span<const int32_t> tokens,
              const LogitsLoss& loss, const BackwardTaps& taps,
              const BackwardOptions& options = {});

// Replaces the stream after the last step by d loss / d stream. stream:[n_tokens,d_model]
using StreamLoss = std::function<void(Matrix stream)>;

// The same for the steps alone, for a loss on the stream after the last of them: no final norm and
// no head. From options.stream, which has to be there, its first row at position 0.
void backward_of_steps(const Runtime& rt, const Model& model, const StreamLoss& loss,
                       const BackwardTaps& taps, const BackwardOptions& options);

// y = x / sqrt(mean(x^2) + epsilon) * gain: dx (overwritten; may be dy), dgain (added to; may be
// null). x, dy, dx:[n,d]
void rms_norm_backward(const Runtime& rt, ConstMatrix x, std::span<const float> gain, float epsilon,
                       ConstMatrix dy, Matrix dx, float* dgain);

// y = activation(gate) * up: replaces gate by dgate and up by dup; y receives the forward value.
void activation_backward(const Kernels& k, Activation activation, int64_t n, const float* dy,
                         float* gate, float* up, float* y);

}  // namespace mt
