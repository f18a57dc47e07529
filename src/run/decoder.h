#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "run/forward.h"
#include "run/sample.h"

namespace mt {

enum class Finish { none, stopped, length, context };

enum class Drafts { none, ngram };

struct DecoderOptions {
  Path path = Path::fast;
  int64_t n_sequences = 1;  // texts side by side at most
  int64_t n_ctx = 0;        // positions of each at most
  KvTypes types;
  // What a place's cache knows of a prompt is not run again. On the fast path the bits then depend
  // on what was run before: in pieces of other lengths the prompt is rounded otherwise.
  bool reuse = true;
  Drafts drafts = Drafts::none;
  int64_t draft_max = 7;  // drafted tokens of a batch at most
  // So many wherever there are any, whether they pay or not.
  int64_t draft_min = 0;
};

// What became of one text.
struct Written {
  std::vector<int32_t> ids;  // drawn so far; the one that ended the text included
  Finish finish = Finish::none;
  int64_t n_prompt = 0, n_prompt_run = 0;  // tokens; those whose keys were not cached already
  double prompt_seconds = 0, seconds = 0;  // reading the prompt; from there to the end
  // Batches with drafted tokens, how many these were, how many of them were right.
  int64_t n_verified = 0, n_drafted = 0, n_accepted = 0;
};

// Writes several texts at once (continuous batching: Yu et al. 2022, Orca): texts join and end
// while others go on, each with its own sampler and its own end. Next tokens of all of them run as
// one batch; prompts run for themselves, 256 tokens of one text between two batches, so that no
// text waits for another's long prompt.
//
// A text is the same, bit by bit, as if it were written alone (without `reuse`) as long as no more
// than kLikeSingle texts are being written: batches up to that size compute each token as it would
// be computed alone (ForwardOptions::like_single). Larger ones take the fast path's batched
// product, whose rounding is another (the exact path's is the same for any number).
//
// Drafts: the tokens that a text would go on with if it repeated itself run in one batch with the
// token that is known, and are kept as far as the sampler, asked as if there were no drafts, draws
// the same. So drafts change no text either, at no temperature. How many are worth their time is
// decided from the times of past batches and from how often such drafts were right.
class Decoder {
 public:
  static constexpr int64_t kLikeSingle = 8;

  // model and rt must outlive it. Throws Error where the cache is too large or of a wrong format.
  Decoder(const Runtime& rt, const Model& model, const DecoderOptions& options);
  ~Decoder();

  // Called with every token that is drawn, in order; false ends the text with it.
  using OnToken = std::function<bool(int32_t id)>;
  // Begins a text behind `prompt`; returns its place, 0 .. n_sequences-1: the free one whose cache
  // knows most of the prompt. n_predict:
  // tokens at most; negative: until on_token or the context ends the text. Throws Error where no
  // place is free, the prompt is empty or longer than the context. n_ctx: positions of this text,
  // where they are fewer than a place has; 0: all of them.
  int64_t join(std::vector<int32_t> prompt, const SampleOptions& sampling, int64_t n_predict,
               OnToken on_token, int64_t n_ctx = 0);
  // Ends a text from outside (Finish::stopped).
  void leave(int64_t place);
  // Runs the next piece of a prompt, if there is one, and the next batch of tokens. False: there is
  // no text to go on with. What on_token throws comes out here, the text it is of is ended then.
  bool step();

  int64_t n_free() const;
  // Whether the place's text goes on.
  bool active(int64_t place) const;
  // Tokens of the prompt that are to be run yet.
  int64_t prompt_left(int64_t place) const;
  // Of the text that has the place or had it last.
  const Written& written(int64_t place) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mt
