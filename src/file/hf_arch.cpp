#include "file/hf_arch.h"

#include <array>

namespace mt {
namespace {

constexpr HfTensorName kLlamaTensors[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
    {"model.layers.{}.input_layernorm", "blk.{}.attn_norm"},
    {"model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", HfChange::permute_q},
    {"model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", HfChange::permute_k},
    {"model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"},
    {"model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
    {"model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"},
    {"model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"},
    {"model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"},
    {"model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"},
};
// Qwen's GGUF files keep the halves of a head apart, as the folder does.
constexpr HfTensorName kQwenTensors[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
    {"model.layers.{}.input_layernorm", "blk.{}.attn_norm"},
    {"model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"},
    {"model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"},
    {"model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"},
    {"model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
    {"model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"},
    {"model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"},
    {"model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"},
    {"model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"},
    {"model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"},
    {"model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"},
};
constexpr HfTensorName kGemmaTensors[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm", HfChange::add_one},
    {"lm_head", "output"},
    {"model.layers.{}.input_layernorm", "blk.{}.attn_norm", HfChange::add_one},
    {"model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"},
    {"model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"},
    {"model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"},
    {"model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
    {"model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", HfChange::add_one},
    {"model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", HfChange::add_one},
    {"model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", HfChange::add_one},
    {"model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm", HfChange::add_one},
    {"model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", HfChange::add_one},
    {"model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"},
    {"model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"},
    {"model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"},
};
constexpr HfTensorName kBertTensors[] = {
    {"embeddings.word_embeddings", "token_embd"},
    {"embeddings.position_embeddings", "position_embd"},
    {"embeddings.token_type_embeddings", "token_types"},
    {"embeddings.LayerNorm", "token_embd_norm"},
    {"encoder.layer.{}.attention.self.query", "blk.{}.attn_q"},
    {"encoder.layer.{}.attention.self.key", "blk.{}.attn_k"},
    {"encoder.layer.{}.attention.self.value", "blk.{}.attn_v"},
    {"encoder.layer.{}.attention.output.dense", "blk.{}.attn_output"},
    {"encoder.layer.{}.attention.output.LayerNorm", "blk.{}.attn_output_norm"},
    {"encoder.layer.{}.intermediate.dense", "blk.{}.ffn_up"},
    {"encoder.layer.{}.output.dense", "blk.{}.ffn_down"},
    {"encoder.layer.{}.output.LayerNorm", "blk.{}.layer_output_norm"},
};

constexpr HfNumber kLlamaNumbers[] = {
    {.config = "num_hidden_layers", .gguf = "block_count", .required = true},
    {.config = "max_position_embeddings", .gguf = "context_length", .required = true},
    {.config = "hidden_size", .gguf = "embedding_length", .required = true},
    {.config = "intermediate_size", .gguf = "feed_forward_length", .required = true},
    {.config = "num_attention_heads", .gguf = "attention.head_count", .required = true},
    {.config = "num_key_value_heads", .gguf = "attention.head_count_kv"},
    {.config = "rms_norm_eps",
     .gguf = "attention.layer_norm_rms_epsilon",
     .is_float = true,
     .required = true},
    {.config = "head_dim", .gguf = "attention.key_length"},
    {.config = "head_dim", .gguf = "attention.value_length"},
};
constexpr HfNumber kGemmaNumbers[] = {
    {.config = "num_hidden_layers", .gguf = "block_count", .required = true},
    {.config = "max_position_embeddings", .gguf = "context_length", .fallback = 131072},
    {.config = "hidden_size", .gguf = "embedding_length", .required = true},
    {.config = "intermediate_size", .gguf = "feed_forward_length", .required = true},
    {.config = "num_attention_heads", .gguf = "attention.head_count", .fallback = 8},
    {.config = "num_key_value_heads", .gguf = "attention.head_count_kv", .fallback = 4},
    {.config = "rms_norm_eps",
     .gguf = "attention.layer_norm_rms_epsilon",
     .is_float = true,
     .fallback = 1e-6},
    {.config = "head_dim", .gguf = "attention.key_length", .fallback = 256},
    {.config = "head_dim", .gguf = "attention.value_length", .fallback = 256},
    {.config = "sliding_window", .gguf = "attention.sliding_window", .fallback = 4096},
    {.config = "final_logit_softcapping", .gguf = "final_logit_softcapping", .is_float = true},
};
constexpr HfNumber kBertNumbers[] = {
    {.config = "num_hidden_layers", .gguf = "block_count", .required = true},
    {.config = "max_position_embeddings", .gguf = "context_length", .required = true},
    {.config = "hidden_size", .gguf = "embedding_length", .required = true},
    {.config = "intermediate_size", .gguf = "feed_forward_length", .required = true},
    {.config = "num_attention_heads", .gguf = "attention.head_count", .required = true},
    {.config = "layer_norm_eps",
     .gguf = "attention.layer_norm_epsilon",
     .is_float = true,
     .fallback = 1e-12},
};

constexpr std::string_view kLlamaClasses[] = {"LlamaForCausalLM", "MistralForCausalLM"};
constexpr std::string_view kQwen2Classes[] = {"Qwen2ForCausalLM"};
constexpr std::string_view kQwen3Classes[] = {"Qwen3ForCausalLM"};
constexpr std::string_view kGemmaClasses[] = {"Gemma3ForCausalLM"};
constexpr std::string_view kBertClasses[] = {"BertModel", "BertForMaskedLM"};

constexpr HfFamily kFamilies[] = {
    {.classes = kLlamaClasses,
     .model_type = "llama",
     .gguf = "llama",
     .activation_key = "hidden_act",
     .activation = "silu",
     .tensors = kLlamaTensors,
     .numbers = kLlamaNumbers,
     .writes_rope_dims = true},
    {.classes = kQwen2Classes,
     .model_type = "qwen2",
     .gguf = "qwen2",
     .activation_key = "hidden_act",
     .activation = "silu",
     .tensors = kQwenTensors,
     .numbers = kLlamaNumbers},
    {.classes = kQwen3Classes,
     .model_type = "qwen3",
     .gguf = "qwen3",
     .activation_key = "hidden_act",
     .activation = "silu",
     .tensors = kQwenTensors,
     .numbers = kLlamaNumbers},
    {.classes = kGemmaClasses,
     .model_type = "gemma3_text",
     .gguf = "gemma3",
     .activation_key = "hidden_activation",
     .activation = "gelu_pytorch_tanh",
     .tensors = kGemmaTensors,
     .numbers = kGemmaNumbers,
     .tied = true,
     .window_every = 6,
     .rope_theta = 1000000.0,
     .rope_theta_window = 10000.0},
    {.classes = kBertClasses,
     .model_type = "bert",
     .gguf = "bert",
     .activation_key = "hidden_act",
     .activation = "gelu",
     .tensors = kBertTensors,
     .numbers = kBertNumbers,
     .tied = true,
     .causal = false},
};

// Spellings of older BERT checkpoints.
struct Spelling {
  std::string_view old_end, new_end;
};
constexpr Spelling kBertSpellings[] = {{".gamma", ".weight"}, {".beta", ".bias"}};

// The pattern's text with the layer in the place of "{}", where `name` fits `pattern`.
std::optional<std::string> rename(std::string_view name, std::string_view pattern,
                                  std::string_view target) {
  size_t hole = pattern.find("{}");
  if (hole == std::string_view::npos) {
    if (name != pattern) return std::nullopt;
    return std::string(target);
  }
  std::string_view before = pattern.substr(0, hole), after = pattern.substr(hole + 2);
  if (name.size() <= before.size() + after.size() || !name.starts_with(before) ||
      !name.ends_with(after))
    return std::nullopt;
  std::string_view layer = name.substr(before.size(), name.size() - before.size() - after.size());
  if (layer.find_first_not_of("0123456789") != std::string_view::npos || layer.size() > 5)
    return std::nullopt;
  std::string renamed(target);
  return renamed.replace(target.find("{}"), 2, layer);
}

std::optional<HfName> translate(const HfFamily& family, std::string_view name, bool to_gguf) {
  size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  std::string_view stem = name.substr(0, dot), end = name.substr(dot);
  if (end != ".weight" && end != ".bias") return std::nullopt;
  for (size_t i = 0; i < family.tensors.size(); ++i) {
    const HfTensorName& t = family.tensors[i];
    if (auto found = rename(stem, to_gguf ? t.hf : t.gguf, to_gguf ? t.gguf : t.hf))
      return HfName{*found + std::string(end), t.change, i};
  }
  return std::nullopt;
}

}  // namespace

std::span<const HfFamily> hf_families() {
  return kFamilies;
}

const HfFamily* hf_family_of_class(std::string_view hf_class) {
  for (const auto& f : kFamilies)
    for (auto c : f.classes)
      if (c == hf_class) return &f;
  return nullptr;
}

const HfFamily* hf_family_of_gguf(std::string_view architecture) {
  for (const auto& f : kFamilies)
    if (f.gguf == architecture) return &f;
  return nullptr;
}

std::string hf_classes() {
  std::string list;
  for (const auto& f : kFamilies)
    for (auto c : f.classes) list += (list.empty() ? "" : ", ") + std::string(c);
  return list;
}

std::optional<HfName> gguf_name(const HfFamily& family, std::string_view hf) {
  std::string name(hf);
  if (!family.causal) {
    if (name.starts_with("bert.")) name.erase(0, 5);
    for (const auto& s : kBertSpellings)
      if (name.ends_with(s.old_end))
        name.replace(name.size() - s.old_end.size(), s.old_end.size(), s.new_end);
  }
  return translate(family, name, true);
}

std::optional<HfName> hf_name(const HfFamily& family, std::string_view gguf) {
  return translate(family, gguf, false);
}

bool is_ignored_tensor(const HfFamily& family, std::string_view hf) {
  constexpr std::string_view kEnds[] = {".rotary_emb.inv_freq", ".attention.masked_bias",
                                        "embeddings.position_ids"};
  constexpr std::string_view kEncoderStarts[] = {"pooler.", "bert.pooler.", "cls."};
  for (auto end : kEnds)
    if (hf.ends_with(end)) return true;
  if (!family.causal)
    for (auto start : kEncoderStarts)
      if (hf.starts_with(start)) return true;
  return false;
}

}  // namespace mt
