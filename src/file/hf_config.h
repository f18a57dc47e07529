#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "file/hf_arch.h"
#include "flow/tensor_file.h"

namespace mt {

// config.json of a folder, opened: the family it is of, and its numbers.
struct HfConfig {
  std::string file;  // for messages
  nlohmann::json json;
  const HfFamily* family = nullptr;

  // Nothing where the key is absent or null; throws Error where it is no number of that kind.
  std::optional<int64_t> get_count(const std::string& key) const;  // 1 to 2^32 - 1
  std::optional<double> get_number(const std::string& key) const;
  int64_t n_heads() const;
  int64_t n_kv_heads() const;
  int64_t d_head() const;
  bool tied() const;
  [[noreturn]] void fail(const std::string& key, const std::string& expected,
                         const std::string& found) const;
};

// Throws Error where the class is unknown, or says something no reader of GGUF would honour
// (another activation, another pattern of windows, a rope scaling of an unknown type).
HfConfig parse_hf_config(const std::string& file, nlohmann::json json);
// Sizes, norms, rope as "ARCH.*" metadata.
void add_hf_metadata(const HfConfig& config, TensorFile& out);
// Frequency factors of Llama 3's rope scaling [d_head / 2]; empty where it is not used.
// Source: "rope_scaling" of the Llama 3.1 configurations.
std::vector<float> llama3_rope_factors(const HfConfig& config);

// The way back: config.json of a GGUF's metadata. Throws Error where it has no such form.
nlohmann::ordered_json make_hf_config(const HfFamily& family, const TensorFile& file, Dtype dtype);

}  // namespace mt
