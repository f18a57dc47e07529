#include "file/hf.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "file/hf_config.h"
#include "file/hf_tokenizer.h"
#include "file/json.h"
#include "file/names.h"
#include "file/safetensors.h"

namespace mt {
namespace {

SharedBytes own(std::shared_ptr<std::vector<std::byte>> bytes) {
  std::span<const std::byte> view(*bytes);
  return {std::move(bytes), view};
}

// Row r of a head's interleaved pairs comes from this row of its halves.
int64_t row_in_halves(int64_t r, int64_t d_head) {
  const int64_t head = r / d_head, i = r % d_head;
  return head * d_head + (i % 2) * (d_head / 2) + i / 2;
}

class Import {
 public:
  explicit Import(const std::filesystem::path& folder)
      : folder_(folder),
        config_(parse_hf_config((folder / "config.json").string(),
                                read_json_file(folder / "config.json"))) {
    out_.path = folder.string();
    out_.format = "safetensors";
  }

  TensorFile run() {
    read_tensors();
    add_general();
    add_hf_metadata(config_, out_);
    add_pooling();
    const Tensor* embedding = out_.find_tensor("token_embd.weight");
    if (!embedding || embedding->shape.size() != 2) fail("tensors", "an embedding matrix", "none");
    if (auto n = config_.get_count("vocab_size"); n && *n != embedding->shape[0])
      fail("token_embd.weight", fmt::format("{} rows (vocab_size)", *n),
           std::to_string(embedding->shape[0]));
    add_hf_tokenizer(folder_, config_, embedding->shape[0], out_);
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(const std::string& place, const std::string& expected,
                         const std::string& found) const {
    throw_error("{}: {}: expected {}, found {}", folder_.string(), place, expected, found);
  }

  void read_tensors() {
    const auto index = folder_ / "model.safetensors.index.json";
    TensorFile source =
        read_safetensors(std::filesystem::exists(index) ? index : folder_ / "model.safetensors");
    struct Placed {
      std::pair<int64_t, size_t> order;
      Tensor tensor;
    };
    std::vector<Placed> placed;
    bool has_head = false;
    for (Tensor& t : source.tensors) {
      if (is_ignored_tensor(*config_.family, t.name)) continue;
      auto name = gguf_name(*config_.family, t.name);
      if (!name)
        fail("tensor '" + printable(t.name) + "'",
             "a tensor of " + std::string(config_.family->classes[0]), "an unknown one");
      if (name->name == "output.weight") {
        if (config_.tied()) continue;  // some folders hold a copy of the embedding
        has_head = true;
      }
      Tensor changed = change(std::move(t), *name);
      const int64_t layer =
          changed.name.starts_with("blk.") ? std::stoll(changed.name.substr(4)) : -1;
      placed.push_back({{layer, name->order}, std::move(changed)});
    }
    if (config_.family->causal && !config_.tied() && !has_head)
      fail("tensors", "lm_head.weight (tie_word_embeddings is false)", "none");
    std::stable_sort(placed.begin(), placed.end(),
                     [](const Placed& a, const Placed& b) { return a.order < b.order; });
    if (auto factors = llama3_rope_factors(config_); !factors.empty()) {
      auto bytes = std::make_shared<std::vector<std::byte>>(factors.size() * sizeof(float));
      std::memcpy(bytes->data(), factors.data(), bytes->size());
      out_.tensors.push_back({"rope_freqs.weight",
                              {static_cast<int64_t>(factors.size())},
                              Dtype::F32,
                              own(std::move(bytes))});
    }
    for (auto& p : placed) out_.tensors.push_back(std::move(p.tensor));
    std::vector<std::string_view> names;
    for (const Tensor& t : out_.tensors) names.push_back(t.name);
    if (auto twice = find_duplicate(std::move(names)))  // "bert.x" beside "x"
      fail("tensors", "every tensor once", "'" + printable(*twice) + "' twice");
  }

  // A matrix stays mapped unless its rows move; readers of GGUF take vectors, and BERT's tables of
  // positions and types, only as F32.
  Tensor change(Tensor t, const HfName& name) const {
    const std::string place = "tensor '" + printable(t.name) + "'";
    if (t.dtype != Dtype::F32 && t.dtype != Dtype::F16 && t.dtype != Dtype::BF16)
      fail(place, "F32, F16 or BF16", std::string(info(t.dtype).name));
    if (t.shape.empty() || t.shape.size() > 2 || t.data.bytes.empty())
      fail(place, "a vector or a matrix",
           fmt::format("{} dimensions, {} bytes", t.shape.size(), t.data.bytes.size()));
    t.name = name.name;
    if (t.shape.size() == 1 || name.name == "position_embd.weight" ||
        name.name == "token_types.weight")
      to_f32(t, name.change == HfChange::add_one ? 1.0f : 0.0f);
    if (name.change == HfChange::permute_q) permute(t, config_.n_heads(), place);
    if (name.change == HfChange::permute_k) permute(t, config_.n_kv_heads(), place);
    return t;
  }

  static void to_f32(Tensor& t, float plus) {
    if (t.dtype == Dtype::F32 && plus == 0) return;
    int64_t n = 1;
    for (int64_t d : t.shape) n *= d;
    auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(n) * sizeof(float));
    auto* values = reinterpret_cast<float*>(bytes->data());
    decode_row(t.dtype, t.data.bytes.data(), values, n);
    if (plus != 0)
      for (int64_t i = 0; i < n; ++i) values[i] += plus;
    t.dtype = Dtype::F32;
    t.data = own(std::move(bytes));
  }

  void permute(Tensor& t, int64_t n_heads, const std::string& place) const {
    const int64_t rows = t.shape[0], d_head = rows / n_heads;
    if (rows % n_heads != 0 || d_head % 2 != 0)
      fail(place, fmt::format("an even number of rows for each of {} heads", n_heads),
           fmt::format("{} rows", rows));
    const size_t row = t.data.bytes.size() / static_cast<size_t>(rows);
    auto bytes = std::make_shared<std::vector<std::byte>>(t.data.bytes.size());
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(bytes->data() + static_cast<size_t>(r) * row,
                  t.data.bytes.data() + static_cast<size_t>(row_in_halves(r, d_head)) * row, row);
    t.data = own(std::move(bytes));
  }

  void add_general() {
    out_.set_meta("general.architecture", {std::string(config_.family->gguf)});
    out_.set_meta("general.type", {std::string("model")});
    std::string name = std::filesystem::absolute(folder_ / "x").parent_path().filename().string();
    if (auto given = find_json(config_.json, "/_name_or_path"); given && given->is_string())
      if (auto last = std::filesystem::path(given->get<std::string>()).filename().string();
          !last.empty() && last != "." && last != "..")
        name = last;
    out_.set_meta("general.name", {name});
    // llama.cpp's numbers of file types: all F32, mostly F16, mostly BF16.
    uint32_t type = 0;
    for (const Tensor& t : out_.tensors)
      if (t.shape.size() == 2 && t.dtype != Dtype::F32) type = t.dtype == Dtype::F16 ? 1 : 32;
    out_.set_meta("general.file_type", {type});
  }

  // sentence-transformers keeps the pooling in a folder that modules.json names.
  void add_pooling() {
    if (config_.family->causal || !std::filesystem::exists(folder_ / "modules.json")) return;
    nlohmann::json modules = read_json_file(folder_ / "modules.json");
    for (const auto& module : modules) {
      const auto* type = find_json(module, "/type");
      const auto* path = find_json(module, "/path");
      if (!type || !type->is_string() || !type->get<std::string>().ends_with("Pooling")) continue;
      if (!path || !path->is_string()) continue;
      const std::string sub = path->get<std::string>();
      if (sub.find('/') != std::string::npos || sub == "..")
        fail("modules.json", "a folder inside this one", "'" + printable(sub) + "'");
      nlohmann::json pooling = read_json_file(folder_ / sub / "config.json");
      struct Mode {
        const char* key;
        uint32_t number;  // llama.cpp's
      };
      for (auto [key, number] :
           {Mode{"pooling_mode_mean_tokens", 1}, Mode{"pooling_mode_cls_token", 2},
            Mode{"pooling_mode_lasttoken", 3}})
        if (auto on = find_json(pooling, std::string("/") + key); on && *on == true) {
          out_.set_meta("bert.pooling_type", {number});
          return;
        }
      fail("modules.json", "a pooling of mean, cls or last token", "another");
    }
  }

  std::filesystem::path folder_;
  HfConfig config_;
  TensorFile out_;
};

}  // namespace

TensorFile read_hf_folder(const std::filesystem::path& folder) {
  return Import(folder).run();
}

}  // namespace mt
