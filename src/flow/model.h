#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "flow/tensor_file.h"

namespace mt {

// A matrix [rows = out, cols = in] in any format; its bytes are shared, never copied.
struct Weight {
  int64_t rows = 0;
  int64_t cols = 0;
  Dtype dtype = Dtype::F32;
  SharedBytes data;

  int64_t bytes() const { return rows * row_bytes(dtype, cols); }
  const std::byte* row(int64_t r) const { return data.bytes.data() + r * row_bytes(dtype, cols); }
};

struct LinearMap {
  std::string name;  // GGUF name with ".weight"; the place in measurements and plans
  Weight weight;
  std::vector<float> bias;  // empty, or `rows` values
};

enum class Activation { silu, gelu_tanh };

struct Attention {
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t d_head = 0;
  float scale = 0;     // multiplies q.k
  int64_t window = 0;  // 0: all earlier positions; else the last `window` ones, itself included
  LinearMap q, k, v, o;
  std::vector<float> q_norm, k_norm;     // per head RMSNorm before RoPE; empty: none
  std::string q_norm_name, k_norm_name;  // GGUF names, where there are such norms
  double rope_base = 10000;
  bool rope_neox = false;  // pairs (i, i + d/2) rather than (2i, 2i+1)
  int64_t rope_dims = 0;
  std::vector<float> rope_factors;  // divides the frequency of pair i; empty: none
  double rope_scale = 1;            // positions are multiplied by it (linear scaling)
};

struct Mlp {
  Activation activation = Activation::silu;
  LinearMap gate, up, down;
};

// Reads one value of the residual stream, writes one update to it:
// stream += post_norm(site(norm(stream))).
struct Site {
  std::string place;             // "3.attn", "3.mlp"
  std::string norm_name;         // GGUF name
  std::vector<float> norm;       // RMSNorm gain
  std::vector<float> post_norm;  // Gemma: RMSNorm of the update; empty: none
  std::string post_norm_name;    // GGUF name, where there is one
  std::variant<Attention, Mlp> what;
};

// Sites that read the same stream value and write together.
struct Step {
  int64_t layer = 0;
  std::vector<Site> sites;
};

// A transformer opened for running: facts and shared weights, no state.
struct Model {
  std::shared_ptr<const TensorFile> file;
  std::string architecture;  // general.architecture
  int64_t n_layers = 0;
  int64_t d_model = 0;
  int64_t n_vocab = 0;
  int64_t context_length = 0;
  float norm_epsilon = 1e-5f;
  float embedding_scale = 1;      // Gemma: sqrt(d_model), rounded to bf16
  float logit_softcap = 0;        // 0: none
  LinearMap embedding;            // [n_vocab, d_model]
  std::optional<LinearMap> head;  // nothing: the embedding serves (tied)
  std::vector<Step> steps;
  std::vector<float> final_norm;

  const LinearMap& head_map() const { return head ? *head : embedding; }
};

// Every linear map of the model in file-independent order: embedding, layers (q k v o gate up
// down), head where it is apart.
std::vector<LinearMap*> linear_maps(Model& model);
std::vector<const LinearMap*> linear_maps(const Model& model);

// The gain of a norm under its GGUF name.
template <class Gain>
struct NamedNorm {
  std::string name;
  Gain* gain;
};
inline constexpr const char* kFinalNorm = "output_norm.weight";
// Every norm of the model that is there: layers in order, the final one last.
std::vector<NamedNorm<std::vector<float>>> norms(Model& model);
std::vector<NamedNorm<const std::vector<float>>> norms(const Model& model);

}  // namespace mt
