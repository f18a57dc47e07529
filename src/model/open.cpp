#include "model/open.h"

#include <cmath>
#include <numeric>
#include <set>
#include <unordered_map>

#include "base/error.h"
#include "file/open.h"
#include "model/arch/table.h"

namespace mt {
namespace {

// Takes tensors out of the file by name and remembers which were asked for.
class Shelf {
 public:
  explicit Shelf(const TensorFile& file) : file_(file) {
    for (const Tensor& t : file.tensors) index_[t.name] = &t;
  }

  const Tensor* find(const std::string& name) {
    auto it = index_.find(name);
    if (it == index_.end()) return nullptr;
    taken_.insert(name);
    return it->second;
  }

  // rows or cols of -1: any.
  Weight weight(const std::string& name, int64_t rows, int64_t cols) {
    const Tensor* t = find(name);
    if (!t) throw_error("{}: tensor '{}' is missing", file_.path, name);
    return weight(*t, rows, cols);
  }

  Weight weight(const Tensor& t, int64_t rows, int64_t cols) {
    if (t.shape.size() != 2 || (rows >= 0 && t.shape[0] != rows) ||
        (cols >= 0 && t.shape[1] != cols))
      throw_error("{}: tensor '{}': expected shape [{}, {}], found {}", file_.path, t.name,
                  any(rows), any(cols), shape(t));
    if (!info(t.dtype).decodes)
      throw_error("{}: tensor '{}': {} is not a weight format", file_.path, t.name, name(t.dtype));
    return {.rows = t.shape[0], .cols = t.shape[1], .dtype = t.dtype, .data = t.data};
  }

  // An empty vector where it is absent and not required.
  std::vector<float> vector(const std::string& tensor_name, int64_t n, bool required) {
    const Tensor* t = find(tensor_name);
    if (!t) {
      if (required) throw_error("{}: tensor '{}' is missing", file_.path, tensor_name);
      return {};
    }
    int64_t found = 1;
    for (int64_t d : t->shape) found *= d;
    if (t->shape.empty() || t->shape.back() != n || found != n)
      throw_error("{}: tensor '{}': expected {} values, found shape {}", file_.path, tensor_name, n,
                  shape(*t));
    if (!info(t->dtype).decodes)
      throw_error("{}: tensor '{}': expected floats, found {}", file_.path, tensor_name,
                  name(t->dtype));
    std::vector<float> values(static_cast<size_t>(n));
    decode_row(t->dtype, t->data.bytes.data(), values.data(), n);
    return values;
  }

  LinearMap map(const std::string& stem, int64_t rows, int64_t cols) {
    return {.name = stem + ".weight",
            .weight = weight(stem + ".weight", rows, cols),
            .bias = vector(stem + ".bias", rows, false)};
  }

  void refuse_leftovers() const {
    for (const Tensor& t : file_.tensors)
      if (t.name.starts_with("blk.") && !taken_.contains(t.name) &&
          !t.name.ends_with("attn_rot_embd.weight"))
        throw_error(
            "{}: tensor '{}' is not part of this architecture as microtome runs it (mixture of "
            "experts and fused maps are not supported)",
            file_.path, t.name);
  }

 private:
  static std::string any(int64_t n) { return n < 0 ? "any" : std::to_string(n); }
  static std::string shape(const Tensor& t) {
    std::string s = "[";
    for (size_t i = 0; i < t.shape.size(); ++i) s += (i ? ", " : "") + std::to_string(t.shape[i]);
    return s + "]";
  }
  const TensorFile& file_;
  std::unordered_map<std::string, const Tensor*> index_;
  std::set<std::string> taken_;
};

int64_t in_range(const TensorFile& file, const std::string& key, int64_t value, int64_t low,
                 int64_t high) {
  if (value < low || value > high)
    throw_error("{}: metadata '{}': expected {} to {}, found {}", file.path, key, low, high, value);
  return value;
}

int64_t need(const TensorFile& file, const std::string& key, int64_t low, int64_t high) {
  return in_range(file, key, file.need_int(key), low, high);
}

int64_t optional(const TensorFile& file, const std::string& key, int64_t fallback, int64_t low,
                 int64_t high) {
  return in_range(file, key, file.get_int(key).value_or(fallback), low, high);
}

double positive(const TensorFile& file, const std::string& key, double fallback) {
  double v = file.get_float(key).value_or(fallback);
  if (!(v > 0) || !std::isfinite(v))
    throw_error("{}: metadata '{}': expected a positive number, found {}", file.path, key, v);
  return v;
}

// How positions turn into angles (per layer, because windows have their own).
struct Rope {
  double base, window_base, scale;
  int64_t dims;
  std::vector<float> factors;
};

Rope read_rope(const TensorFile& file, const Architecture& arch, const std::string& p,
               int64_t d_head, Shelf& shelf) {
  Rope r;
  r.base = positive(file, p + "rope.freq_base", 10000);
  r.window_base = arch.window_pattern
                      ? positive(file, p + "rope.freq_base_swa", arch.window_rope_base)
                      : r.base;
  r.dims = optional(file, p + "rope.dimension_count", d_head, 2, d_head);
  if (r.dims % 2)
    throw_error("{}: metadata '{}rope.dimension_count': expected an even number, found {}",
                file.path, p, r.dims);
  r.scale = 1;
  std::string scaling = file.get_string(p + "rope.scaling.type").value_or("none");
  if (scaling == "linear")
    r.scale = 1 / positive(file, p + "rope.scaling.factor", 1);
  else if (scaling != "none")
    throw_error("{}: metadata '{}rope.scaling.type': expected none or linear, found '{}'",
                file.path, p, scaling);
  else if (auto old = file.get_float(p + "rope.scale_linear"); old && *old > 0)
    r.scale = 1 / *old;
  r.factors = shelf.vector("rope_freqs.weight", r.dims / 2, false);
  for (float f : r.factors)
    if (!(f > 0)) throw_error("{}: tensor 'rope_freqs.weight' holds {}", file.path, f);
  return r;
}

}  // namespace

Model open_model(std::shared_ptr<const TensorFile> shared) {
  const TensorFile& file = *shared;
  Model m;
  m.file = shared;
  m.architecture = file.need_string("general.architecture");
  const Architecture* arch = find_architecture(m.architecture);
  if (!arch) {
    std::string known;
    for (const Architecture* a : all_architectures())
      known += (known.empty() ? "" : ", ") + std::string(a->name);
    throw_error("{}: architecture '{}' cannot be run; known: {}", file.path, m.architecture, known);
  }
  const std::string p = m.architecture + ".";
  Shelf shelf(file);

  m.n_layers = need(file, p + "block_count", 1, 4096);
  m.d_model = need(file, p + "embedding_length", 1, 1 << 20);
  m.context_length = optional(file, p + "context_length", 2048, 1, INT32_MAX);
  m.norm_epsilon = static_cast<float>(positive(file, p + "attention.layer_norm_rms_epsilon", 1e-5));
  m.embedding_scale = arch->scaled_embedding ? std::sqrt(static_cast<float>(m.d_model)) : 1.0f;
  m.logit_softcap = static_cast<float>(file.get_float(p + "final_logit_softcapping").value_or(0));
  int64_t d_ff = need(file, p + "feed_forward_length", 1, 1 << 24);
  int64_t n_heads = need(file, p + "attention.head_count", 1, 4096);
  int64_t n_kv = optional(file, p + "attention.head_count_kv", n_heads, 1, n_heads);
  if (n_heads % n_kv)
    throw_error("{}: metadata '{}attention.head_count': {} heads do not share {} KV heads",
                file.path, p, n_heads, n_kv);
  int64_t d_head = optional(file, p + "attention.key_length", m.d_model / n_heads, 1, 4096);
  if (optional(file, p + "attention.value_length", d_head, 1, 4096) != d_head)
    throw_error("{}: keys and values of different lengths are not supported", file.path);
  int64_t window =
      arch->window_pattern ? optional(file, p + "attention.sliding_window", 0, 0, INT32_MAX) : 0;
  int64_t pattern = arch->window_pattern;
  if (pattern)
    if (const MetaValue* v = file.find_meta(p + "attention.sliding_window_pattern");
        v && std::holds_alternative<uint32_t>(v->value))
      pattern = need(file, p + "attention.sliding_window_pattern", 0, 4096);
  Rope rope = read_rope(file, *arch, p, d_head, shelf);

  m.embedding = {.name = "token_embd.weight",
                 .weight = shelf.weight("token_embd.weight", -1, m.d_model),
                 .bias = {}};
  m.n_vocab = m.embedding.weight.rows;
  if (m.n_vocab < 1 || m.n_vocab > INT32_MAX)
    throw_error("{}: tensor 'token_embd.weight' has {} rows", file.path, m.n_vocab);
  m.final_norm = shelf.vector("output_norm.weight", m.d_model, true);
  if (const Tensor* t = shelf.find("output.weight"))
    m.head = LinearMap{
        .name = "output.weight", .weight = shelf.weight(*t, m.n_vocab, m.d_model), .bias = {}};

  for (int64_t l = 0; l < m.n_layers; ++l) {
    const std::string blk = fmt::format("blk.{}.", l);
    bool windowed = window > 0 && (pattern == 0 || l % pattern < pattern - 1);
    Attention a;
    a.n_heads = n_heads;
    a.n_kv_heads = n_kv;
    a.d_head = d_head;
    a.scale = 1.0f / std::sqrt(static_cast<float>(d_head));
    a.window = windowed ? window : 0;
    a.q = shelf.map(blk + "attn_q", n_heads * d_head, m.d_model);
    a.k = shelf.map(blk + "attn_k", n_kv * d_head, m.d_model);
    a.v = shelf.map(blk + "attn_v", n_kv * d_head, m.d_model);
    a.o = shelf.map(blk + "attn_output", m.d_model, n_heads * d_head);
    if (arch->qk_norm) {
      a.q_norm_name = blk + "attn_q_norm.weight";
      a.k_norm_name = blk + "attn_k_norm.weight";
      a.q_norm = shelf.vector(a.q_norm_name, d_head, true);
      a.k_norm = shelf.vector(a.k_norm_name, d_head, true);
    }
    a.rope_neox = arch->rope_neox;
    a.rope_dims = rope.dims;
    a.rope_factors = rope.factors;
    a.rope_base = windowed ? rope.window_base : rope.base;
    a.rope_scale = windowed ? 1 : rope.scale;

    Mlp f;
    f.activation = arch->activation;
    f.gate = shelf.map(blk + "ffn_gate", d_ff, m.d_model);
    f.up = shelf.map(blk + "ffn_up", d_ff, m.d_model);
    f.down = shelf.map(blk + "ffn_down", m.d_model, d_ff);

    Site attn{.place = fmt::format("{}.attn", l),
              .norm_name = blk + "attn_norm.weight",
              .norm = shelf.vector(blk + "attn_norm.weight", m.d_model, true),
              .post_norm = arch->post_norms
                               ? shelf.vector(blk + "post_attention_norm.weight", m.d_model, true)
                               : std::vector<float>{},
              .post_norm_name = blk + "post_attention_norm.weight",
              .what = std::move(a)};
    Site mlp{.place = fmt::format("{}.mlp", l),
             .norm_name = blk + "ffn_norm.weight",
             .norm = shelf.vector(blk + "ffn_norm.weight", m.d_model, true),
             .post_norm = arch->post_norms
                              ? shelf.vector(blk + "post_ffw_norm.weight", m.d_model, true)
                              : std::vector<float>{},
             .post_norm_name = blk + "post_ffw_norm.weight",
             .what = std::move(f)};
    m.steps.push_back({.layer = l, .sites = {}});
    m.steps.back().sites.push_back(std::move(attn));
    m.steps.push_back({.layer = l, .sites = {}});
    m.steps.back().sites.push_back(std::move(mlp));
  }
  shelf.refuse_leftovers();
  return m;
}

Model open_model(const std::string& path) {
  return open_model(std::make_shared<const TensorFile>(open_model_file(path)));
}

}  // namespace mt
