#include "file/hf_config.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "file/json.h"
#include "file/names.h"

namespace mt {
namespace {

using Json = nlohmann::json;

// Rope settings: under "rope_parameters" (by kind of layer where layers differ) in newer folders,
// under "rope_scaling" beside "rope_theta" in older ones.
const Json* rope_settings(const HfConfig& config) {
  for (auto pointer : {"/rope_parameters/full_attention", "/rope_parameters", "/rope_scaling"}) {
    const Json* found = find_json(config.json, pointer);
    if (!found || found->is_null()) continue;
    if (!found->is_object()) config.fail(pointer + 1, "an object", found->dump().substr(0, 40));
    return found;
  }
  return nullptr;
}

double number_or(const HfConfig& config, const Json& object, const char* key, double fallback) {
  const Json* v = find_json(object, std::string("/") + key);
  if (!v) return fallback;
  if (!v->is_number()) config.fail(key, "a number", v->dump().substr(0, 40));
  return v->get<double>();
}

std::string rope_type(const HfConfig& config) {
  const Json* rope = rope_settings(config);
  if (!rope) return "default";
  for (auto key : {"/rope_type", "/type"})
    if (const Json* type = find_json(*rope, key); type && !type->is_null()) {
      if (!type->is_string()) config.fail("rope_type", "a string", type->dump().substr(0, 40));
      return type->get<std::string>();
    }
  return "default";
}

std::optional<double> rope_theta(const HfConfig& config) {
  if (auto theta = config.get_number("rope_theta")) return theta;
  if (const Json* rope = rope_settings(config); rope && rope->contains("rope_theta"))
    return number_or(config, *rope, "rope_theta", 0);
  return config.family->rope_theta;
}

std::optional<double> rope_theta_of_windows(const HfConfig& config) {
  if (auto theta = config.get_number("rope_local_base_freq")) return theta;
  if (const Json* rope = find_json(config.json, "/rope_parameters/sliding_attention"))
    return number_or(config, *rope, "rope_theta", 10000);
  return config.family->rope_theta_window;
}

void check_windows(const HfConfig& config) {
  const int64_t every = config.family->window_every;
  if (every == 0) return;
  for (auto key : {"sliding_window_pattern", "_sliding_window_pattern"})
    if (auto pattern = config.get_count(key); pattern && *pattern != every)
      config.fail(key, std::to_string(every), std::to_string(*pattern));
  if (const Json* types = find_json(config.json, "/layer_types"); types && types->is_array())
    for (size_t l = 0; l < types->size(); ++l) {
      const char* expected =
          (static_cast<int64_t>(l) + 1) % every ? "sliding_attention" : "full_attention";
      if ((*types)[l] != expected)
        config.fail(fmt::format("layer_types[{}]", l), expected, (*types)[l].dump().substr(0, 40));
    }
  if (auto scale = config.get_number("query_pre_attn_scalar");
      scale && *scale != static_cast<double>(config.d_head()))
    config.fail("query_pre_attn_scalar", fmt::format("head_dim, {}", config.d_head()),
                fmt::format("{}", *scale));
  if (config.get_number("attn_logit_softcapping"))
    config.fail("attn_logit_softcapping", "null", "a number");
}

void add_rope(const HfConfig& config, const std::string& prefix, TensorFile& out) {
  if (!config.family->causal) return;  // learned positions
  const std::string type = rope_type(config);
  const Json* rope = rope_settings(config);
  auto f32 = [&](const char* key, double value) {
    out.set_meta(prefix + key, {static_cast<float>(value)});
  };
  if (type == "linear" || type == "yarn") {
    out.set_meta(prefix + "rope.scaling.type", {type});
    f32("rope.scaling.factor", number_or(config, *rope, "factor", 1));
    if (type == "yarn") {
      const double original = number_or(config, *rope, "original_max_position_embeddings",
                                        config.get_number("max_position_embeddings").value_or(0));
      if (!(original >= 1 && original <= UINT32_MAX))
        config.fail("original_max_position_embeddings", "a u32", fmt::format("{}", original));
      out.set_meta(prefix + "rope.scaling.original_context_length",
                   {static_cast<uint32_t>(original)});
    }
  } else if (type != "default" && type != "llama3") {
    config.fail("rope_scaling", "default, linear, yarn or llama3", "'" + printable(type) + "'");
  }
  if (auto theta = rope_theta(config)) f32("rope.freq_base", *theta);
  if (auto theta = rope_theta_of_windows(config)) f32("rope.freq_base_swa", *theta);
}

}  // namespace

void HfConfig::fail(const std::string& key, const std::string& expected,
                    const std::string& found) const {
  throw_error("{}: config: '{}': expected {}, found {}", file, key, expected, found);
}

std::optional<int64_t> HfConfig::get_count(const std::string& key) const {
  auto v = json.find(key);
  if (v == json.end() || v->is_null()) return std::nullopt;
  if (!v->is_number_unsigned() || v->get<uint64_t>() < 1 || v->get<uint64_t>() > UINT32_MAX)
    fail(key, "a whole number of 1 to 2^32 - 1", v->dump().substr(0, 40));
  return v->get<int64_t>();
}

std::optional<double> HfConfig::get_number(const std::string& key) const {
  auto v = json.find(key);
  if (v == json.end() || v->is_null()) return std::nullopt;
  if (!v->is_number()) fail(key, "a number", v->dump().substr(0, 40));
  return v->get<double>();
}

// A number that may be absent in the file because the family has a default for it.
static int64_t count_of(const HfConfig& config, const char* key) {
  if (auto n = config.get_count(key)) return *n;
  for (const auto& number : config.family->numbers)
    if (number.config == key && number.fallback) return static_cast<int64_t>(*number.fallback);
  config.fail(key, "a whole number", "none");
}

int64_t HfConfig::n_heads() const {
  return count_of(*this, "num_attention_heads");
}
int64_t HfConfig::n_kv_heads() const {
  if (auto n = get_count("num_key_value_heads")) return *n;
  for (const auto& number : family->numbers)
    if (number.config == "num_key_value_heads" && number.fallback)
      return static_cast<int64_t>(*number.fallback);
  return n_heads();
}
int64_t HfConfig::d_head() const {
  if (auto n = get_count("head_dim")) return *n;
  for (const auto& number : family->numbers)
    if (number.config == "head_dim" && number.fallback)
      return static_cast<int64_t>(*number.fallback);
  return count_of(*this, "hidden_size") / n_heads();
}
bool HfConfig::tied() const {
  auto v = json.find("tie_word_embeddings");
  if (v == json.end() || v->is_null()) return family->tied;
  if (!v->is_boolean()) fail("tie_word_embeddings", "a boolean", v->dump().substr(0, 40));
  return v->get<bool>();
}

HfConfig parse_hf_config(const std::string& file, Json json) {
  HfConfig config;
  config.file = file;
  config.json = std::move(json);
  if (!config.json.is_object()) config.fail("", "an object", config.json.type_name());
  const Json* hf_class = find_json(config.json, "/architectures/0");
  std::string name = hf_class && hf_class->is_string() ? hf_class->get<std::string>() : "none";
  config.family = hf_family_of_class(name);
  if (!config.family) config.fail("architectures", "one of " + hf_classes(), printable(name));
  for (auto key : {std::string(config.family->activation_key), std::string("hidden_act")}) {
    const Json* activation = find_json(config.json, "/" + key);
    if (!activation) continue;
    if (*activation != std::string(config.family->activation))
      config.fail(key, std::string(config.family->activation), activation->dump().substr(0, 40));
    break;
  }
  if (find_json(config.json, "/quantization_config"))
    config.fail("quantization_config", "none (plain weights)", "one");
  return config;
}

void add_hf_metadata(const HfConfig& config, TensorFile& out) {
  const HfFamily& family = *config.family;
  const std::string prefix = std::string(family.gguf) + ".";
  check_windows(config);
  for (const auto& n : family.numbers) {
    const std::string key(n.config);
    if (n.is_float) {
      auto value = config.get_number(key);
      if (!value) value = n.fallback;
      if (!value && n.required) config.fail(key, "a number", "none");
      if (value) out.set_meta(prefix + std::string(n.gguf), {static_cast<float>(*value)});
    } else {
      auto value = config.get_count(key);
      if (!value && n.fallback) value = static_cast<int64_t>(*n.fallback);
      if (!value && n.required) config.fail(key, "a whole number", "none");
      if (value) out.set_meta(prefix + std::string(n.gguf), {static_cast<uint32_t>(*value)});
    }
  }
  add_rope(config, prefix, out);
  if (family.writes_rope_dims) {
    out.set_meta(prefix + "vocab_size", {static_cast<uint32_t>(count_of(config, "vocab_size"))});
    out.set_meta(prefix + "rope.dimension_count", {static_cast<uint32_t>(config.d_head())});
  }
  if (!family.causal) {
    out.set_meta(prefix + "attention.causal", {false});
    out.set_meta("tokenizer.ggml.token_type_count",
                 {static_cast<uint32_t>(config.get_count("type_vocab_size").value_or(2))});
  }
}

std::vector<float> llama3_rope_factors(const HfConfig& config) {
  if (rope_type(config) != "llama3") return {};
  const Json& rope = *rope_settings(config);
  const double base = rope_theta(config).value_or(10000);
  const double factor = number_or(config, rope, "factor", 8);
  const double low = number_or(config, rope, "low_freq_factor", 1);
  const double high = number_or(config, rope, "high_freq_factor", 4);
  const double original = number_or(config, rope, "original_max_position_embeddings", 8192);
  if (!(base > 0 && factor > 0 && low > 0 && high > low && original > 0))
    config.fail("rope_scaling", "positive factors, high_freq_factor above low_freq_factor",
                rope.dump().substr(0, 120));
  // Long waves are slowed by the factor, short ones are left, in between is a smooth passage.
  std::vector<float> factors;
  const int64_t d = config.d_head();
  if (d > 65536) config.fail("head_dim", "at most 65536", std::to_string(d));
  for (int64_t i = 0; i < d / 2; ++i) {
    const double wave =
        2 * std::numbers::pi * std::pow(base, 2 * static_cast<double>(i) / static_cast<double>(d));
    if (wave < original / high) {
      factors.push_back(1);
    } else if (wave > original / low) {
      factors.push_back(static_cast<float>(factor));
    } else {
      const double smooth = (original / wave - low) / (high - low);
      factors.push_back(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
    }
  }
  return factors;
}

}  // namespace mt
