#include "run/kv_store.h"

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"

namespace mt {
namespace {

// The exact path reads full panels of 32 floats: past the last row there must be memory.
constexpr size_t kPadding = 256;

Dtype first_dtype(Dtype dtype) {
  return has_kv_scales(dtype) ? Dtype::F16 : dtype;
}

int64_t head_bytes(Dtype dtype, int64_t d, int64_t positions) {
  const int64_t strips = ceil_div(positions, kStrip);
  if (strips == 0) return 0;
  return kv_strip_bytes(first_dtype(dtype), d) + (strips - 1) * kv_strip_bytes(dtype, d);
}

template <class F>
void for_attention(const Model& model, F&& fn) {
  for (const Step& step : model.steps)
    for (const Site& site : step.sites)
      if (const auto* a = std::get_if<Attention>(&site.what)) fn(*a, step.layer);
}

Dtype type_in(Dtype otherwise, const std::vector<LayerType>& of, int64_t layer) {
  for (const LayerType& t : of)
    if (t.first <= layer && layer <= t.last) otherwise = t.dtype;
  return otherwise;
}

}  // namespace

Dtype KvTypes::keys_in(int64_t layer) const {
  return type_in(keys, keys_of, layer);
}
Dtype KvTypes::values_in(int64_t layer) const {
  return type_in(values, values_of, layer);
}

void check_kv_types(const Model& model, const KvTypes& types) {
  for (const auto* of : {&types.keys_of, &types.values_of})
    for (const LayerType& t : *of)
      if (t.first < 0 || t.last < t.first || t.last >= model.n_layers)
        throw_error("a cache of layers {}-{}: expected layers in 0-{} of {}", t.first, t.last,
                    model.n_layers - 1, model.file->path);
  for_attention(model, [&](const Attention& a, int64_t layer) {
    for (const Dtype type : {types.keys_in(layer), types.values_in(layer)}) {
      if (!is_kv_type(type))
        throw_error("{}: no format of a cache; expected F32, F16, BF16, Q8_0 or Q4_0", name(type));
      if (!kv_type_fits(type, a.d_head))
        throw_error(
            "{}: a cache in {} needs heads of a multiple of {} channels, found {}; F16 takes any",
            model.file->path, name(type), kKvBlock, a.d_head);
    }
  });
}

int64_t kv_bytes_a_position(const Attention& a, int64_t layer, const KvTypes& types) {
  return a.n_kv_heads *
         (row_bytes(types.keys_in(layer), a.d_head) + row_bytes(types.values_in(layer), a.d_head));
}

int64_t kv_bytes_a_position(const Model& model, const KvTypes& types) {
  int64_t bytes = 0;
  for_attention(model, [&](const Attention& a, int64_t layer) {
    bytes += kv_bytes_a_position(a, layer, types);
  });
  return bytes;
}

KvStore::KvStore(KvPart part, Dtype dtype, int64_t slots, int64_t n_heads, int64_t d,
                 int64_t capacity)
    : part_(part), n_heads_(n_heads) {
  layout_ = {.dtype = dtype,
             .first_dtype = first_dtype(dtype),
             .d = d,
             .head_bytes = head_bytes(dtype, d, capacity),
             .strip_bytes = kv_strip_bytes(dtype, d),
             .first_bytes = kv_strip_bytes(first_dtype(dtype), d)};
  const auto bytes = checked_mul(static_cast<uint64_t>(layout_.head_bytes),
                                 static_cast<uint64_t>(slots * n_heads));
  if (!bytes || *bytes > (uint64_t{1} << 42))
    throw_error("a cache of {} positions is too large", capacity);
  bytes_ = AlignedBuffer<std::byte>(*bytes + kPadding);
}

void KvStore::write(int64_t slot, int64_t position, const float* row) {
  const CachedRows r = rows(slot);
  const int64_t s = position / kStrip;
  const auto store = part_ == KvPart::keys ? store_key : store_value;
  for (int64_t h = 0; h < n_heads_; ++h)
    store(r.dtype_of(s), r.d, row + h * r.d, r.strip(h, s), position % kStrip);
}

CachedRows KvStore::rows(int64_t slot) const {
  CachedRows r = layout_;
  r.data = bytes_.data() + slot * n_heads_ * r.head_bytes;
  return r;
}

}  // namespace mt
