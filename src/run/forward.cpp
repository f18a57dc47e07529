#include "run/forward.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/error.h"
#include "run/attention.h"
#include "run/layers.h"
#include "run/linear.h"
#include "run/rope.h"

namespace mt {

struct KvCache::Impl {
  int64_t n_sequences, capacity;
  KvTypes types;
  // One a layer; slot: the sequence.
  std::vector<KvStore> keys, values;
  std::vector<BlockTurns> turns;  // of keys that are rounded before RoPE
  std::vector<int64_t> lengths;
  // What a pass computes on its way to the stream, by use: kept from pass to pass, so that the
  // token loop allocates nothing and a prompt does not ask the system for cleared pages again.
  enum Use { normed, update, query_or_gate, key_or_up, value, heads, n_uses };
  AlignedBuffer<float> scratch[n_uses];

  KeyTurns turns_of(const Attention& a) {
    auto same = std::find_if(turns.begin(), turns.end(), [&](auto& t) { return t.serves(a); });
    if (same == turns.end()) same = turns.emplace(same, a, capacity);
    return same->turns();
  }

  // [rows, cols], uninitialised; its former content is gone.
  Matrix take(Use use, int64_t rows, int64_t cols) {
    const auto n = static_cast<size_t>(rows * cols);
    if (scratch[use].size() < n) scratch[use] = AlignedBuffer<float>(n);
    return {scratch[use].data(), rows, cols, cols};
  }
};

KvCache::KvCache(const Model& model, int64_t n_sequences, int64_t capacity, const KvTypes& types)
    : impl_(std::make_unique<Impl>()) {
  check_kv_types(model, types);
  impl_->n_sequences = n_sequences;
  impl_->capacity = capacity;
  impl_->types = types;
  impl_->keys.resize(static_cast<size_t>(model.n_layers));
  impl_->values.resize(static_cast<size_t>(model.n_layers));
  for (const Step& step : model.steps)
    for (const Site& site : step.sites)
      if (const auto* a = std::get_if<Attention>(&site.what)) {
        const auto layer = static_cast<size_t>(step.layer);
        const KeyTurns turns = types.before_rope_in(step.layer) ? impl_->turns_of(*a) : KeyTurns{};
        impl_->keys[layer] = KvStore(KvPart::keys, types.keys_in(step.layer), n_sequences,
                                     a->n_kv_heads, a->d_head, capacity, turns);
        impl_->values[layer] = KvStore(KvPart::values, types.values_in(step.layer), n_sequences,
                                       a->n_kv_heads, a->d_head, capacity);
      }
  impl_->lengths.assign(static_cast<size_t>(n_sequences), 0);
}
KvCache::~KvCache() = default;
int64_t KvCache::n_sequences() const {
  return impl_->n_sequences;
}
int64_t KvCache::capacity() const {
  return impl_->capacity;
}
const KvTypes& KvCache::types() const {
  return impl_->types;
}
int64_t KvCache::length(int64_t s) const {
  return impl_->lengths[static_cast<size_t>(s)];
}
void KvCache::truncate(int64_t s, int64_t length) {
  auto& l = impl_->lengths[static_cast<size_t>(s)];
  l = std::min(l, length);
}

namespace {

MatmulOptions products_of(const Model& model, Path path, bool like_single) {
  return {.like_single = like_single, .two_terms = path == Path::fast && fine_weights(model)};
}

struct Span {  // rows of the batch that belong to one sequence
  int64_t sequence, row, n, first;
};

HeadRows f32_rows(const CachedRows& rows) {
  assert(rows.dtype == Dtype::F32 && rows.first_dtype == Dtype::F32);
  return {reinterpret_cast<const float*>(rows.data), rows.d,
          rows.head_bytes / static_cast<int64_t>(sizeof(float))};
}

void attention_site(const Runtime& rt, const Model& model, const Attention& a, int64_t layer,
                    KvCache::Impl& cache, std::span<const Span> spans,
                    std::span<const RopeTable> ropes, const ForwardOptions& options,
                    const MatmulOptions& products, ConstMatrix normed, Matrix update) {
  const int64_t n = normed.rows;
  Matrix q = cache.take(KvCache::Impl::query_or_gate, n, a.q.weight.rows);
  Matrix k = cache.take(KvCache::Impl::key_or_up, n, a.k.weight.rows);
  Matrix v = cache.take(KvCache::Impl::value, n, a.v.weight.rows);
  const MapOutput qkv[] = {{a.q, q}, {a.k, k}, {a.v, v}};
  matmul_shared(rt, options.path, normed, qkv, products);
  const RopeTable& rope =
      *std::find_if(ropes.begin(), ropes.end(), [&](const RopeTable& r) { return r.serves(a); });
  Matrix out = cache.take(KvCache::Impl::heads, n, a.o.weight.cols);
  for (const Span& s : spans)
    for_rows(rt, s.n, [&](int64_t t) {
      const float* cs = rope.row(s.row + t);
      prepare_heads(rt.kernels, a, a.q_norm, a.n_heads, model.norm_epsilon, cs, q.row(s.row + t));
      prepare_heads(rt.kernels, a, a.k_norm, a.n_kv_heads, model.norm_epsilon, cs,
                    k.row(s.row + t));
    });
  if (options.tap) {
    options.tap(Point::attn_q, layer, q);
    options.tap(Point::attn_k, layer, k);
    options.tap(Point::attn_v, layer, v);
  }
  KvStore& keys = cache.keys[static_cast<size_t>(layer)];
  KvStore& values = cache.values[static_cast<size_t>(layer)];
  // Many short chunks (sequences side by side): a task a sequence. A long one: tiles inside.
  auto run = [&](int64_t i, int) {
    const Span& s = spans[static_cast<size_t>(i)];
    const CachedRows key = keys.rows(s.sequence), value = values.rows(s.sequence);
    // Whether queries go one by one depends on their number.
    const int64_t step = options.like_single ? 1 : s.n;
    for (int64_t t = 0; t < s.n; t += step) {
      const auto of_step = [&](Matrix m) { return m.slice_rows(s.row + t, s.row + t + step); };
      keys.append(rt.pool, s.sequence, s.first + t, of_step(k));
      values.append(rt.pool, s.sequence, s.first + t, of_step(v));
      const Matrix some = of_step(q), to = of_step(out);
      if (options.path == Path::fast)
        attend_fast(rt, a, some, key, value, s.first + t, to);
      else
        attend(rt, a, some, f32_rows(key), f32_rows(value), s.first + t, to);
    }
  };
  if (std::ssize(spans) < rt.pool.size() || std::ssize(spans) == 1)
    for (int64_t i = 0; i < std::ssize(spans); ++i) run(i, 0);
  else
    rt.pool.parallel_for(std::ssize(spans), run);
  if (options.tap) options.tap(Point::attn_out, layer, out);
  matmul(rt, options.path, out, a.o, update, products);
}

void mlp_site(const Runtime& rt, const Mlp& f, int64_t layer, KvCache::Impl& cache,
              const ForwardOptions& options, const MatmulOptions& products, ConstMatrix normed,
              Matrix update) {
  Matrix gate = cache.take(KvCache::Impl::query_or_gate, normed.rows, f.gate.weight.rows);
  Matrix up = cache.take(KvCache::Impl::key_or_up, normed.rows, f.up.weight.rows);
  const MapOutput both[] = {{f.gate, gate}, {f.up, up}};
  matmul_shared(rt, options.path, normed, both, products);
  if (options.tap) {
    options.tap(Point::mlp_gate, layer, gate);
    options.tap(Point::mlp_up, layer, up);
  }
  auto activate = f.activation == Activation::silu ? rt.kernels.silu_mul : rt.kernels.gelu_mul;
  for_rows(rt, normed.rows,
           [&](int64_t t) { activate(gate.row(t), up.row(t), gate.row(t), gate.cols); });
  if (options.tap) options.tap(Point::mlp_act, layer, gate);
  matmul(rt, options.path, gate, f.down, update, products);
}

}  // namespace

MatrixBuffer forward(const Runtime& rt, const Model& model, KvCache& cache,
                     std::span<const Chunk> chunks, const ForwardOptions& options) {
  KvCache::Impl& kv = cache.impl();
  if (options.path != Path::fast && kv.types != KvTypes{})
    throw_error("a cache in {} and {} is of the fast path; expected F32 on this one",
                name(kv.types.keys), name(kv.types.values));
  std::vector<Span> spans;
  int64_t n = 0;
  for (const Chunk& c : chunks) {
    assert(c.sequence >= 0 && c.sequence < kv.n_sequences);
    const int64_t first = kv.lengths[static_cast<size_t>(c.sequence)];
    if (first + std::ssize(c.tokens) > kv.capacity)
      throw_error("the context is full: {} positions and {} more, room for {}", first,
                  c.tokens.size(), kv.capacity);
    spans.push_back({c.sequence, n, std::ssize(c.tokens), first});
    n += std::ssize(c.tokens);
  }
  MatrixBuffer stream(n, model.d_model);
  if (options.stream) {
    assert(options.stream->rows() == n && options.stream->cols() == model.d_model);
    std::copy_n(options.stream->data(), n * model.d_model, stream.data());
  } else {
    for (size_t i = 0; i < chunks.size(); ++i)
      embed(rt, model, chunks[i].tokens,
            stream.view().slice_rows(spans[i].row, spans[i].row + spans[i].n));
  }
  if (n == 0) return stream;

  std::vector<int64_t> positions;  // of the batch's rows
  for (const Span& s : spans)
    for (int64_t t = 0; t < s.n; ++t) positions.push_back(s.first + t);
  std::vector<RopeTable> ropes;
  for (const Step& step : model.steps)
    for (const Site& site : step.sites)
      if (const auto* a = std::get_if<Attention>(&site.what))
        if (std::none_of(ropes.begin(), ropes.end(), [&](auto& r) { return r.serves(*a); }))
          ropes.emplace_back(*a, positions);

  Matrix normed = kv.take(KvCache::Impl::normed, n, model.d_model);
  Matrix update = kv.take(KvCache::Impl::update, n, model.d_model);
  const MatmulOptions products = products_of(model, options.path, options.like_single);
  const bool whole = options.end_step < 0;
  const size_t end = whole ? model.steps.size() : static_cast<size_t>(options.end_step);
  for (size_t i = static_cast<size_t>(options.first_step); i < end; ++i) {
    const Step& step = model.steps[i];
    for (const Site& site : step.sites) {
      rms_norm(rt, stream, site.norm, model.norm_epsilon, normed);
      const auto* a = std::get_if<Attention>(&site.what);
      if (options.tap) options.tap(a ? Point::attn_in : Point::mlp_in, step.layer, normed);
      if (a)
        attention_site(rt, model, *a, step.layer, kv, spans, ropes, options, products, normed,
                       update);
      else
        mlp_site(rt, std::get<Mlp>(site.what), step.layer, kv, options, products, normed, update);
      if (!site.post_norm.empty()) rms_norm(rt, update, site.post_norm, model.norm_epsilon, update);
      if (options.tap) options.tap(Point::update, step.layer, update);
      for_rows(rt, n,
               [&](int64_t t) { rt.kernels.add(update.row(t), stream.row(t), model.d_model); });
    }
    if (options.tap) options.tap(Point::stream, step.layer, stream);
  }
  if (whole) {
    rms_norm(rt, stream, model.final_norm, model.norm_epsilon, stream);
    if (options.tap) options.tap(Point::head_in, model.n_layers, stream);
  }
  for (const Span& s : spans) kv.lengths[static_cast<size_t>(s.sequence)] = s.first + s.n;
  return stream;
}

void logits(const Runtime& rt, const Model& model, Path path, ConstMatrix hidden, Matrix out,
            bool like_single) {
  matmul(rt, path, hidden, model.head_map(), out, products_of(model, path, like_single));
  if (model.logit_softcap > 0)
    for_rows(rt, out.rows, [&](int64_t t) {
      for (float& x : out.row_span(t)) x = model.logit_softcap * std::tanh(x / model.logit_softcap);
    });
}

}  // namespace mt
