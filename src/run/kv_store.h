#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/matrix.h"
#include "base/threads.h"
#include "flow/model.h"
#include "kernels/kv_strips.h"

namespace mt {

// Layers first .. last, which have another format than the others.
struct LayerType {
  int64_t first = 0, last = 0;
  Dtype dtype = Dtype::F32;
  bool before_rope = false;  // keys in Q4_1: rounded before RoPE
  bool operator==(const LayerType&) const = default;
};

// Formats of cached keys and values: F32, F16, BF16, Q8_0 or Q4_0; of keys Q4_1 too, by channel,
// rounded behind RoPE or before it.
struct KvTypes {
  Dtype keys = Dtype::F32;
  Dtype values = Dtype::F32;
  std::vector<LayerType> keys_of = {}, values_of = {};  // the last that names a layer counts
  bool before_rope = false;                             // of `keys`
  Dtype keys_in(int64_t layer) const;
  bool before_rope_in(int64_t layer) const;
  Dtype values_in(int64_t layer) const;
  bool operator==(const KvTypes&) const = default;
};

// Throws Error where a format is none of these, or has blocks that do not fit the model's heads,
// or where a layer is named that the model does not have, or where others than keys by channel are
// to be rounded before RoPE.
void check_kv_types(const Model& model, const KvTypes& types);

// Bytes of keys and values of one position in one layer, and in all; without those of the first
// ones, and with formats by channel of the last ones, that are kept in F16 (KvStore).
int64_t kv_bytes_a_position(const Attention& a, int64_t layer, const KvTypes& types);
int64_t kv_bytes_a_position(const Model& model, const KvTypes& types);

enum class KvPart { keys, values };

// Strips [begin, end) of a head that lie in one format behind one another. By channel: a block, or
// several, or strip `half` of one.
struct KvPiece {
  Dtype dtype;
  int64_t begin, end;
  const std::byte* data;
  int64_t half = 0;
  KeyTurns turns = {};  // of blocks rounded before RoPE
};

// What attention reads: the keys or values of one sequence in one layer, head by head in strips
// (kernels/kv_strips.h). A block by channel is rounded when its last position is there; a query
// that comes before that reads it in F16, whether or not it was rounded meanwhile.
struct CachedRows {
  Dtype dtype = Dtype::F32;
  Dtype first_dtype = Dtype::F32;  // of the first strips
  int64_t first_strips = 1;
  int64_t d = 0;                                             // channels of a head
  int64_t head_bytes = 0, strip_bytes = 0, first_bytes = 0;  // first_bytes: of one strip
  std::byte* data = nullptr;
  // By channel: the latest two blocks in F16, of every head four strips, that of strip s at s % 4.
  std::byte* latest = nullptr;
  KeyTurns turns = {};  // where blocks are rounded before RoPE

  // Behind the first strips by channel only even ones: blocks.
  std::byte* strip(int64_t head, int64_t s) const {
    return data + head * head_bytes + std::min(s, first_strips) * first_bytes +
           std::max<int64_t>(0, s - first_strips) * strip_bytes;
  }
  std::byte* latest_strip(int64_t head, int64_t s) const {
    return latest + (head * 4 + s % 4) * kv_strip_bytes(Dtype::F16, d);
  }
  // The piece at strip s, up to strip `end`, as a query at `position` reads it.
  KvPiece piece(int64_t head, int64_t s, int64_t end, int64_t position) const;
  // Strip s alone.
  KvPiece strip_at(int64_t head, int64_t s, int64_t position) const;
};

// A strip in f32, as load_keys does; keys turned to their positions.
void load_keys(const KvPiece& strip, int64_t d, float* y);

// The memory of a cache: keys or values of `slots` (layer, sequence) pairs. Of formats with scales
// the first sixteen positions are kept in f16 (by channel 32, a block): they take much of the
// attention whatever the text (attention sinks: Xiao et al. 2024, arXiv:2309.17453), so their
// rounding costs most.
class KvStore {
 public:
  KvStore() = default;
  // Throws Error where that is more than a machine holds. turns: blocks by channel are rounded
  // before RoPE; good for `capacity` positions and as long as the store is.
  KvStore(KvPart part, Dtype dtype, int64_t slots, int64_t n_heads, int64_t d, int64_t capacity,
          const KeyTurns& turns = {});
  // Writes positions first .. first + rows.rows of a slot, those before them written earlier; what
  // was behind is forgotten. rows: [n, n_heads * d], keys turned by RoPE. By channel the result
  // does not depend on how the rows came, one by one or many, nor on what was taken back, unless
  // that was more than the latest two blocks held: then the positions of the block that is begun
  // anew are those that its rounded form gives.
  void append(ThreadPool& pool, int64_t slot, int64_t first, ConstMatrix rows);
  CachedRows rows(int64_t slot) const;

 private:
  void append_by_channel(ThreadPool& pool, int64_t slot, int64_t first, ConstMatrix rows);

  KvPart part_ = KvPart::keys;
  CachedRows layout_;
  int64_t n_heads_ = 0;
  mutable AlignedBuffer<std::byte> bytes_, latest_;
  std::vector<int64_t> held_;  // the block in either place of a slot's latest ones
};

}  // namespace mt
