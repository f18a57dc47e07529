#pragma once
#include <fstream>
#include <string>
#include <vector>

#include "model/open.h"
#include "run/forward.h"

namespace mt {

inline const std::vector<std::string> kTinyModels{"tiny_llama", "tiny_llama_b", "tiny_qwen2",
                                                  "tiny_qwen3", "tiny_gemma3"};

inline Model open_tiny(const std::string& name) {
  return open_model(std::string(MT_TEST_DATA) + "/" + name + ".gguf");
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

}  // namespace mt
