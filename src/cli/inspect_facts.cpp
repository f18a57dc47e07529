#include "cli/inspect_facts.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>
#include <type_traits>

#include "base/error.h"
#include "cli/terminal.h"
#include "model/open.h"
#include "text/chat.h"

namespace mt::cli {
namespace {

namespace fs = std::filesystem;

// The model's files: one, the parts of a split set, or the weights of a folder.
int64_t bytes_on_disk(const fs::path& path) {
  std::error_code failed;
  auto size = [&](const fs::path& p) {
    auto n = fs::file_size(p, failed);
    return failed ? int64_t{0} : static_cast<int64_t>(n);
  };
  static const std::regex part("(.*)-[0-9]{5}-of-([0-9]{5})\\.(gguf|safetensors)");
  if (fs::is_directory(path, failed)) {
    int64_t sum = 0;
    for (const auto& entry : fs::directory_iterator(path, failed))
      if (entry.path().extension() == ".safetensors") sum += size(entry.path());
    return sum;
  }
  std::smatch found;
  std::string file_name = path.filename().string();
  if (!std::regex_match(file_name, found, part)) return size(path);
  int64_t sum = 0;
  for (const auto& entry : fs::directory_iterator(
           path.parent_path().empty() ? fs::path(".") : path.parent_path(), failed)) {
    std::string other = entry.path().filename().string();
    std::smatch match;
    if (std::regex_match(other, match, part) && match[1] == found[1] && match[2] == found[2])
      sum += size(entry.path());
  }
  return sum;
}

bool is_float(Dtype dtype) {
  return info(dtype).decodes;
}

int64_t n_values(const Tensor& t) {
  int64_t n = 1;
  for (int64_t d : t.shape) n *= d;
  return n;
}

void count_tensors(const TensorFile& file, Facts& facts) {
  std::map<std::string, DtypeShare> shares;
  int64_t float_bytes = 0;
  for (const Tensor& t : file.tensors) {
    auto bytes = static_cast<int64_t>(t.data.bytes.size());
    DtypeShare& share = shares[std::string(name(t.dtype))];
    share.n_tensors += 1;
    share.n_weights += n_values(t);
    share.bytes += bytes;
    facts.tensor_bytes += bytes;
    if (is_float(t.dtype)) {
      facts.n_weights += n_values(t);
      float_bytes += bytes;
    }
  }
  facts.n_tensors = static_cast<int64_t>(file.tensors.size());
  if (facts.n_weights > 0)
    facts.bits_per_weight = 8.0 * static_cast<double>(float_bytes) / double(facts.n_weights);
  for (auto& [dtype, share] : shares) {
    share.dtype = dtype;
    facts.dtypes.push_back(share);
  }
  std::stable_sort(facts.dtypes.begin(), facts.dtypes.end(),
                   [](const DtypeShare& a, const DtypeShare& b) { return a.bytes > b.bytes; });
}

// 3, or "2..8" where layers differ.
template <class Number>
MetaValue range_of(const std::vector<Number>& values) {
  auto [low, high] = std::minmax_element(values.begin(), values.end());
  if (*low == *high) return MetaValue{Number(*low)};
  return MetaValue{
      fmt::format("{}..{}", describe(MetaValue{Number(*low)}), describe(MetaValue{Number(*high)}))};
}

void read_sizes(const TensorFile& file, Facts& facts) {
  constexpr std::pair<const char*, const char*> keys[] = {
      {"n_layers", "block_count"},          {"d_model", "embedding_length"},
      {"n_heads", "attention.head_count"},  {"n_kv_heads", "attention.head_count_kv"},
      {"d_head", "attention.key_length"},   {"d_ff", "feed_forward_length"},
      {"context_length", "context_length"}, {"sliding_window", "attention.sliding_window"},
      {"n_experts", "expert_count"},        {"rope_base", "rope.freq_base"},
  };
  for (auto [label, key] : keys) {
    std::string full = facts.architecture + "." + key;
    const MetaValue* value = file.find_meta(full);
    if (!value) continue;
    std::visit(
        [&](const auto& x) {
          using T = std::decay_t<decltype(x)>;
          if constexpr (std::is_arithmetic_v<T>)
            facts.sizes.emplace_back(label, MetaValue{x});
          else if constexpr (!std::is_same_v<T, std::string> &&
                             !std::is_same_v<T, MetaValue::Strings>) {
            if (!x.empty()) facts.sizes.emplace_back(label, range_of(x));
          }
        },
        value->value);
  }
  const Tensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding && embedding->shape.size() == 2)
    facts.sizes.emplace_back("n_vocab", MetaValue{embedding->shape[0]});
  if (embedding)
    facts.sizes.emplace_back(
        "head",
        MetaValue{std::string(file.find_tensor("output.weight") ? "own" : "the embedding")});
}

MemoryNeed memory_need(const Model& model, int64_t tensor_bytes, int64_t n_ctx,
                       const KvTypes& types) {
  MemoryNeed need{
      .trained = model.context_length, .n_ctx = n_ctx, .kv_types = types, .weights = tensor_bytes};
  bool windowed = false;
  for (const Step& step : model.steps)
    for (const Site& site : step.sites)
      if (const auto* a = std::get_if<Attention>(&site.what)) {
        const int64_t per_token = kv_bytes_a_position(*a, step.layer, types);
        need.kv_cache += per_token * n_ctx;
        windowed |= a->window > 0 && a->window < n_ctx;
        need.kv_cache_windowed += per_token * (a->window > 0 ? std::min(a->window, n_ctx) : n_ctx);
      }
  if (!windowed) need.kv_cache_windowed = 0;
  need.logits = model.n_vocab * 4;
  return need;
}

void read_tokenizer(const TensorFile& file, Facts& facts) {
  auto kind = file.get_string("tokenizer.ggml.model");
  if (!kind) return;
  facts.tokenizer.emplace_back("model", MetaValue{*kind});
  if (auto pre = file.get_string("tokenizer.ggml.pre"))
    facts.tokenizer.emplace_back("pre", MetaValue{*pre});
  auto count = [](const auto& list) { return MetaValue{static_cast<uint64_t>(list.size())}; };
  const auto* tokens = file.get_strings("tokenizer.ggml.tokens");
  if (tokens) facts.tokenizer.emplace_back("tokens", count(*tokens));
  if (const auto* merges = file.get_strings("tokenizer.ggml.merges"))
    facts.tokenizer.emplace_back("merges", count(*merges));
  for (const char* which : {"bos", "eos"}) {
    auto id = file.get_int(fmt::format("tokenizer.ggml.{}_token_id", which));
    if (!id) continue;
    std::string text = std::to_string(*id);
    if (tokens && *id >= 0 && static_cast<size_t>(*id) < tokens->size())
      text += " " + (*tokens)[static_cast<size_t>(*id)];
    facts.tokenizer.emplace_back(which, MetaValue{text});
  }
  if (auto adds = file.get_bool("tokenizer.ggml.add_bos_token"))
    facts.tokenizer.emplace_back("adds_bos", MetaValue{*adds});
}

}  // namespace

std::string describe_shape(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string describe(const MetaValue& value) {
  return std::visit(
      [](const auto& x) -> std::string {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_same_v<T, bool>)
          return x ? "true" : "false";
        else if constexpr (std::is_same_v<T, std::string>)
          return x;
        else if constexpr (std::is_floating_point_v<T>)
          return fmt::format("{:.9g}", x);
        else if constexpr (std::is_integral_v<T>)
          return std::to_string(x);
        else
          return fmt::format("{} values", x.size());
      },
      value.value);
}

Facts inspect(std::shared_ptr<const TensorFile> file, int64_t n_ctx, const KvTypes& types,
              ThreadPool& pool) {
  Facts facts;
  facts.path = file->path;
  facts.format = file->format;
  facts.kind = file->get_string("general.type").value_or("model");
  facts.architecture = file->get_string("general.architecture").value_or("");
  facts.name = file->get_string("general.name").value_or("");
  facts.file_bytes = bytes_on_disk(file->path);
  count_tensors(*file, facts);
  read_sizes(*file, facts);
  read_tokenizer(*file, facts);
  if (file->find_meta("tokenizer.chat_template")) {
    facts.chat = chat_family(*file);
    if (facts.chat.empty()) facts.chat = "unknown";
  }
  for (const auto& [key, value] : file->metadata)
    if (key.starts_with("microtome.")) facts.receipt.emplace_back(key, value);
  std::optional<Model> model;
  try {
    model = open_model(file);
  } catch (const Error& e) {
    facts.cannot_run = e.what();
    std::string prefix = file->path + ": ";
    if (facts.cannot_run.starts_with(prefix)) facts.cannot_run.erase(0, prefix.size());
  }
  if (model) {
    check_kv_types(*model, types);
    const int64_t longest = model->context_length > 0 ? model->context_length : 4096;
    facts.memory = memory_need(*model, facts.tensor_bytes,
                               n_ctx > 0 ? n_ctx : std::min<int64_t>(4096, longest), types);
  }
  facts.wastes = find_waste(*file, pool);
  return facts;
}

}  // namespace mt::cli
