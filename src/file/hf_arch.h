#pragma once
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace mt {

// What a tensor's values undergo on the way from a Hugging Face folder to GGUF.
enum class HfChange {
  none,
  permute_q,  // rows of each head: (i, i + d/2) of the halves become neighbours (2i, 2i+1)
  permute_k,
  add_one,  // Gemma stores norm gains less one
};

// Names without their ".weight" or ".bias"; "{}" stands for the layer.
struct HfTensorName {
  std::string_view hf;
  std::string_view gguf;
  HfChange change = HfChange::none;
};

// A number of config.json and its key after "ARCH.". `fallback` is what the family takes where
// the folder is silent: an empty one is left out of the GGUF.
struct HfNumber {
  std::string_view config;
  std::string_view gguf;
  bool is_float = false;
  bool required = false;
  std::optional<double> fallback = std::nullopt;
};

struct HfFamily {
  std::span<const std::string_view> classes;  // config.json "architectures"; the first is written
  std::string_view model_type;
  std::string_view gguf;  // general.architecture
  std::string_view activation_key;
  std::string_view activation;
  std::span<const HfTensorName> tensors;
  std::span<const HfNumber> numbers;
  bool tied = false;              // where tie_word_embeddings is absent
  bool causal = true;             // else attention.causal = false is written, and a pooling type
  bool writes_rope_dims = false;  // vocab_size and rope.dimension_count belong to the metadata
  int window_every = 0;           // every n-th layer sees everything, the others a window
  std::optional<double> rope_theta = std::nullopt;  // defaults
  std::optional<double> rope_theta_window = std::nullopt;
};

std::span<const HfFamily> hf_families();
const HfFamily* hf_family_of_class(std::string_view hf_class);
const HfFamily* hf_family_of_gguf(std::string_view architecture);
// "LlamaForCausalLM, ..." for messages.
std::string hf_classes();

// A tensor's name in the other convention, and its change; nothing where the family has none such.
struct HfName {
  std::string name;
  HfChange change;
  size_t order;  // in the family's table
};
std::optional<HfName> gguf_name(const HfFamily& family, std::string_view hf);
std::optional<HfName> hf_name(const HfFamily& family, std::string_view gguf);
// Buffers and heads that a folder may hold and GGUF does not.
bool is_ignored_tensor(const HfFamily& family, std::string_view hf);

}  // namespace mt
