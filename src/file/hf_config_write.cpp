#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "file/hf_config.h"

namespace mt {
namespace {

[[noreturn]] void fail(const TensorFile& file, const std::string& what, const std::string& expected,
                       const std::string& found) {
  throw_error("{}: as a Hugging Face folder: {}: expected {}, found {}", file.path, what, expected,
              found);
}

std::vector<float> rope_factors(const TensorFile& file) {
  const Tensor* t = file.find_tensor("rope_freqs.weight");
  if (!t) return {};
  if (t->dtype != Dtype::F32) fail(file, t->name, "F32", std::string(name(t->dtype)));
  std::vector<float> factors(t->data.bytes.size() / sizeof(float));
  std::memcpy(factors.data(), t->data.bytes.data(), factors.size() * sizeof(float));
  return factors;
}

// A folder names the settings, GGUF holds what follows of them: those of the Llama 3 models are
// tried, and what they do not give exactly is refused.
nlohmann::ordered_json llama3_settings(const TensorFile& file, const HfFamily& family,
                                       const nlohmann::ordered_json& config) {
  const std::vector<float> wanted = rope_factors(file);
  if (wanted.empty()) return nullptr;
  nlohmann::ordered_json rope = {
      {"rope_type", "llama3"},
      {"factor", *std::max_element(wanted.begin(), wanted.end())},
      {"low_freq_factor", 1.0},
      {"high_freq_factor", 4.0},
      {"original_max_position_embeddings", 8192},
  };
  HfConfig trial;
  trial.file = file.path;
  trial.json =
      nlohmann::json::parse(config.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  trial.json["rope_scaling"] = nlohmann::json::parse(rope.dump());
  trial.family = &family;
  const std::vector<float> got = llama3_rope_factors(trial);
  bool same = got.size() == wanted.size();
  for (size_t i = 0; same && i < got.size(); ++i)
    same = std::abs(got[i] - wanted[i]) <= 1e-5f * wanted[i];
  if (!same) fail(file, "rope_freqs.weight", "the factors of a Llama 3 rope scaling", "others");
  return rope;
}

void put_rope(const TensorFile& file, const HfFamily& family, const std::string& prefix,
              nlohmann::ordered_json& config) {
  if (auto theta = file.get_float(prefix + "rope.freq_base")) config["rope_theta"] = *theta;
  if (family.rope_theta_window)
    config["rope_local_base_freq"] =
        file.get_float(prefix + "rope.freq_base_swa").value_or(*family.rope_theta_window);
  config["rope_scaling"] = llama3_settings(file, family, config);
  const std::string type = file.get_string(prefix + "rope.scaling.type").value_or("none");
  if (type == "none") return;
  if (type != "linear" && type != "yarn")
    fail(file, prefix + "rope.scaling.type", "none, linear or yarn", "'" + type + "'");
  nlohmann::ordered_json rope = {
      {"rope_type", type}, {"factor", file.get_float(prefix + "rope.scaling.factor").value_or(1)}};
  if (auto original = file.get_int(prefix + "rope.scaling.original_context_length"))
    rope["original_max_position_embeddings"] = *original;
  config["rope_scaling"] = rope;
}

}  // namespace

nlohmann::ordered_json make_hf_config(const HfFamily& family, const TensorFile& file, Dtype dtype) {
  const std::string prefix = std::string(family.gguf) + ".";
  nlohmann::ordered_json config;
  config["architectures"] = {family.classes[0]};
  config["model_type"] = family.model_type;
  if (auto model = file.get_string("general.name")) config["_name_or_path"] = *model;
  config[std::string(family.activation_key)] = family.activation;
  for (const auto& n : family.numbers) {
    const std::string key = prefix + std::string(n.gguf);
    const std::string name(n.config);
    if (!file.find_meta(key)) {
      if (n.required) fail(file, key, "a number", "none");
    } else if (n.is_float) {
      config[name] = *file.get_float(key);
    } else {
      const int64_t value = *file.get_int(key);
      if (config.contains(name) && config[name] != value)
        fail(file, key, config[name].dump() + " (the folder has one number for both)",
             std::to_string(value));
      config[name] = value;
    }
  }
  const Tensor* embedding = file.find_tensor("token_embd.weight");
  if (!embedding || embedding->shape.size() != 2)
    fail(file, "token_embd.weight", "a matrix", "none");
  config["vocab_size"] = embedding->shape[0];
  config["torch_dtype"] = dtype == Dtype::F32   ? "float32"
                          : dtype == Dtype::F16 ? "float16"
                                                : "bfloat16";
  if (family.causal) {
    put_rope(file, family, prefix, config);
    config["tie_word_embeddings"] = file.find_tensor("output.weight") == nullptr;
    const auto has_bias = [&](std::string_view maps) {
      return std::any_of(file.tensors.begin(), file.tensors.end(), [&](const Tensor& t) {
        return t.name.find(maps) != std::string::npos && t.name.ends_with(".bias");
      });
    };
    config["attention_bias"] = has_bias(".attn_");
    if (has_bias(".ffn_")) config["mlp_bias"] = true;
  } else {
    config["type_vocab_size"] = file.get_int("tokenizer.ggml.token_type_count").value_or(2);
  }
  if (family.window_every) {
    config["sliding_window_pattern"] = family.window_every;
    if (config.contains("head_dim")) config["query_pre_attn_scalar"] = config["head_dim"];
  }
  return config;
}

}  // namespace mt
