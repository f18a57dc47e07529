#include "file/hf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "file/bytes.h"
#include "file/hf_tokenizer.h"
#include "file/json.h"
#include "file/open.h"
#include "file/safetensors.h"

namespace mt {
namespace {

using namespace test;
using nlohmann::json;

constexpr int kVocab = 270;

// Values that tell their place: row * 1000 + column, small enough for BF16 where `dtype` is it.
struct Made {
  std::string name;
  std::vector<int64_t> shape;
  Dtype dtype = Dtype::F32;
};
float value_at(const Made& t, int64_t i) {
  if (t.dtype == Dtype::F32) return static_cast<float>(i) * 0.25f - 3.0f;
  return static_cast<float>(i % 120);
}

void write_tensors(const std::filesystem::path& path, const std::vector<Made>& tensors) {
  std::vector<TensorSource> sources;
  for (const Made& t : tensors)
    sources.push_back({t.name, t.shape, t.dtype, [&t](const auto& write) {
                         int64_t n = 1;
                         for (int64_t d : t.shape) n *= d;
                         for (int64_t i = 0; i < n; ++i) {
                           const float v = value_at(t, i);
                           const uint16_t half =
                               t.dtype == Dtype::F16 ? float_to_half(v) : float_to_bf16(v);
                           if (t.dtype == Dtype::F32)
                             write(std::as_bytes(std::span(&v, 1)));
                           else
                             write(std::as_bytes(std::span(&half, 1)));
                         }
                       }});
  write_safetensors(path, {{"format", "pt"}}, sources);
}

// The family's config.json with d_model 16, 4 heads of 4, 2 KV heads, d_ff 32, 2 layers.
json small_config(const std::string& hf_class) {
  json c = {
      {"architectures", {hf_class}},    {"hidden_size", 16},        {"intermediate_size", 32},
      {"num_hidden_layers", 2},         {"num_attention_heads", 4}, {"num_key_value_heads", 2},
      {"max_position_embeddings", 64},  {"rms_norm_eps", 1e-5},     {"rope_theta", 50000.0},
      {"tie_word_embeddings", true},    {"hidden_act", "silu"},     {"vocab_size", kVocab},
      {"_name_or_path", "someone/tiny"}};
  if (hf_class == "Gemma3ForCausalLM") {
    c.erase("hidden_act");
    c["hidden_activation"] = "gelu_pytorch_tanh";
    c["head_dim"] = 4;
    c["sliding_window"] = 32;
    c["rope_local_base_freq"] = 10000.0;
    c["query_pre_attn_scalar"] = 4;
  }
  if (hf_class == "Qwen3ForCausalLM") c["head_dim"] = 4;
  return c;
}

std::vector<Made> small_tensors(const std::string& hf_class, Dtype dtype) {
  std::vector<Made> t = {{"model.embed_tokens.weight", {kVocab, 16}, dtype},
                         {"model.norm.weight", {16}, dtype}};
  const bool gemma = hf_class == "Gemma3ForCausalLM";
  for (int l = 0; l < 2; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    t.push_back({p + "self_attn.q_proj.weight", {16, 16}, dtype});
    t.push_back({p + "self_attn.k_proj.weight", {8, 16}, dtype});
    t.push_back({p + "self_attn.v_proj.weight", {8, 16}, dtype});
    t.push_back({p + "self_attn.o_proj.weight", {16, 16}, dtype});
    t.push_back({p + "mlp.gate_proj.weight", {32, 16}, dtype});
    t.push_back({p + "mlp.up_proj.weight", {32, 16}, dtype});
    t.push_back({p + "mlp.down_proj.weight", {16, 32}, dtype});
    t.push_back({p + "input_layernorm.weight", {16}, dtype});
    t.push_back({p + "post_attention_layernorm.weight", {16}, dtype});
    if (gemma) {
      t.push_back({p + "pre_feedforward_layernorm.weight", {16}, dtype});
      t.push_back({p + "post_feedforward_layernorm.weight", {16}, dtype});
    }
    if (gemma || hf_class == "Qwen3ForCausalLM") {
      t.push_back({p + "self_attn.q_norm.weight", {4}, dtype});
      t.push_back({p + "self_attn.k_norm.weight", {4}, dtype});
    }
    if (hf_class == "Qwen2ForCausalLM" || hf_class == "LlamaForCausalLM") {
      t.push_back({p + "self_attn.q_proj.bias", {16}, dtype});
      t.push_back({p + "self_attn.k_proj.bias", {8}, dtype});
      t.push_back({p + "self_attn.v_proj.bias", {8}, dtype});
    }
  }
  return t;
}

// 256 bytes' stand-ins, two merges and a few special tokens; ids from 262 have no token.
json byte_level_tokenizer(const std::string& pre) {
  json vocab = json::object();
  for (int i = 0; i < 256; ++i) vocab["x" + std::to_string(i)] = i;
  vocab["ab"] = 256;
  vocab["ab\xC4\xA0"] = 257;
  return {{"version", "1.0"},
          {"added_tokens",
           {{{"id", 258}, {"content", "<s>"}, {"special", true}, {"normalized", false}},
            {{"id", 259}, {"content", "</s>"}, {"special", true}, {"normalized", false}},
            {{"id", 260}, {"content", "<|tool|>"}, {"special", false}, {"normalized", false}},
            {{"id", 261}, {"content", "<think>"}, {"special", false}, {"normalized", false}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", json::parse(find_pre_tokenizer(pre)->json)},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", json::array({json::array({"a", "b"}), json::array({"ab", " "})})}}}};
}

json sentence_piece_tokenizer() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int i = 0; i < 256; ++i) vocab[fmt::format("<0x{:02X}>", i)] = 3 + i;
  // Merges in another order than the ids.
  vocab["\xE2\x96\x81"] = 259;
  vocab["a"] = 260;
  vocab["b"] = 261;
  vocab["ab"] = 262;
  vocab
      ["\xE2\x96\x81"
       "ab"] = 263;
  vocab["aa"] = 264;
  json special = [](int id, const char* text) {
    return json{{"id", id}, {"content", text}, {"special", true}};
  }(1, "<s>");
  return {{"added_tokens",
           {{{"id", 0}, {"content", "<unk>"}, {"special", true}},
            special,
            {{"id", 2}, {"content", "</s>"}, {"special", true}},
            {{"id", 265}, {"content", "\xE2\x96\x81\xE2\x96\x81"}, {"special", false}}}},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers", {{{"type", "Prepend"}, {"prepend", "\xE2\x96\x81"}}}}}},
          {"pre_tokenizer", nullptr},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}}}},
          {"model",
           {{"type", "BPE"},
            {"byte_fallback", true},
            {"unk_token", "<unk>"},
            {"vocab", vocab},
            {"merges", {"a a", "a b", "\xE2\x96\x81 ab"}}}}};
}

void write_folder(const TempFolder& folder, const std::string& hf_class, Dtype dtype,
                  const json& tokenizer) {
  write_all(folder / "config.json", small_config(hf_class).dump());
  write_tensors(folder / "model.safetensors", small_tensors(hf_class, dtype));
  write_all(folder / "tokenizer.json", tokenizer.dump());
  write_all(folder / "tokenizer_config.json", json{{"bos_token", "<s>"},
                                                   {"eos_token", {{"content", "</s>"}}},
                                                   {"chat_template", "{{ messages }}"}}
                                                  .dump());
}

std::vector<float> floats(const TensorFile& f, const std::string& name) {
  const Tensor* t = f.find_tensor(name);
  if (!t) throw std::runtime_error("no " + name);
  int64_t n = 1;
  for (int64_t d : t->shape) n *= d;
  std::vector<float> out(static_cast<size_t>(n));
  decode_row(t->dtype, t->data.bytes.data(), out.data(), n);
  return out;
}

TEST(HfFolder, LlamaIsInGgufTerms) {
  TempFolder folder;
  write_folder(folder, "LlamaForCausalLM", Dtype::F32, byte_level_tokenizer("smollm"));
  TensorFile f = open_model_file(folder.path());
  EXPECT_EQ(f.need_string("general.architecture"), "llama");
  EXPECT_EQ(f.need_string("general.name"), "tiny");
  EXPECT_EQ(f.need_int("llama.block_count"), 2);
  EXPECT_EQ(f.need_int("llama.context_length"), 64);
  EXPECT_EQ(f.need_int("llama.embedding_length"), 16);
  EXPECT_EQ(f.need_int("llama.feed_forward_length"), 32);
  EXPECT_EQ(f.need_int("llama.attention.head_count"), 4);
  EXPECT_EQ(f.need_int("llama.attention.head_count_kv"), 2);
  EXPECT_EQ(f.need_int("llama.rope.dimension_count"), 4);
  EXPECT_EQ(f.need_int("llama.vocab_size"), kVocab);
  EXPECT_FLOAT_EQ(float(*f.get_float("llama.rope.freq_base")), 50000);
  EXPECT_FLOAT_EQ(float(*f.get_float("llama.attention.layer_norm_rms_epsilon")), 1e-5f);
  EXPECT_EQ(f.tensors.size(), 2u + 2 * 12);
  EXPECT_EQ(f.tensors[0].name, "token_embd.weight");
  // A head's rows 0 1 | 2 3 (two halves) come as 0 2 1 3 (pairs).
  std::vector<float> q = floats(f, "blk.1.attn_q.weight"), b = floats(f, "blk.1.attn_k.bias");
  const Made whole{"", {}};
  const int64_t from[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
  for (int64_t r = 0; r < 16; ++r)
    for (int64_t c = 0; c < 16; ++c)
      ASSERT_EQ(q[size_t(r * 16 + c)], value_at(whole, from[r] * 16 + c)) << r << " " << c;
  for (int64_t r = 0; r < 8; ++r) ASSERT_EQ(b[size_t(r)], value_at(whole, from[r]));
  EXPECT_EQ(floats(f, "blk.0.attn_v.weight")[5], value_at(whole, 5));
  EXPECT_EQ(floats(f, "blk.0.ffn_norm.weight")[5], value_at(whole, 5));
}

TEST(HfFolder, GemmaStoresGainsPlusOneAndVectorsAreF32) {
  TempFolder folder;
  write_folder(folder, "Gemma3ForCausalLM", Dtype::BF16, sentence_piece_tokenizer());
  TensorFile f = read_hf_folder(folder.path());
  EXPECT_EQ(f.find_tensor("blk.0.post_ffw_norm.weight")->dtype, Dtype::F32);
  EXPECT_EQ(floats(f, "blk.0.post_ffw_norm.weight")[5], 6);
  EXPECT_EQ(floats(f, "blk.1.attn_q_norm.weight")[3], 4);
  EXPECT_EQ(floats(f, "output_norm.weight")[0], 1);
  EXPECT_EQ(f.find_tensor("blk.0.attn_q.weight")->dtype, Dtype::BF16);
  EXPECT_EQ(floats(f, "blk.0.attn_q.weight")[17], 17);  // rows stay
  EXPECT_EQ(f.need_int("gemma3.attention.sliding_window"), 32);
  EXPECT_EQ(f.need_int("gemma3.attention.key_length"), 4);
  EXPECT_EQ(f.get_float("gemma3.rope.freq_base_swa"), 10000);
  EXPECT_EQ(f.need_int("general.file_type"), 32);
}

TEST(HfFolder, ByteLevelTokenizer) {
  for (const std::string pre : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    TempFolder folder;
    write_folder(folder, "Qwen2ForCausalLM", Dtype::F16, byte_level_tokenizer(pre));
    TensorFile f = read_hf_folder(folder.path());
    EXPECT_EQ(f.need_string("tokenizer.ggml.model"), "gpt2");
    EXPECT_EQ(f.need_string("tokenizer.ggml.pre"), pre);
    const auto& tokens = *f.get_strings("tokenizer.ggml.tokens");
    ASSERT_EQ(tokens.size(), size_t(kVocab));
    EXPECT_EQ(tokens[256], "ab");
    EXPECT_EQ(tokens[262], "[PAD262]");
    const auto types = *f.get_numbers("tokenizer.ggml.token_type");
    EXPECT_EQ((std::vector<double>(types.begin() + 256, types.begin() + 263)),
              (std::vector<double>{1, 1, 3, 3, 3, 4, 5}));
    EXPECT_EQ(*f.get_strings("tokenizer.ggml.merges"),
              (std::vector<std::string>{"a b", "ab \xC4\xA0"}));
    EXPECT_EQ(f.need_int("tokenizer.ggml.bos_token_id"), 258);
    EXPECT_EQ(f.need_int("tokenizer.ggml.eos_token_id"), 259);
    EXPECT_EQ(f.need_string("tokenizer.chat_template"), "{{ messages }}");
    EXPECT_FALSE(f.get_bool("tokenizer.ggml.add_bos_token"));
  }
}

TEST(HfFolder, SentencePieceTokenizerScoresByMergeOrder) {
  TempFolder folder;
  write_folder(folder, "MistralForCausalLM", Dtype::F16, sentence_piece_tokenizer());
  TensorFile f = read_hf_folder(folder.path());
  EXPECT_EQ(f.need_string("tokenizer.ggml.model"), "llama");
  const auto scores = *f.get_numbers("tokenizer.ggml.scores");
  const auto types = *f.get_numbers("tokenizer.ggml.token_type");
  const auto& tokens = *f.get_strings("tokenizer.ggml.tokens");
  EXPECT_EQ(scores[264], 0);   // aa: the first merge
  EXPECT_EQ(scores[262], -1);  // ab
  EXPECT_EQ(scores[263], -2);
  EXPECT_EQ(scores[259], -3);  // what no merge gives, by id
  EXPECT_EQ(scores[260], -4);
  EXPECT_EQ(types[0], 2);
  EXPECT_EQ(types[1], 3);
  EXPECT_EQ(types[3], 6);
  EXPECT_EQ(types[265], 4);
  EXPECT_EQ(tokens[265], "  ");
  EXPECT_EQ(types[266], 5);
  EXPECT_EQ(f.get_bool("tokenizer.ggml.add_bos_token"), true);
  EXPECT_EQ(f.get_bool("tokenizer.ggml.add_space_prefix"), true);
}

void expect_same(const TensorFile& a, const TensorFile& b) {
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const Tensor& t : a.tensors) {
    const Tensor* other = b.find_tensor(t.name);
    ASSERT_TRUE(other) << t.name;
    EXPECT_EQ(t.shape, other->shape);
    EXPECT_EQ(floats(a, t.name), floats(b, t.name)) << t.name;
  }
  for (const auto& [key, value] : a.metadata) {
    if (key == "general.file_type") continue;
    const MetaValue* other = b.find_meta(key);
    ASSERT_TRUE(other) << key;
    EXPECT_TRUE(other->value == value.value) << key;
  }
}

TEST(HfFolder, RoundTripKeepsWeightsAndMetadata) {
  for (const std::string hf_class :
       {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM"})
    for (const json& tokenizer : {byte_level_tokenizer("qwen2"), sentence_piece_tokenizer()}) {
      SCOPED_TRACE(hf_class);
      TempFolder folder;
      write_folder(folder, hf_class, Dtype::F32, tokenizer);
      TensorFile first = read_hf_folder(folder.path());
      write_hf_folder(folder / "again", first, Dtype::F32);
      TensorFile second = read_hf_folder(folder / "again");
      expect_same(first, second);
      // The template of pairs that comes with a BOS says so much more.
      EXPECT_EQ(second.metadata.size() - first.metadata.size(),
                second.find_meta("tokenizer.ggml.add_sep_token") ? 1u : 0u);
      write_hf_folder(folder / "bf16", first, Dtype::BF16);
      EXPECT_EQ(read_hf_folder(folder / "bf16").find_tensor("blk.0.attn_q.weight")->dtype,
                Dtype::BF16);
    }
}

TEST(HfFolder, Llama3RopeScalingBecomesFactorsAndComesBack) {
  TempFolder folder;
  write_folder(folder, "LlamaForCausalLM", Dtype::F32, byte_level_tokenizer("llama-bpe"));
  json config = small_config("LlamaForCausalLM");
  config["head_dim"] = 4;
  config["rope_theta"] = 500000.0;
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 32.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  write_all(folder / "config.json", config.dump());
  TensorFile f = read_hf_folder(folder.path());
  // Waves of 2 pi and of 2 pi sqrt(500000) = 4443 positions: below 8192 / 4, and between.
  std::vector<float> factors = floats(f, "rope_freqs.weight");
  ASSERT_EQ(factors.size(), 2u);
  EXPECT_EQ(factors[0], 1);
  const double smooth = (8192 / (2 * M_PI * std::sqrt(500000.0)) - 1) / 3;
  EXPECT_NEAR(factors[1], 1 / ((1 - smooth) / 32 + smooth), 1e-5);
  EXPECT_LT(factors[1], 32);
  config["rope_theta"] = 5e6;  // a wave of 14050 positions, beyond 8192 / 1: the whole factor
  write_all(folder / "config.json", config.dump());
  TensorFile far = read_hf_folder(folder.path());
  far.set_meta("general.name", {std::string("tin\xff")});  // not UTF-8
  write_hf_folder(folder / "back", far, Dtype::F32);
  EXPECT_EQ(floats(read_hf_folder(folder / "back"), "rope_freqs.weight"),
            (std::vector<float>{1, 32}));
  f.tensors.erase(f.tensors.begin());  // factors that no setting gives
  Tensor other = f.tensors[0];
  other.name = "rope_freqs.weight";
  other.shape = {2};
  float odd[2] = {3, 5};
  other.data = {nullptr, std::as_bytes(std::span(odd))};
  f.tensors.push_back(other);
  EXPECT_NE(
      error_of([&] { write_hf_folder(folder / "out", f, Dtype::F32); }).find("rope_freqs.weight"),
      std::string::npos);
}

TEST(HfFolder, MistakesSayWhatIsWrong) {
  TempFolder folder;
  const json tokenizer = byte_level_tokenizer("gpt-2");
  auto error = [&](auto change) {
    json config = small_config("LlamaForCausalLM"), tok = tokenizer;
    std::vector<Made> tensors = small_tensors("LlamaForCausalLM", Dtype::F32);
    change(config, tok, tensors);
    write_all(folder / "config.json", config.dump());
    write_all(folder / "tokenizer.json", tok.dump());
    write_tensors(folder / "model.safetensors", tensors);
    return error_of([&] { read_hf_folder(folder.path()); });
  };
  using C = json&;
  using T = std::vector<Made>&;
  auto has = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos ? testing::AssertionSuccess()
                                                : testing::AssertionFailure() << text;
  };
  EXPECT_EQ(error([](C, C, T) {}), "");
  EXPECT_TRUE(has(error([](C c, C, T) { c["architectures"] = {"MambaForCausalLM"}; }),
                  "expected one of LlamaForCausalLM"));
  EXPECT_TRUE(has(error([](C c, C, T) { c.erase("hidden_size"); }), "'hidden_size': expected"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["num_hidden_layers"] = -1; }), "found -1"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["num_attention_heads"] = 0; }), "found 0"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["num_attention_heads"] = 3; }), "each of 3 heads"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["hidden_act"] = "relu"; }), "expected silu"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["vocab_size"] = 1000000000; }), "1000000000 rows"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["tie_word_embeddings"] = false; }), "lm_head.weight"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["rope_scaling"] = {{"type", "dynamic"}}; }), "dynamic"));
  EXPECT_TRUE(has(error([](C c, C, T) { c["rope_scaling"] = -1; }), "expected an object"));
  EXPECT_TRUE(has(error([](C c, C, T) {
                    c["rope_scaling"] = {{"type", 5}};
                  }),
                  "expected a string"));
  EXPECT_TRUE(has(error([](C, C t, T) { t["model"]["vocab"]["new"] = 5; }), "5 twice"));
  EXPECT_TRUE(has(error([](C, C t, T) { t["model"]["vocab"]["new"] = 5000; }), "an id below 270"));
  EXPECT_TRUE(has(error([](C, C t, T) { t["model"]["type"] = "Unigram"; }), "'Unigram'"));
  EXPECT_TRUE(has(error([](C, C t, T) { t["model"]["merges"] = {"ab"}; }), "two parts"));
  EXPECT_TRUE(has(error([](C, C t, T) { t["pre_tokenizer"]["add_prefix_space"] = true; }),
                  "words and bytes with a leading space"));
  EXPECT_TRUE(has(error([](C, C, T t) {
                    t.push_back({"model.other.weight", {2}});
                  }),
                  "'model.other.weight': expected a tensor of LlamaForCausalLM"));
  EXPECT_EQ(error([](C, C, T) {}), "");
  std::filesystem::remove(folder / "tokenizer.json");
  EXPECT_TRUE(has(error_of([&] { read_hf_folder(folder.path()); }), "found neither"));
  EXPECT_TRUE(has(error_of([&] { open_model_file(folder / "none"); }), "none: cannot be opened"));
}

}  // namespace
}  // namespace mt
