#include "cli/generator.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/stop_filter.h"

namespace mt::cli {
namespace {
using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}
}  // namespace

Generator::Generator(const Runtime& rt, const Model& model, const Tokenizer& tokenizer, Path path,
                     int64_t n_ctx, const KvTypes& types)
    : rt_(rt), model_(model), tokenizer_(tokenizer), path_(path), cache_(model, 1, n_ctx, types) {}

std::vector<int32_t> Generator::encode(const std::string& text) const {
  std::vector<int32_t> ids = tokenizer_.encode(text, true);
  bool wants_bos = tokenizer_.adds_bos() && tokenizer_.bos() >= 0;
  if (wants_bos && (ids.empty() || ids[0] != tokenizer_.bos()))
    ids.insert(ids.begin(), tokenizer_.bos());
  return ids;
}

MatrixBuffer Generator::run(const std::vector<int32_t>& ids, int64_t& n_run) {
  auto differ = std::mismatch(ids.begin(), ids.end(), cached_.begin(), cached_.end());
  // The last token runs in any case: its logits are wanted.
  int64_t known = std::min<int64_t>(differ.first - ids.begin(), std::ssize(ids) - 1);
  cache_.truncate(0, known);
  cached_.assign(ids.begin(), ids.begin() + known);
  n_run = std::ssize(ids) - known;
  constexpr int64_t kBatch = 256;
  Progress progress("reading the prompt", static_cast<uint64_t>(n_run));
  MatrixBuffer last(1, model_.d_model);
  while (std::ssize(cached_) < std::ssize(ids)) {
    int64_t n = std::min(kBatch, std::ssize(ids) - std::ssize(cached_));
    Chunk chunk{.sequence = 0, .tokens = std::span(ids).subspan(cached_.size(), size_t(n))};
    MatrixBuffer hidden = forward(rt_, model_, cache_, {&chunk, 1}, {.path = path_, .tap = {}});
    cached_.insert(cached_.end(), chunk.tokens.begin(), chunk.tokens.end());
    std::copy_n(hidden.row(n - 1), model_.d_model, last.row(0));
    progress.advance(static_cast<uint64_t>(n));
  }
  return last;
}

Generated Generator::generate(const std::vector<int32_t>& prompt, int64_t n_predict,
                              const SampleOptions& sampling, const std::vector<std::string>& stops,
                              const std::function<bool(std::string_view)>& show) {
  if (prompt.empty()) throw Error("the prompt is empty: give one with -p, -f or standard input");
  if (std::ssize(prompt) > n_ctx())
    throw_error("the prompt has {} tokens, the context holds {}: raise --ctx or shorten it",
                prompt.size(), n_ctx());
  Generated out;
  out.n_prompt = std::ssize(prompt);
  auto start = Clock::now();
  MatrixBuffer hidden = run(prompt, out.n_prompt_run);
  out.prompt_seconds = seconds_since(start);

  start = Clock::now();
  Sampler sampler(sampling);
  for (int32_t id : prompt) sampler.accept(id);
  Utf8Stream characters;
  StopFilter filter(stops);
  MatrixBuffer row(1, model_.n_vocab);
  auto emit = [&](const std::string& text) {
    if (text.empty()) return true;
    out.text += text;
    return show(text);
  };
  PollsInterrupt polls;
  while (out.finish.empty()) {
    if (interrupted())
      out.finish = "interrupted";
    else if (n_predict >= 0 && std::ssize(out.ids) >= n_predict)
      out.finish = "length";
    if (!out.finish.empty()) break;
    logits(rt_, model_, path_, hidden, row);
    int32_t id = sampler.draw({row.data(), static_cast<size_t>(model_.n_vocab)});
    sampler.accept(id);
    out.ids.push_back(id);
    if (tokenizer_.is_end(id)) {
      out.finish = "end";
      break;
    }
    bool wanted = emit(filter.push(characters.push(tokenizer_.piece(id, false))));
    if (filter.stopped())
      out.finish = "stop";
    else if (!wanted)
      out.finish = "interrupted";
    else if (std::ssize(cached_) >= n_ctx())
      out.finish = "context";
    if (!out.finish.empty()) break;
    Chunk chunk{.sequence = 0, .tokens = {&id, 1}};
    hidden = forward(rt_, model_, cache_, {&chunk, 1}, {.path = path_, .tap = {}});
    cached_.push_back(id);
  }
  emit(filter.push(characters.flush()));
  emit(filter.flush());
  out.seconds = seconds_since(start);
  return out;
}

}  // namespace mt::cli
