#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/matrix.h"
#include "flow/model.h"
#include "kernels/kv_strips.h"

namespace mt {

// Layers first .. last, which have another format than the others.
struct LayerType {
  int64_t first = 0, last = 0;
  Dtype dtype = Dtype::F32;
  bool operator==(const LayerType&) const = default;
};

// Formats of cached keys and values: F32, F16, BF16, Q8_0 or Q4_0.
struct KvTypes {
  Dtype keys = Dtype::F32;
  Dtype values = Dtype::F32;
  std::vector<LayerType> keys_of = {}, values_of = {};  // the last that names a layer counts
  Dtype keys_in(int64_t layer) const;
  Dtype values_in(int64_t layer) const;
  bool operator==(const KvTypes&) const = default;
};

// Throws Error where a format is none of the five, or has blocks that do not fit the model's heads,
// or where a layer is named that the model does not have.
void check_kv_types(const Model& model, const KvTypes& types);

// Bytes of keys and values of one position (behind the first sixteen) in one layer, and in all.
int64_t kv_bytes_a_position(const Attention& a, int64_t layer, const KvTypes& types);
int64_t kv_bytes_a_position(const Model& model, const KvTypes& types);

enum class KvPart { keys, values };

// What attention reads: the keys or values of one sequence in one layer, head by head in strips
// (kernels/kv_strips.h).
struct CachedRows {
  Dtype dtype = Dtype::F32;
  Dtype first_dtype = Dtype::F32;  // of strip 0
  int64_t d = 0;                   // channels of a head
  int64_t head_bytes = 0, strip_bytes = 0, first_bytes = 0;
  std::byte* data = nullptr;

  std::byte* strip(int64_t head, int64_t s) const {
    return data + head * head_bytes + (s == 0 ? 0 : first_bytes + (s - 1) * strip_bytes);
  }
  Dtype dtype_of(int64_t s) const { return s == 0 ? first_dtype : dtype; }
};

// The memory of a cache: keys or values of `slots` (layer, sequence) pairs. Of formats with scales
// the first sixteen positions are kept in f16: they take much of the attention whatever the text
// (attention sinks: Xiao et al. 2024, arXiv:2309.17453), so their rounding costs most.
class KvStore {
 public:
  KvStore() = default;
  // Throws Error where that is more than a machine holds.
  KvStore(KvPart part, Dtype dtype, int64_t slots, int64_t n_heads, int64_t d, int64_t capacity);
  // row: [n_heads * d]
  void write(int64_t slot, int64_t position, const float* row);
  CachedRows rows(int64_t slot) const;

 private:
  KvPart part_ = KvPart::keys;
  CachedRows layout_;
  int64_t n_heads_ = 0;
  mutable AlignedBuffer<std::byte> bytes_;
};

}  // namespace mt
