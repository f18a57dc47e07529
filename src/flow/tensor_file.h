#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "dtype/dtype.h"

namespace mt {

// One metadata value, as GGUF types it. An array keeps its element type.
struct MetaValue {
  using Strings = std::vector<std::string>;
  std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool, std::string,
               uint64_t, int64_t, double, std::vector<uint8_t>, std::vector<int8_t>,
               std::vector<uint16_t>, std::vector<int16_t>, std::vector<uint32_t>,
               std::vector<int32_t>, std::vector<float>, std::vector<bool>, Strings,
               std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>>
      value;
};

// Bytes with an owner: a mapped file, or a buffer of our own.
struct SharedBytes {
  std::shared_ptr<const void> owner;
  std::span<const std::byte> bytes;
};

struct Tensor {
  std::string name;
  std::vector<int64_t>
      shape;  // row-major, slowest first: [out, in] (reversed at the GGUF boundary)
  Dtype dtype = Dtype::F32;
  SharedBytes data;
};

// The bytes of a model file and what it says of itself; knows no architecture.
struct TensorFile {
  std::string path;                                         // for messages
  std::string format;                                       // "gguf" or "safetensors"
  std::vector<std::pair<std::string, MetaValue>> metadata;  // in file order, keys unique
  std::vector<Tensor> tensors;                              // in file order, names unique

  const MetaValue* find_meta(std::string_view key) const;
  const Tensor* find_tensor(std::string_view name) const;
  void set_meta(std::string_view key, MetaValue value);  // replaces or appends

  // Typed reads. The optional forms give nothing where the key is absent; all throw Error naming
  // file, key, expected and found where the type does not convert. Any integer type serves for
  // an integer in range; any number for a double.
  std::optional<int64_t> get_int(std::string_view key) const;
  std::optional<double> get_float(std::string_view key) const;
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string> get_string(std::string_view key) const;
  const std::vector<std::string>* get_strings(std::string_view key) const;
  std::optional<std::vector<double>> get_numbers(std::string_view key) const;  // any numeric array
  int64_t need_int(std::string_view key) const;
  std::string need_string(std::string_view key) const;
};

}  // namespace mt
