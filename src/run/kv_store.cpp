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

int64_t first_strips(Dtype dtype) {
  return by_channel(dtype) ? kChannelBlock / kStrip : 1;
}

int64_t head_bytes(Dtype dtype, int64_t d, int64_t positions) {
  const int64_t first = first_strips(dtype);
  const int64_t strips = ceil_div(ceil_div(positions, kStrip), first) * first;
  if (strips == 0) return 0;
  return first * kv_strip_bytes(first_dtype(dtype), d) +
         (strips - first) * kv_strip_bytes(dtype, d);
}

template <class F>
void for_attention(const Model& model, F&& fn) {
  for (const Step& step : model.steps)
    for (const Site& site : step.sites)
      if (const auto* a = std::get_if<Attention>(&site.what)) fn(*a, step.layer);
}

LayerType type_in(LayerType otherwise, const std::vector<LayerType>& of, int64_t layer) {
  for (const LayerType& t : of)
    if (t.first <= layer && layer <= t.last) otherwise = t;
  return otherwise;
}

}  // namespace

Dtype KvTypes::keys_in(int64_t layer) const {
  return type_in({.dtype = keys}, keys_of, layer).dtype;
}
bool KvTypes::before_rope_in(int64_t layer) const {
  return type_in({.before_rope = before_rope}, keys_of, layer).before_rope;
}
Dtype KvTypes::values_in(int64_t layer) const {
  return type_in({.dtype = values}, values_of, layer).dtype;
}

void check_kv_types(const Model& model, const KvTypes& types) {
  for (const auto* of : {&types.keys_of, &types.values_of})
    for (const LayerType& t : *of)
      if (t.first < 0 || t.last < t.first || t.last >= model.n_layers)
        throw_error("a cache of layers {}-{}: expected layers in 0-{} of {}", t.first, t.last,
                    model.n_layers - 1, model.file->path);
  for_attention(model, [&](const Attention& a, int64_t layer) {
    if (by_channel(types.values_in(layer)))
      throw_error(
          "values in {}: it is a format of cached keys only; expected F32, F16, BF16, Q8_0 or Q4_0",
          name(types.values_in(layer)));
    if (types.before_rope_in(layer) && !by_channel(types.keys_in(layer)))
      throw_error("keys in {} before RoPE: only those by channel, in Q4_1, are rounded before it",
                  name(types.keys_in(layer)));
    for (const Dtype type : {types.keys_in(layer), types.values_in(layer)}) {
      if (!is_key_type(type))
        throw_error("{}: no format of a cache; expected F32, F16, BF16, Q8_0, Q4_0 or (keys) Q4_1",
                    name(type));
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
                 int64_t capacity, const KeyTurns& turns)
    : part_(part), n_heads_(n_heads) {
  layout_ = {.dtype = dtype,
             .first_dtype = first_dtype(dtype),
             .first_strips = first_strips(dtype),
             .d = d,
             .head_bytes = head_bytes(dtype, d, capacity),
             .strip_bytes = kv_strip_bytes(dtype, d),
             .first_bytes = kv_strip_bytes(first_dtype(dtype), d),
             .turns = turns};
  const auto bytes = checked_mul(static_cast<uint64_t>(layout_.head_bytes),
                                 static_cast<uint64_t>(slots * n_heads));
  if (!bytes || *bytes > (uint64_t{1} << 42))
    throw_error("a cache of {} positions is too large", capacity);
  bytes_ = AlignedBuffer<std::byte>(*bytes + kPadding);
  assert(!turns || by_channel(dtype));
  if (!by_channel(dtype)) return;
  assert(part == KvPart::keys);
  latest_ = AlignedBuffer<std::byte>(
      static_cast<size_t>(slots * n_heads * 4 * kv_strip_bytes(Dtype::F16, d)));
  held_.assign(static_cast<size_t>(2 * slots), -1);
}

void KvStore::append(ThreadPool& pool, int64_t slot, int64_t first, ConstMatrix rows) {
  if (by_channel(layout_.dtype)) return append_by_channel(pool, slot, first, rows);
  const CachedRows r = this->rows(slot);
  const auto store = part_ == KvPart::keys ? store_key : store_value;
  pool.parallel_for(ceil_div(rows.rows, kStrip), [&](int64_t piece, int) {
    for (int64_t t = piece * kStrip; t < std::min(rows.rows, (piece + 1) * kStrip); ++t) {
      const int64_t s = (first + t) / kStrip;
      for (int64_t h = 0; h < n_heads_; ++h)
        store(s < r.first_strips ? r.first_dtype : r.dtype, r.d, rows.row(t) + h * r.d,
              r.strip(h, s), (first + t) % kStrip);
    }
  });
}

void KvStore::append_by_channel(ThreadPool& pool, int64_t slot, int64_t first, ConstMatrix rows) {
  if (rows.rows == 0) return;
  constexpr int64_t kStrips = kChannelBlock / kStrip;
  const CachedRows r = this->rows(slot);
  const int64_t half = kv_strip_bytes(Dtype::F16, r.d), end = first + rows.rows;
  const int64_t begin = first / kChannelBlock, last = (end - 1) / kChannelBlock;
  int64_t* held = held_.data() + 2 * slot;
  if (begin > 0 && first % kChannelBlock > 0 && held[begin % 2] != begin) {
    // More was taken back than is kept.
    std::vector<float> y(static_cast<size_t>(kStrip * r.d)), row(static_cast<size_t>(r.d));
    for (int64_t h = 0; h < n_heads_; ++h)
      for (int64_t s = 0; s < kStrips; ++s) {
        load_keys({r.dtype, begin * kStrips + s, begin * kStrips + s + 1,
                   r.strip(h, begin * kStrips), s, r.turns},
                  r.d, y.data());
        for (int64_t j = 0; j < kStrip; ++j) {
          for (int64_t i = 0; i < r.d; ++i) row[size_t(i)] = y[size_t(i * kStrip + j)];
          store_key(Dtype::F16, r.d, row.data(), r.latest_strip(h, begin * kStrips + s), j);
        }
      }
  }
  auto write = [&](int64_t b) {
    // Blocks between the first and the last two are complete, and their F16 form is not kept.
    const bool kept = b == begin || b >= last - 1;
    AlignedBuffer<std::byte> passing(static_cast<size_t>(b == 0 || kept ? 0 : kStrips * half));
    const int64_t from = std::max(first, b * kChannelBlock);
    const int64_t to = std::min(end, (b + 1) * kChannelBlock);
    for (int64_t h = 0; h < n_heads_; ++h) {
      std::byte* strips = b == 0 ? r.strip(h, 0)
                          : kept ? r.latest_strip(h, b * kStrips)
                                 : passing.data();
      for (int64_t p = from; p < to; ++p)
        store_key(Dtype::F16, r.d, rows.row(p - first) + h * r.d,
                  strips + p % kChannelBlock / kStrip * half, p % kStrip);
      if (b == 0 || to < (b + 1) * kChannelBlock) continue;
      if (r.turns)
        round_turned_key_block(r.d, strips, r.turns, b, r.strip(h, b * kStrips));
      else
        round_key_block(r.d, strips, r.strip(h, b * kStrips));
    }
  };
  // The first block's place among the latest two is another's afterwards.
  write(begin);
  pool.parallel_for(last - begin, [&](int64_t i, int) { write(begin + 1 + i); });
  for (int64_t b : {begin, last - 1, last})
    if (b >= begin) held[b % 2] = b;
}

CachedRows KvStore::rows(int64_t slot) const {
  CachedRows r = layout_;
  r.data = bytes_.data() + slot * n_heads_ * r.head_bytes;
  if (by_channel(r.dtype))
    r.latest = latest_.data() + slot * n_heads_ * 4 * kv_strip_bytes(Dtype::F16, r.d);
  return r;
}

KvPiece CachedRows::piece(int64_t head, int64_t s, int64_t end, int64_t position) const {
  if (s < first_strips && first_dtype != dtype)
    return {first_dtype, s, std::min(end, first_strips), strip(head, s)};
  if (!by_channel(dtype)) return {dtype, s, end, strip(head, s)};
  const int64_t complete = (position + 1) / kChannelBlock * (kChannelBlock / kStrip);
  if (s >= complete) return {Dtype::F16, s, end, latest_strip(head, s)};
  const int64_t half = s % (kChannelBlock / kStrip);
  return {dtype, s, std::min(end, complete), strip(head, s - half), half, turns};
}

KvPiece CachedRows::strip_at(int64_t head, int64_t s, int64_t position) const {
  return piece(head, s, s + 1, position);
}

void load_keys(const KvPiece& strip, int64_t d, float* y) {
  if (strip.turns)
    load_turned_key_block(d, strip.data, strip.half, strip.turns,
                          strip.begin * kStrip / kChannelBlock, y);
  else if (by_channel(strip.dtype))
    load_key_block(d, strip.data, strip.half, y);
  else
    load_keys(strip.dtype, d, strip.data, y);
}

}  // namespace mt
