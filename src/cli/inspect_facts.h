#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/threads.h"
#include "flow/tensor_file.h"
#include "run/kv_store.h"

namespace mt::cli {

struct DtypeShare {
  std::string dtype;
  int64_t n_tensors = 0, n_weights = 0, bytes = 0;
};

struct Waste {
  std::string kind;  // "head_is_embedding", "identical_tensors", "f32_fits_16_bits", "padding"
  std::string text;  // for people
  int64_t bytes = 0;
  double relative_rms = -1;  // head_is_embedding: of the difference
};

struct MemoryNeed {
  int64_t trained = 0;  // positions that the model was trained on; 0: not said
  int64_t n_ctx = 0;
  KvTypes kv_types;
  int64_t weights = 0, kv_cache = 0, logits = 0;
  int64_t kv_cache_windowed = 0;  // where layers with a window keep only that; 0: no such layers
  int64_t total() const { return weights + kv_cache + logits; }
};

using NamedValue = std::pair<std::string, MetaValue>;

// What a file says of itself and what its bytes show; for any file that opens, whether microtome
// runs its architecture or not.
struct Facts {
  std::string path, format, kind, architecture, name;
  int64_t file_bytes = 0, tensor_bytes = 0, n_tensors = 0;
  int64_t n_weights = 0;  // of all float tensors: embedding, head, norms and biases included
  double bits_per_weight = 0;
  std::vector<NamedValue> sizes;   // "d_model" -> 576
  std::vector<DtypeShare> dtypes;  // most bytes first
  std::optional<MemoryNeed> memory;
  std::vector<NamedValue> tokenizer;
  std::string chat;                 // family, "unknown" or "" where there is no template
  std::vector<NamedValue> receipt;  // microtome.*
  std::vector<Waste> wastes;
  std::string cannot_run;  // why, or "" where microtome runs it
};

// n_ctx <= 0: 4096, or the model's own length where that is shorter. Throws Error.
Facts inspect(std::shared_ptr<const TensorFile> file, int64_t n_ctx, const KvTypes& types,
              ThreadPool& pool);

std::vector<Waste> find_waste(const TensorFile& file, ThreadPool& pool);

// A metadata value as one line: arrays as their length, long texts cut.
std::string describe(const MetaValue& value);
// "[576, 1536]"
std::string describe_shape(const std::vector<int64_t>& shape);

}  // namespace mt::cli
