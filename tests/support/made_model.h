#pragma once
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "file/gguf.h"

namespace mt::test {

// A random model of the sizes that a test needs, with the vocabulary of the golden ones.
struct MadeModel {
  std::string arch = "llama";  // llama or qwen2
  int64_t n_layers = 1, d_model = 64, n_heads = 4, d_ff = 128;
  enum class Head { none, own, rounded_embedding } head = Head::own;
  Dtype head_dtype = Dtype::F32;
  unsigned seed = 1;
  int64_t context_length = 0;  // 0: the golden model's
};

inline void make_model(const std::filesystem::path& path, const MadeModel& m) {
  TensorFile file = read_gguf(std::string(MT_TEST_DATA) + "/tiny_" + m.arch + ".gguf");
  auto u32 = [&](const std::string& key, int64_t value) {
    file.set_meta(m.arch + "." + key, {static_cast<uint32_t>(value)});
  };
  const int64_t d_head = m.d_model / m.n_heads, n_vocab = 64;
  u32("block_count", m.n_layers);
  u32("embedding_length", m.d_model);
  u32("feed_forward_length", m.d_ff);
  u32("attention.head_count", m.n_heads);
  u32("attention.head_count_kv", m.n_heads);
  u32("attention.key_length", d_head);
  u32("attention.value_length", d_head);
  if (m.arch == "llama") u32("rope.dimension_count", d_head);
  if (m.context_length > 0) u32("context_length", m.context_length);

  std::mt19937 random(m.seed);
  std::normal_distribution<float> normal;
  std::vector<TensorSource> tensors;
  auto add = [&](const std::string& name, std::vector<int64_t> shape, Dtype dtype,
                 std::vector<float> values) {
    const int64_t cols = shape.back(), rows = std::ssize(values) / cols;
    std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes(dtype, cols)));
    for (int64_t r = 0; r < rows; ++r)
      encode_row(dtype, values.data() + r * cols, nullptr,
                 bytes.data() + r * row_bytes(dtype, cols), cols);
    tensors.push_back(
        {name, std::move(shape), dtype, [bytes](const auto& write) { write(bytes); }});
  };
  auto matrix = [&](int64_t rows, int64_t cols, float gain) {
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& v : values) v = normal(random) * gain / std::sqrt(float(cols));
    return values;
  };
  auto map = [&](const std::string& name, int64_t rows, int64_t cols, float gain) {
    add(name, {rows, cols}, Dtype::F32, matrix(rows, cols, gain));
  };
  auto vector = [&](const std::string& name, int64_t n, float centre) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = centre + 0.2f * normal(random);
    add(name, {n}, Dtype::F32, std::move(values));
  };
  const auto embedding = matrix(n_vocab, m.d_model, 3);
  add("token_embd.weight", {n_vocab, m.d_model}, Dtype::F32, embedding);
  for (int64_t l = 0; l < m.n_layers; ++l) {
    const std::string b = "blk." + std::to_string(l) + ".";
    vector(b + "attn_norm.weight", m.d_model, 1);
    for (const char* part : {"q", "k", "v"}) {
      map(b + "attn_" + part + ".weight", m.d_model, m.d_model, 1.5f);
      if (m.arch == "qwen2") vector(b + "attn_" + part + ".bias", m.d_model, 0);
    }
    map(b + "attn_output.weight", m.d_model, m.d_model, 1);
    vector(b + "ffn_norm.weight", m.d_model, 1);
    map(b + "ffn_gate.weight", m.d_ff, m.d_model, 1.5f);
    map(b + "ffn_up.weight", m.d_ff, m.d_model, 1.5f);
    map(b + "ffn_down.weight", m.d_model, m.d_ff, 1);
  }
  vector("output_norm.weight", m.d_model, 1);
  if (m.head != MadeModel::Head::none)
    add("output.weight", {n_vocab, m.d_model}, m.head_dtype,
        m.head == MadeModel::Head::own ? matrix(n_vocab, m.d_model, 2) : embedding);
  write_gguf(path, file.metadata, tensors);
}

}  // namespace mt::test
