#include "run/decoder.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <exception>
#include <utility>

#include "base/error.h"
#include "run/draft.h"

namespace mt {
namespace {

constexpr int64_t kPromptBatch = 256;
using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

struct Sequence {
  explicit Sequence(const SampleOptions& sampling) : sampler(sampling) {}
  std::vector<int32_t> text;  // prompt and what was drawn
  Sampler sampler;
  int64_t n_predict = 0, n_ctx = 0;
  Decoder::OnToken on_token;
  Acceptance acceptance;
  Clock::time_point began;
};

struct Place {
  std::unique_ptr<Sequence> now;  // nothing: free
  std::vector<int32_t> cached;    // tokens whose keys and values the cache holds
  MatrixBuffer hidden;            // [1, d_model] of the prompt's last token, until it is drawn from
  bool prompt_done = false;
  Written written;
};

// What one text puts into a batch: its last token, whose successor is wanted, and drafts behind it.
struct Part {
  int64_t place;
  std::vector<int32_t> tokens;
  NgramMatch match;
  int64_t row = 0;
};

}  // namespace

struct Decoder::Impl {
  const Runtime& rt;
  const Model& model;
  DecoderOptions options;
  KvCache cache;
  std::vector<Place> places;
  BatchCost cost;
  int64_t n_batches = 0, last_draft = 0;
  std::exception_ptr failure;   // of an on_token
  AlignedBuffer<float> scores;  // logits, kept from batch to batch

  Impl(const Runtime& r, const Model& m, const DecoderOptions& o)
      : rt(r), model(m), options(o), cache(m, o.n_sequences, o.n_ctx, o.types) {
    places.resize(static_cast<size_t>(o.n_sequences));
  }
  Place& at(int64_t place) { return places[static_cast<size_t>(place)]; }

  bool few(int64_t n_tokens) const { return n_tokens <= kLikeSingle; }
  ForwardOptions forward_options(int64_t n_tokens) const {
    return {.path = options.path, .tap = {}, .like_single = few(n_tokens)};
  }

  void end(Place& p, Finish finish) {
    p.written.finish = finish;
    if (p.prompt_done) p.written.seconds = seconds_between(p.now->began, Clock::now());
    p.hidden = {};
    p.now.reset();
  }

  void run_prompt(int64_t place) {
    Place& p = at(place);
    const auto& text = p.now->text;
    const auto start = Clock::now();
    const int64_t n = std::min(kPromptBatch, std::ssize(text) - std::ssize(p.cached));
    const Chunk chunk{place, std::span(text).subspan(p.cached.size(), size_t(n))};
    const MatrixBuffer hidden =
        forward(rt, model, cache, {&chunk, 1}, {.path = options.path, .tap = {}});
    p.cached.insert(p.cached.end(), chunk.tokens.begin(), chunk.tokens.end());
    if (p.cached.size() == text.size()) {
      p.hidden = MatrixBuffer(1, model.d_model);
      std::copy_n(hidden.row(n - 1), model.d_model, p.hidden.row(0));
      p.prompt_done = true;
    }
    const auto stop = Clock::now();
    p.written.prompt_seconds += seconds_between(start, stop);
    p.now->began = stop;
    if (p.prompt_done && p.now->n_predict == 0) end(p, Finish::length);
  }

  // The logits of rows of the stream [n, d_model]; valid until the next call.
  ConstMatrix logits_of(ConstMatrix hidden) {
    const auto n = static_cast<size_t>(hidden.rows * model.n_vocab);
    if (scores.size() < n) scores = AlignedBuffer<float>(n);
    const Matrix out{scores.data(), hidden.rows, model.n_vocab, model.n_vocab};
    logits(rt, model, options.path, hidden, out, few(hidden.rows));
    return out;
  }

  // Draws the token behind the text and tells it. True: the text goes on.
  bool draw(Place& p, const ConstMatrix& row) {
    Sequence& s = *p.now;
    const int32_t id = s.sampler.draw({row.data, static_cast<size_t>(row.cols)});
    s.sampler.accept(id);
    s.text.push_back(id);
    p.written.ids.push_back(id);
    bool wanted = false;
    try {
      wanted = s.on_token(id);
    } catch (...) {
      failure = std::current_exception();  // after the other texts of the batch have had their turn
    }
    if (!wanted)
      end(p, Finish::stopped);
    else if (std::ssize(s.text) > s.n_ctx)
      end(p, Finish::context);
    else if (s.n_predict >= 0 && std::ssize(p.written.ids) >= s.n_predict)
      end(p, Finish::length);
    return p.now != nullptr;
  }

  // Draws of the prompts that are done.
  void draw_first() {
    for (Place& p : places)
      if (p.now && p.hidden.rows() > 0) {
        const ConstMatrix row = logits_of(std::exchange(p.hidden, {}));
        draw(p, row);
      }
  }

  // Adds drafts to the parts: in the order of their probability, as many as pay.
  void draft(std::vector<Part>& parts) {
    const auto n_single = std::ssize(parts);
    if (options.drafts == Drafts::none || n_single >= kLikeSingle) return;
    struct Guess {
      int64_t wanted = 0, most = 0;
      double reached = 1;  // probability that all drafts so far are right
    };
    std::vector<Guess> guesses(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      const Sequence& s = *at(parts[i].place).now;
      parts[i].match = find_ngram(s.text);
      // The last token that is asked for, or has room, need not be run.
      guesses[i].most = parts[i].match.length == 0 ? 0 : s.n_ctx - std::ssize(s.text);
      if (s.n_predict >= 0)
        guesses[i].most =
            std::min(guesses[i].most, s.n_predict - std::ssize(at(parts[i].place).written.ids) - 1);
    }
    // Without fresh times there is nothing to decide by: a batch without drafts shows them.
    constexpr int64_t kOld = 64, kRetry = 256;
    const double single = cost.of(n_single);
    if (options.draft_min <= 0 && (cost.age(n_single) > kOld || single <= 0)) return;
    if (last_draft + kRetry < n_batches) {
      cost.forget_drafts(n_single);
      last_draft = n_batches;
    }
    // So much faster it has to be: the times and probabilities are estimates.
    constexpr double kMargin = 1.05;
    double expected = double(n_single), best = single > 0 ? kMargin * expected / single : 0;
    std::vector<int64_t> chosen(parts.size());
    for (int64_t n = n_single + 1; n <= std::min(kLikeSingle, n_single + options.draft_max); ++n) {
      size_t most_likely = parts.size();
      double probability = 0;
      for (size_t i = 0; i < parts.size(); ++i) {
        const Guess& g = guesses[i];
        if (g.wanted >= g.most) continue;
        const double next =
            g.reached *
            at(parts[i].place).now->acceptance.probability(parts[i].match.length + g.wanted);
        if (next > probability) {
          probability = next;
          most_likely = i;
        }
      }
      if (most_likely == parts.size()) break;
      Guess& g = guesses[most_likely];
      ++g.wanted;
      g.reached = probability;
      expected += probability;
      const bool asked = n <= n_single + options.draft_min;
      const double rate = single > 0 ? expected / cost.of(n) : 0;
      if (asked || rate > best) {
        best = asked ? std::max(best, rate) : rate;
        for (size_t i = 0; i < parts.size(); ++i) chosen[i] = guesses[i].wanted;
      }
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      if (chosen[i] == 0) continue;
      const auto drafts = continuation(at(parts[i].place).now->text, parts[i].match, chosen[i]);
      parts[i].tokens.insert(parts[i].tokens.end(), drafts.begin(), drafts.end());
      last_draft = n_batches;
    }
  }

  // Draws behind every token of a part as long as the drafts are what is drawn, and takes back from
  // the cache what was not.
  void look_over(const Part& part, ConstMatrix rows) {
    Place& p = at(part.place);
    const auto n_before = std::ssize(p.cached);
    const auto n_drafts = std::ssize(part.tokens) - 1;
    NgramMatch match = part.match;
    int64_t right = 0;
    for (int64_t i = 0; i <= n_drafts; ++i) {
      if (i > 0 && options.drafts == Drafts::ngram) match = find_ngram(p.now->text);
      const int32_t guess =
          match.length > 0 ? p.now->text[static_cast<size_t>(match.next)] : int32_t{-1};
      const bool goes_on = draw(p, rows.slice_rows(i, i + 1));
      const int32_t drawn = p.written.ids.back();
      const bool as_drafted = i < n_drafts && drawn == part.tokens[static_cast<size_t>(i + 1)];
      right += as_drafted ? 1 : 0;
      if (goes_on) p.now->acceptance.count(match.length, guess == drawn);
      // The last token drawn is left out of the cache, drafted or not, as it would be without.
      if (!goes_on || !as_drafted) break;
      p.cached.push_back(drawn);
    }
    cache.truncate(part.place, std::ssize(p.cached));
    assert(std::ssize(p.cached) <= n_before + n_drafts);
    (void)n_before;
    if (n_drafts > 0) {
      p.written.n_verified += 1;
      p.written.n_drafted += n_drafts;
      p.written.n_accepted += right;
    }
  }

  void run_batch() {
    std::vector<Part> parts;
    for (int64_t i = 0; i < options.n_sequences; ++i)
      if (at(i).now && at(i).prompt_done)
        parts.push_back({.place = i, .tokens = {at(i).now->text.back()}, .match = {}});
    if (parts.empty()) return;
    const auto start = Clock::now();
    draft(parts);
    ++n_batches;
    std::vector<Chunk> chunks;
    int64_t n = 0;
    for (Part& part : parts) {
      part.row = n;
      n += std::ssize(part.tokens);
      chunks.push_back({part.place, part.tokens});
    }
    const MatrixBuffer hidden = forward(rt, model, cache, chunks, forward_options(n));
    for (const Part& part : parts) at(part.place).cached.push_back(part.tokens[0]);
    const ConstMatrix rows = logits_of(hidden);
    if (n <= BatchCost::kMost) cost.add(n, seconds_between(start, Clock::now()));
    for (const Part& part : parts)
      look_over(part, rows.slice_rows(part.row, part.row + std::ssize(part.tokens)));
  }
};

Decoder::Decoder(const Runtime& rt, const Model& model, const DecoderOptions& options)
    : impl_(std::make_unique<Impl>(rt, model, options)) {}
Decoder::~Decoder() = default;

int64_t Decoder::join(std::vector<int32_t> prompt, const SampleOptions& sampling, int64_t n_predict,
                      OnToken on_token, int64_t n_ctx) {
  const int64_t room = impl_->options.n_ctx;
  n_ctx = n_ctx > 0 ? std::min(n_ctx, room) : room;
  if (prompt.empty()) throw Error("the prompt is empty: expected a token at least");
  if (std::ssize(prompt) > n_ctx)
    throw_error("the prompt has {} tokens, the context holds {}", prompt.size(), n_ctx);
  int64_t best = -1, known = -1;
  for (int64_t i = 0; i < impl_->options.n_sequences; ++i) {
    const Place& p = impl_->at(i);
    if (p.now) continue;
    const auto differ =
        std::mismatch(prompt.begin(), prompt.end(), p.cached.begin(), p.cached.end());
    // The last token runs in any case: its logits are wanted.
    const int64_t here = impl_->options.reuse ? std::min<int64_t>(differ.first - prompt.begin(),
                                                                  std::ssize(prompt) - 1)
                                              : 0;
    if (here > known) best = i, known = here;
  }
  if (best < 0)
    throw_error("all {} texts that have room are being written", impl_->options.n_sequences);
  Place& p = impl_->at(best);
  auto sequence = std::make_unique<Sequence>(sampling);
  for (int32_t id : prompt) sequence->sampler.accept(id);
  if (impl_->options.drafts == Drafts::ngram) sequence->acceptance.learn(prompt);
  sequence->n_predict = n_predict;
  sequence->n_ctx = n_ctx;
  sequence->on_token = std::move(on_token);
  impl_->cache.truncate(best, known);
  p.cached.resize(static_cast<size_t>(known));
  p.prompt_done = false;
  p.written = {};
  p.written.n_prompt = std::ssize(prompt);
  p.written.n_prompt_run = std::ssize(prompt) - known;
  sequence->text = std::move(prompt);
  p.now = std::move(sequence);
  return best;
}

void Decoder::leave(int64_t place) {
  if (impl_->at(place).now) impl_->end(impl_->at(place), Finish::stopped);
}

bool Decoder::step() {
  impl_->draw_first();
  impl_->run_batch();
  if (impl_->failure) std::rethrow_exception(std::exchange(impl_->failure, nullptr));
  for (int64_t i = 0; i < impl_->options.n_sequences; ++i)
    if (impl_->at(i).now && !impl_->at(i).prompt_done) {
      impl_->run_prompt(i);
      break;
    }
  return n_free() < impl_->options.n_sequences;
}

int64_t Decoder::n_free() const {
  return std::count_if(impl_->places.begin(), impl_->places.end(),
                       [](const Place& p) { return !p.now; });
}
bool Decoder::active(int64_t place) const {
  return impl_->at(place).now != nullptr;
}
int64_t Decoder::prompt_left(int64_t place) const {
  const Place& p = impl_->at(place);
  return p.now && !p.prompt_done ? std::ssize(p.now->text) - std::ssize(p.cached) : 0;
}
const Written& Decoder::written(int64_t place) const {
  return impl_->at(place).written;
}

}  // namespace mt
