#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/files.h"
#include "file/hf.h"
#include "file/hf_config.h"
#include "file/hf_tokenizer.h"
#include "file/names.h"
#include "file/safetensors.h"

namespace mt {
namespace {

[[noreturn]] void fail(const TensorFile& file, const std::string& what, const std::string& expected,
                       const std::string& found) {
  throw_error("{}: as a Hugging Face folder: {}: expected {}, found {}", file.path, what, expected,
              found);
}

// Row r of a head's halves comes from this row of its interleaved pairs.
int64_t row_in_pairs(int64_t r, int64_t d_head) {
  const int64_t head = r / d_head, i = r % d_head;
  return head * d_head + 2 * (i % (d_head / 2)) + i / (d_head / 2);
}

void put_values(const std::string& place, std::span<const float> values, Dtype dtype,
                std::vector<std::byte>& out) {
  if (dtype == Dtype::F32) {
    out.resize(values.size_bytes());
    std::memcpy(out.data(), values.data(), out.size());
    return;
  }
  out.resize(values.size() * sizeof(uint16_t));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = dtype == Dtype::F16 ? float_to_half(values[i]) : float_to_bf16(values[i]);
    if (dtype == Dtype::F16 && std::isinf(half_to_float(bits)) && std::isfinite(values[i]))
      throw_error("{}: expected values of at most 65504 for F16, found {}", place, values[i]);
    std::memcpy(out.data() + i * sizeof bits, &bits, sizeof bits);
  }
}

// The tensor's values in the folder's order and dtype, a row at a time; a vector is one row of
// which the values move.
TensorSource source_of(const TensorFile& file, const Tensor& t, const HfName& name, Dtype dtype,
                       int64_t n_heads) {
  const bool vector = t.shape.size() == 1;
  const int64_t moved = t.shape[0];  // rows, or a vector's values
  const int64_t d_head = moved / n_heads;
  const bool permutes = name.change == HfChange::permute_q || name.change == HfChange::permute_k;
  if (permutes && (moved % n_heads != 0 || d_head % 2 != 0))
    fail(file, t.name, fmt::format("an even number of rows for each of {} heads", n_heads),
         fmt::format("{} rows", moved));
  const Dtype to = vector ? Dtype::F32 : dtype;
  const float plus = name.change == HfChange::add_one ? -1.0f : 0.0f;
  const std::string place = file.path + ": tensor '" + printable(t.name) + "'";
  auto produce = [=, &t](const std::function<void(std::span<const std::byte>)>& write) {
    const int64_t cols = t.shape.back();
    std::vector<float> row(static_cast<size_t>(cols)), ordered;
    std::vector<std::byte> bytes;
    for (int64_t r = 0; r < (vector ? 1 : moved); ++r) {
      const int64_t from = permutes && !vector ? row_in_pairs(r, d_head) : r;
      decode_row(t.dtype, t.data.bytes.data() + from * row_bytes(t.dtype, cols), row.data(), cols);
      if (permutes && vector) {
        ordered = row;
        for (int64_t i = 0; i < cols; ++i)
          row[static_cast<size_t>(i)] = ordered[static_cast<size_t>(row_in_pairs(i, d_head))];
      }
      if (plus != 0)
        for (float& v : row) v += plus;
      put_values(place, row, to, bytes);
      write(bytes);
    }
  };
  return {name.name, t.shape, to, produce};
}

void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& json) {
  AtomicFile out(path);
  out.write(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  out.commit();
}

}  // namespace

void write_hf_folder(const std::filesystem::path& folder, const TensorFile& file, Dtype dtype) {
  if (dtype != Dtype::F32 && dtype != Dtype::F16 && dtype != Dtype::BF16)
    fail(file, "dtype", "F32, F16 or BF16", std::string(name(dtype)));
  const std::string architecture = file.need_string("general.architecture");
  const HfFamily* family = hf_family_of_gguf(architecture);
  if (!family || !family->causal)
    fail(file, "general.architecture", "llama, qwen2, qwen3 or gemma3",
         "'" + printable(architecture) + "'");
  const std::string prefix = architecture + ".";
  const int64_t n_heads = file.need_int(prefix + "attention.head_count");
  const int64_t n_kv_heads = file.get_int(prefix + "attention.head_count_kv").value_or(n_heads);
  if (n_heads < 1 || n_kv_heads < 1)
    fail(file, prefix + "attention.head_count", "at least 1 head", "fewer");
  std::vector<TensorSource> tensors;
  for (const Tensor& t : file.tensors) {
    if (t.name == "rope_freqs.weight") continue;  // follows from the configuration
    auto name = hf_name(*family, t.name);
    if (!name || t.shape.size() > 2)
      fail(file, "tensor '" + printable(t.name) + "'", "a vector or matrix of " + architecture,
           "another");
    tensors.push_back(source_of(file, t, *name, dtype,
                                name->change == HfChange::permute_k ? n_kv_heads : n_heads));
  }
  nlohmann::ordered_json config = make_hf_config(*family, file, dtype);
  const bool made = std::filesystem::create_directories(folder);
  try {
    write_hf_tokenizer(folder, file, config);
    write_safetensors(folder / "model.safetensors", {{"format", "pt"}}, tensors);
    write_json(folder / "config.json", config);
  } catch (...) {
    std::error_code ignored;
    if (made) std::filesystem::remove_all(folder, ignored);
    throw;
  }
}

}  // namespace mt
