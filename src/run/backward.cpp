#include "run/backward.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "run/attention.h"
#include "run/layers.h"
#include "run/linear.h"
#include "run/rope.h"

namespace mt {

void rms_norm_backward(const Runtime& rt, ConstMatrix x, std::span<const float> gain, float epsilon,
                       ConstMatrix dy, Matrix dx, float* dgain) {
  const int64_t d = x.cols;
  std::vector<float> inverse(static_cast<size_t>(x.rows));
  for_rows(rt, x.rows, [&](int64_t t) {
    const float* xt = x.row(t);
    inverse[static_cast<size_t>(t)] =
        1.0f / std::sqrt(rt.kernels.dot(xt, xt, d) / static_cast<float>(d) + epsilon);
  });
  if (dgain) {  // before dx, which may share memory with dy
    constexpr int64_t kPiece = 64;
    rt.pool.parallel_for(ceil_div(d, kPiece), [&](int64_t piece, int) {
      const int64_t begin = piece * kPiece, end = std::min(begin + kPiece, d);
      for (int64_t t = 0; t < x.rows; ++t) {
        const float r = inverse[static_cast<size_t>(t)];
        for (int64_t i = begin; i < end; ++i) dgain[i] += dy.row(t)[i] * x.row(t)[i] * r;
      }
    });
  }
  for_rows(rt, x.rows, [&](int64_t t) {
    const float r = inverse[static_cast<size_t>(t)];
    const float* xt = x.row(t);
    float* out = dx.row(t);
    for (int64_t i = 0; i < d; ++i) out[i] = dy.row(t)[i] * gain[static_cast<size_t>(i)];
    const float s = rt.kernels.dot(out, xt, d) * r * r * r / static_cast<float>(d);
    for (int64_t i = 0; i < d; ++i) out[i] = out[i] * r - xt[i] * s;
  });
}

void activation_backward(const Kernels& k, Activation activation, int64_t n, const float* dy,
                         float* gate, float* up, float* y) {
  constexpr int64_t kPiece = 512;
  float e[kPiece];
  for (int64_t begin = 0; begin < n;
       begin += kPiece, dy += kPiece, gate += kPiece, up += kPiece, y += kPiece) {
    const int64_t m = std::min(kPiece, n - begin);
    switch (activation) {
      case Activation::silu:
        for (int64_t i = 0; i < m; ++i) e[i] = -std::fabs(gate[i]);
        k.exp_sum(e, m, 0);
        for (int64_t i = 0; i < m; ++i) {
          const float g = gate[i], u = up[i];
          const float s = (g >= 0 ? 1.0f : e[i]) / (1.0f + e[i]);  // 1 / (1 + exp(-g))
          y[i] = g * s * u;
          up[i] = dy[i] * (g * s);
          gate[i] = dy[i] * u * s * (1.0f + g * (1.0f - s));
        }
        break;
      case Activation::gelu_tanh: {
        constexpr float c = 0.7978845608f, b = 0.044715f;
        for (int64_t i = 0; i < m; ++i)
          e[i] = -2.0f * std::fabs(c * (gate[i] + b * gate[i] * gate[i] * gate[i]));
        k.exp_sum(e, m, 0);
        for (int64_t i = 0; i < m; ++i) {
          const float g = gate[i], u = up[i];
          const float z = g + b * g * g * g;
          const float h = (1.0f - e[i]) / (1.0f + e[i]);
          const float tanh = z >= 0 ? h : -h;
          const float value = 0.5f * g * (1.0f + tanh);
          const float slope = 0.5f * (1.0f + tanh) +
                              0.5f * g * (1.0f - tanh * tanh) * c * (1.0f + 3.0f * b * g * g);
          y[i] = value * u;
          up[i] = dy[i] * value;
          gate[i] = dy[i] * u * slope;
        }
        break;
      }
    }
  }
}

namespace {

// Undoes prepare_heads for one position: from d(rotated) to d(raw), in place.
void heads_backward(const Kernels& k, const Attention& a, std::span<const float> norm,
                    int64_t n_heads, float epsilon, const float* inverse_rotation, const float* raw,
                    float* grad, float* dgain) {
  const float n = static_cast<float>(a.d_head);
  for (int64_t h = 0; h < n_heads; ++h) {
    float* g = grad + h * a.d_head;
    k.rope(g, inverse_rotation, a.rope_dims / 2, a.rope_neox);
    if (norm.empty()) continue;
    const float* x = raw + h * a.d_head;
    const float r = 1.0f / std::sqrt(k.dot(x, x, a.d_head) / n + epsilon);
    for (int64_t i = 0; i < a.d_head; ++i) {
      dgain[i] += g[i] * x[i] * r;
      g[i] *= norm[static_cast<size_t>(i)];
    }
    const float s = k.dot(g, x, a.d_head) * r * r * r / n;
    for (int64_t i = 0; i < a.d_head; ++i) g[i] = g[i] * r - x[i] * s;
  }
}

// What the forward pass computed and the backward pass reads again: by layer, empty where it has
// to be computed a second time.
struct Kept {
  MatrixBuffer q, k, v, out, gate, up;
};

class Keeper {
 public:
  Keeper(const Model& model, int64_t most_bytes)
      : layers_(static_cast<size_t>(model.n_layers)), most_bytes_(most_bytes) {
    for (const Step& step : model.steps)
      for (const Site& site : step.sites)
        if (const auto* a = std::get_if<Attention>(&site.what))
          // The backward pass of these norms starts from what is not kept.
          attention_ = attention_ && a->q_norm.empty() && a->k_norm.empty();
  }

  void see(Point point, int64_t layer, ConstMatrix value) {
    Kept& l = layers_.at(static_cast<size_t>(layer));
    MatrixBuffer* to = point == Point::attn_q     ? &l.q
                       : point == Point::attn_k   ? &l.k
                       : point == Point::attn_v   ? &l.v
                       : point == Point::attn_out ? &l.out
                       : point == Point::mlp_gate ? &l.gate
                       : point == Point::mlp_up   ? &l.up
                                                  : nullptr;
    if (!to || (to != &l.gate && to != &l.up && !attention_)) return;
    const int64_t bytes = value.rows * value.cols * int64_t{sizeof(float)};
    if (bytes_ + bytes > most_bytes_) return;
    bytes_ += bytes;
    *to = padded_rows(value.rows, value.cols);
    for (int64_t t = 0; t < value.rows; ++t) std::copy_n(value.row(t), value.cols, to->row(t));
  }

  Kept& at(int64_t layer) { return layers_.at(static_cast<size_t>(layer)); }

  // Rows more than needed: attention reads full panels past the end of a row.
  static MatrixBuffer padded_rows(int64_t n, int64_t cols) {
    return MatrixBuffer(n + 1 + kPanel / cols, cols);
  }

 private:
  std::vector<Kept> layers_;
  int64_t most_bytes_, bytes_ = 0;
  bool attention_ = true;
};

// The backward pass of one window; d is d loss / d stream, updated site by site.
class Pass {
 public:
  Pass(const Runtime& rt, const Model& model, int64_t n, const BackwardTaps& taps, Path path)
      : rt_(rt), model_(model), n_(n), taps_(taps), path_(path) {}

  void site(const Site& s, ConstMatrix stream, Kept& kept, Matrix d) {
    MatrixBuffer normed(n_, model_.d_model), dnormed(n_, model_.d_model);
    rms_norm(rt_, stream, s.norm, model_.norm_epsilon, normed);
    dnormed.zero();
    if (const auto* a = std::get_if<Attention>(&s.what))
      attention(s, *a, normed, kept, d, dnormed);
    else
      mlp(s, std::get<Mlp>(s.what), normed, kept, d, dnormed);
    std::vector<float> dgain(s.norm.size(), 0.0f);
    rms_norm_backward(rt_, stream, s.norm, model_.norm_epsilon, dnormed, dnormed,
                      taps_.norm ? dgain.data() : nullptr);
    if (taps_.norm) taps_.norm(s.norm_name, dgain);
    for_rows(rt_, n_,
             [&](int64_t t) { rt_.kernels.add(dnormed.row(t), d.row(t), model_.d_model); });
  }

 private:
  // d loss / d (what the last map wrote), through the post norm if there is one.
  MatrixBuffer update_gradient(const Site& s, ConstMatrix input, const LinearMap& last,
                               ConstMatrix d) {
    MatrixBuffer du(n_, model_.d_model);
    if (s.post_norm.empty()) {
      for (int64_t t = 0; t < n_; ++t) std::copy_n(d.row(t), d.cols, du.row(t));
    } else {
      MatrixBuffer raw(n_, model_.d_model);
      matmul(rt_, path_, input, last, raw);
      std::vector<float> dgain(s.post_norm.size(), 0.0f);
      rms_norm_backward(rt_, raw, s.post_norm, model_.norm_epsilon, d, du,
                        taps_.norm ? dgain.data() : nullptr);
      if (taps_.norm) taps_.norm(s.post_norm_name, dgain);
    }
    return du;
  }

  void through(const LinearMap& map, ConstMatrix x, ConstMatrix dy, Matrix dx) {
    if (taps_.map) taps_.map(map, x, dy);
    matmul_backward(rt_, path_, dy, map, dx);
  }

  // The buffer that was kept, or W x.
  MatrixBuffer output_of(MatrixBuffer& kept, const LinearMap& map, ConstMatrix x) {
    if (kept.rows() > 0) return std::move(kept);
    MatrixBuffer y = Keeper::padded_rows(n_, map.weight.rows);
    matmul(rt_, path_, x, map, y.view().slice_rows(0, n_));
    return y;
  }

  void attention(const Site& s, const Attention& a, ConstMatrix normed, Kept& kept, ConstMatrix d,
                 Matrix dnormed) {
    const Kernels& k = rt_.kernels;
    const int64_t q_dim = a.q.weight.rows, kv_dim = a.k.weight.rows;
    const bool ready_q = kept.q.rows() > 0, ready_k = kept.k.rows() > 0;
    MatrixBuffer qb = output_of(kept.q, a.q, normed), kb = output_of(kept.k, a.k, normed),
                 vb = output_of(kept.v, a.v, normed);
    Matrix q = qb.view().slice_rows(0, n_), key = kb.view().slice_rows(0, n_),
           value = vb.view().slice_rows(0, n_);
    const bool normed_heads = !a.q_norm.empty() || !a.k_norm.empty();
    MatrixBuffer raw_q(normed_heads ? n_ : 0, q_dim), raw_k(normed_heads ? n_ : 0, kv_dim);
    std::vector<int64_t> positions(static_cast<size_t>(n_));
    std::iota(positions.begin(), positions.end(), int64_t{0});
    const RopeTable rope(a, positions);
    for_rows(rt_, n_, [&](int64_t t) {
      if (normed_heads) {
        std::copy_n(q.row(t), q_dim, raw_q.row(t));
        std::copy_n(key.row(t), kv_dim, raw_k.row(t));
      }
      const float* cs = rope.row(t);
      if (!ready_q) prepare_heads(k, a, a.q_norm, a.n_heads, model_.norm_epsilon, cs, q.row(t));
      if (!ready_k)
        prepare_heads(k, a, a.k_norm, a.n_kv_heads, model_.norm_epsilon, cs, key.row(t));
    });
    MatrixBuffer dout(n_, q_dim);
    MatrixBuffer ob = std::move(kept.out);
    if (ob.rows() == 0) {
      ob = MatrixBuffer(n_, q_dim);
      attend(rt_, a, q, HeadRows::of(key, a.d_head), HeadRows::of(value, a.d_head), 0, ob);
    }
    const Matrix out = ob.view().slice_rows(0, n_);
    MatrixBuffer du = update_gradient(s, out, a.o, d);
    dout.zero();
    through(a.o, out, du, dout);
    MatrixBuffer dq(n_, q_dim), dk(n_, kv_dim), dv(n_, kv_dim);
    attend_backward(rt_, a, q, key, value, dout, dq, dk, dv);
    std::vector<float> dgain_q(static_cast<size_t>(a.d_head), 0.0f), dgain_k = dgain_q;
    auto back = [&](int64_t t) {
      std::vector<float> turn(rope.row(t), rope.row(t) + a.rope_dims);
      for (size_t i = 1; i < turn.size(); i += 2) turn[i] = -turn[i];
      heads_backward(k, a, a.q_norm, a.n_heads, model_.norm_epsilon, turn.data(), raw_q.row(t),
                     dq.row(t), dgain_q.data());
      heads_backward(k, a, a.k_norm, a.n_kv_heads, model_.norm_epsilon, turn.data(), raw_k.row(t),
                     dk.row(t), dgain_k.data());
    };
    if (normed_heads)  // the gains' gradients are sums over positions, in order
      for (int64_t t = 0; t < n_; ++t) back(t);
    else
      for_rows(rt_, n_, back);
    if (taps_.norm && !a.q_norm.empty()) taps_.norm(a.q_norm_name, dgain_q);
    if (taps_.norm && !a.k_norm.empty()) taps_.norm(a.k_norm_name, dgain_k);
    through(a.q, normed, dq, dnormed);
    through(a.k, normed, dk, dnormed);
    through(a.v, normed, dv, dnormed);
  }

  void mlp(const Site& s, const Mlp& f, ConstMatrix normed, Kept& kept, ConstMatrix d,
           Matrix dnormed) {
    const int64_t d_ff = f.gate.weight.rows;
    MatrixBuffer gb = output_of(kept.gate, f.gate, normed), ub = output_of(kept.up, f.up, normed);
    Matrix gate = gb.view().slice_rows(0, n_), up = ub.view().slice_rows(0, n_);
    MatrixBuffer act(n_, d_ff), dact(n_, d_ff);
    auto forward_act =
        f.activation == Activation::silu ? rt_.kernels.silu_mul : rt_.kernels.gelu_mul;
    for_rows(rt_, n_, [&](int64_t t) { forward_act(gate.row(t), up.row(t), act.row(t), d_ff); });
    MatrixBuffer du = update_gradient(s, act, f.down, d);
    dact.zero();
    through(f.down, act, du, dact);
    for_rows(rt_, n_, [&](int64_t t) {
      activation_backward(rt_.kernels, f.activation, d_ff, dact.row(t), gate.row(t), up.row(t),
                          act.row(t));
    });
    through(f.gate, normed, gate, dnormed);
    through(f.up, normed, up, dnormed);
  }

  const Runtime& rt_;
  const Model& model_;
  int64_t n_;
  const BackwardTaps& taps_;
  Path path_;
};

// A window's forward pass, and what the backward pass reads of it.
struct Trace {
  std::vector<MatrixBuffer> streams;  // before every step, and after the last
  Keeper keeper;
  MatrixBuffer end;  // the normed final stream, or that after the last step
};

Trace run_forward(const Runtime& rt, const Model& model, std::span<const int32_t> tokens,
                  bool whole, const BackwardOptions& options) {
  const int64_t n = std::ssize(tokens), d = model.d_model;
  assert(n > 0);
  Trace trace{{}, Keeper(model, options.kept_bytes), {}};
  trace.streams.emplace_back(n, d);
  if (options.stream)
    std::copy_n(options.stream->data(), n * d, trace.streams.back().data());
  else
    embed(rt, model, tokens, trace.streams.back());
  size_t n_sites = 0;
  for (const Step& step : model.steps) n_sites += step.sites.size();
  assert(n_sites == model.steps.size());  // parallel sites: not in any family yet
  KvCache cache(model, 1, n);
  const Chunk chunk{0, tokens};
  ForwardOptions forward_options;
  forward_options.path = options.path;
  forward_options.stream = options.stream;
  if (!whole) forward_options.end_step = std::ssize(model.steps);
  forward_options.tap = [&](Point point, int64_t layer, Matrix value) {
    if (point == Point::head_in) return;
    trace.keeper.see(point, layer, value);
    if (point != Point::stream) return;
    trace.streams.emplace_back(n, d);
    std::copy_n(value.data, static_cast<size_t>(n * d), trace.streams.back().data());
  };
  trace.end = forward(rt, model, cache, {&chunk, 1}, forward_options);
  return trace;
}

// d: d loss / d stream, after the last step at first, before the first in the end.
void through_steps(const Runtime& rt, const Model& model, Trace& trace, const BackwardTaps& taps,
                   Path path, Matrix d) {
  trace.streams.pop_back();
  Pass pass(rt, model, d.rows, taps, path);
  for (size_t i = model.steps.size(); i-- > 0;) {
    const Step& step = model.steps[i];
    pass.site(step.sites.front(), trace.streams.back(), trace.keeper.at(step.layer), d);
    trace.streams.pop_back();
  }
}

}  // namespace

void backward_of_steps(const Runtime& rt, const Model& model, const StreamLoss& loss,
                       const BackwardTaps& taps, const BackwardOptions& options) {
  assert(options.stream);
  // Only their number counts where the stream is given.
  const std::vector<int32_t> tokens(static_cast<size_t>(options.stream->rows()));
  Trace trace = run_forward(rt, model, tokens, false, options);
  loss(trace.end);
  through_steps(rt, model, trace, taps, options.path, trace.end);
}

void backward(const Runtime& rt, const Model& model, std::span<const int32_t> tokens,
              const LogitsLoss& loss, const BackwardTaps& taps, const BackwardOptions& options) {
  const int64_t n = std::ssize(tokens), d = model.d_model;
  const Path path = options.path;
  Trace trace = run_forward(rt, model, tokens, true, options);
  MatrixBuffer& hidden = trace.end;

  // Head and loss, in slices of rows: the logits of a window need not fit in memory.
  MatrixBuffer dhidden(n, d);
  dhidden.zero();
  // Larger ones decode the head less often; what exact callers sum up depends on the slices.
  constexpr int64_t kRows = 128, kLogits = int64_t{1} << 24;
  int64_t slice = kRows;
  if (path != Path::exact)
    slice = ceil_div(n, std::min(ceil_div(n, kRows), ceil_div(n * model.n_vocab, kLogits)));
  MatrixBuffer buffer(std::min(n, slice), model.n_vocab);
  for (int64_t t = 0; t < n; t += slice) {
    const int64_t rows = std::min(slice, n - t);
    Matrix l = buffer.view().slice_rows(0, rows);
    Matrix h = hidden.view().slice_rows(t, t + rows);
    logits(rt, model, path, h, l);
    std::vector<float> slope;
    if (model.logit_softcap > 0) {
      // d softcap: 1 - (l/cap)^2, taken before the loss overwrites the logits.
      slope.resize(static_cast<size_t>(rows * model.n_vocab));
      for (size_t i = 0; i < slope.size(); ++i) {
        const float x = l.data[i] / model.logit_softcap;
        slope[i] = 1.0f - x * x;
      }
    }
    loss(t, h, l);
    for (size_t i = 0; i < slope.size(); ++i) l.data[i] *= slope[i];
    if (taps.head) taps.head(model.head_map(), h, l);
    matmul_backward(rt, path, l, model.head_map(), dhidden.view().slice_rows(t, t + rows));
  }

  std::vector<float> dgain(static_cast<size_t>(d), 0.0f);
  rms_norm_backward(rt, trace.streams.back(), model.final_norm, model.norm_epsilon, dhidden,
                    dhidden, taps.norm ? dgain.data() : nullptr);
  if (taps.norm) taps.norm(kFinalNorm, dgain);
  through_steps(rt, model, trace, taps, path, dhidden);
  if (taps.embed && !options.stream) {
    if (model.embedding_scale != 1.0f)
      for (int64_t i = 0; i < n * d; ++i) dhidden.data()[i] *= model.embedding_scale;
    taps.embed(tokens, dhidden);
  }
}

}  // namespace mt
