#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/matrix.h"
#include "base/threads.h"
#include "flow/model.h"
#include "kernels/kernels.h"
#include "run/kv_store.h"

namespace mt {

// What computes: chosen once, passed down.
struct Runtime {
  const Kernels& kernels;
  ThreadPool& pool;
};

enum class Path {
  exact,  // weights decoded to f32, f32 sums in a fixed order: the judge
  bf16,   // weights and activations rounded to bf16, f32 sums in a fixed order: the same bits in
          // every instruction set too, about twice as fast where the processor has bf16 products
  fast,   // int8 dot products for few tokens, batched int8 or bf16 products for more, else exact
};

struct MatmulOptions {
  bool like_single = false;  // each token as if it were the only one (ForwardOptions)
  bool two_terms = false;    // int8 products take activations as the sum of two int8 values
};

// y[t,o] = sum_i x[t,i] * W[o,i] (+ bias[o])   x:[n_tokens,in]  W:[out,in]  y:[n_tokens,out]
void matmul(const Runtime& rt, Path path, ConstMatrix x, const LinearMap& map, Matrix y,
            const MatmulOptions& options = {});

// True where the quantised weights that the model multiplies with are of more than 6.25 bits, all
// in all: beside what such a format costs the rounding of activations to 8 bits counts, so that
// the fast path takes two terms.
bool fine_weights(const Model& model);

// What the cache of the fast path is without other wishes: F16, as in llama.cpp. Others: F32.
inline KvTypes default_kv_types(Path path) {
  if (path != Path::fast) return {};
  return {.keys = Dtype::F16, .values = Dtype::F16};
}

// Keys and values of several sequences. Layer by layer, [sequence][KV head][position][d_head], in
// strips (run/kv_store.h). The exact path and the bf16 path take F32 only.
class KvCache {
 public:
  // Throws Error where the formats do not fit the model or the cache is too large.
  KvCache(const Model& model, int64_t n_sequences, int64_t capacity, const KvTypes& types = {});
  ~KvCache();
  int64_t n_sequences() const;
  int64_t capacity() const;  // positions a sequence
  const KvTypes& types() const;
  int64_t length(int64_t sequence) const;
  void truncate(int64_t sequence, int64_t length);
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Tokens of one sequence that follow what its cache already holds.
struct Chunk {
  int64_t sequence = 0;
  std::span<const int32_t> tokens;
};

// A point where a value can be watched (and changed: the matrix is the live one).
enum class Point {
  attn_in,   // normed input of q, k, v          [n_tokens, d_model]
  attn_q,    // queries, keys and values as attention takes them: normed and rotated
  attn_k,    //                                   [n_tokens, n_heads*d_head]
  attn_v,    //                                   k and v: [n_tokens, n_kv_heads*d_head]
  attn_out,  // input of o: the heads' outputs    [n_tokens, n_heads*d_head]
  mlp_in,    // normed input of gate and up       [n_tokens, d_model]
  mlp_gate,  // outputs of gate and up            [n_tokens, d_ff]
  mlp_up,    //
  mlp_act,   // input of down                     [n_tokens, d_ff]
  update,    // what the site adds to the stream  [n_tokens, d_model]
  stream,    // the stream after the step         [n_tokens, d_model]
  head_in,   // normed final stream               [n_tokens, d_model]
};
using Tap = std::function<void(Point point, int64_t layer, Matrix value)>;

struct ForwardOptions {
  Path path = Path::exact;
  Tap tap;  // may be empty
  // Start before step `first_step` with this stream [n_tokens, d_model] instead of the embedding;
  // the cache of the earlier layers is then left as it is. nullptr: from the embedding.
  int64_t first_step = 0;
  const MatrixBuffer* stream = nullptr;
  // Stop before this step and return the stream as it is there, not normed; -1: to the end.
  int64_t end_step = -1;
  // Every token computes as it would alone, one behind the other: the same bits, on every path, in
  // more time than a batch takes (Path::fast: dot products instead of the batched product). For the
  // few tokens of texts that are written side by side and of drafts that are looked over.
  bool like_single = false;
};

// Runs the chunks (at most one a sequence) as one batch and appends to the cache. Returns the
// normed final stream [sum of chunk lengths, d_model], chunk after chunk. Throws Error where a
// token is outside the vocabulary, the cache is full or its formats are not the path's.
MatrixBuffer forward(const Runtime& rt, const Model& model, KvCache& cache,
                     std::span<const Chunk> chunks, const ForwardOptions& options = {});

// hidden [n, d_model] -> logits [n, n_vocab] (soft cap included).
void logits(const Runtime& rt, const Model& model, Path path, ConstMatrix hidden, Matrix out,
            bool like_single = false);

}  // namespace mt
