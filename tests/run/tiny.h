#pragma once
#include <cmath>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "model/open.h"
#include "run/forward.h"
#include "support/folder.h"
#include "support/made_model.h"

namespace mt {

inline const std::vector<std::string> kTinyModels{"tiny_llama", "tiny_llama_b", "tiny_qwen2",
                                                  "tiny_qwen3", "tiny_gemma3"};

inline Model open_tiny(const std::string& name) {
  return open_model(std::string(MT_TEST_DATA) + "/" + name + ".gguf");
}

// The model with every linear map rounded to a format.
inline Model in_format(Model model, Dtype dtype) {
  for (LinearMap* map : linear_maps(model)) {
    Weight& w = map->weight;
    const int64_t bytes = row_bytes(dtype, w.cols);
    auto rounded = std::make_shared<std::vector<std::byte>>(size_t(w.rows * bytes));
    std::vector<float> row(static_cast<size_t>(w.cols));
    for (int64_t r = 0; r < w.rows; ++r) {
      decode_row(w.dtype, w.row(r), row.data(), w.cols);
      encode_row(dtype, row.data(), nullptr, rounded->data() + r * bytes, w.cols);
    }
    w.data = {rounded, *rounded};
    w.dtype = dtype;
  }
  return model;
}

// Wide enough for formats with blocks of 256.
inline Model made_wide() {
  const test::TemporaryFolder folder;
  test::make_model(folder.path() / "wide.gguf",
                   {.n_layers = 2, .d_model = 256, .n_heads = 8, .d_ff = 512});
  return open_model(folder.path() / "wide.gguf");
}

template <class T>
std::vector<T> read_golden(const std::string& file) {
  std::ifstream in(std::string(MT_TEST_DATA) + "/" + file, std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(in)), {});
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy_n(bytes.data(), values.size() * sizeof(T), reinterpret_cast<char*>(values.data()));
  return values;
}

inline MatrixBuffer all_logits(const Runtime& rt, const Model& model,
                               std::span<const int32_t> tokens,
                               const ForwardOptions& options = {}) {
  KvCache cache(model, 1, std::ssize(tokens));
  Chunk chunk{0, tokens};
  MatrixBuffer hidden = forward(rt, model, cache, {&chunk, 1}, options);
  MatrixBuffer out(hidden.rows(), model.n_vocab);
  logits(rt, model, options.path, hidden, out);
  return out;
}

// Root of the mean square difference, as a share of that of `exact`.
inline double relative_rms(std::span<const float> values, std::span<const float> exact) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += std::pow(double(values[i]) - double(exact[i]), 2);
    size += std::pow(double(exact[i]), 2);
  }
  return std::sqrt(difference / size);
}
inline double relative_rms(const MatrixBuffer& values, const MatrixBuffer& exact) {
  auto all = [](const MatrixBuffer& m) {
    return std::span<const float>(m.data(), static_cast<size_t>(m.rows() * m.cols()));
  };
  return relative_rms(all(values), all(exact));
}

}  // namespace mt
