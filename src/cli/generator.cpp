#include "cli/generator.h"

#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/stop_filter.h"

namespace mt::cli {

// One text on its way from tokens to characters.
struct Generator::Text {
  Text(const std::vector<std::string>& stops, std::function<bool(std::string_view)> s)
      : filter(stops), show(std::move(s)) {}
  int64_t place = -1;
  Utf8Stream characters;
  StopFilter filter;
  std::function<bool(std::string_view)> show;
  std::string text;
  std::string finish;  // where the tokens say it

  bool emit(const std::string& part) {
    if (part.empty()) return true;
    text += part;
    return show(part);
  }
};

Generator::Generator(const Runtime& rt, const Model& model, const Tokenizer& tokenizer,
                     const DecoderOptions& options)
    : tokenizer_(tokenizer), n_ctx_(options.n_ctx), decoder_(rt, model, options) {}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text, true);
  bool wants_bos = tokenizer.adds_bos() && tokenizer.bos() >= 0;
  if (wants_bos && (ids.empty() || ids[0] != tokenizer.bos()))
    ids.insert(ids.begin(), tokenizer.bos());
  return ids;
}

void Generator::begin(Text& text, const std::vector<int32_t>& prompt, int64_t n_predict,
                      const SampleOptions& sampling, int64_t n_ctx) {
  if (prompt.empty()) throw Error("the prompt is empty: give one with -p, -f or standard input");
  if (std::ssize(prompt) > n_ctx_)
    throw_error("the prompt has {} tokens, the context holds {}: raise --ctx or shorten it",
                prompt.size(), n_ctx_);
  auto on_token = [&](int32_t id) {
    if (tokenizer_.is_end(id)) {
      text.finish = "end";
      return false;
    }
    const bool wanted =
        text.emit(text.filter.push(text.characters.push(tokenizer_.piece(id, false))));
    if (text.filter.stopped())
      text.finish = "stop";
    else if (!wanted)
      text.finish = "interrupted";
    return text.finish.empty();
  };
  text.place = decoder_.join(prompt, sampling, n_predict, on_token, n_ctx);
}

Generated Generator::end(Text& text) {
  text.emit(text.filter.push(text.characters.flush()));
  text.emit(text.filter.flush());
  Generated out{.text = text.text, .finish = text.finish, .written = decoder_.written(text.place)};
  if (out.finish.empty()) switch (out.written.finish) {
      case Finish::length:
        out.finish = "length";
        break;
      case Finish::context:
        out.finish = "context";
        break;
      case Finish::stopped:
      case Finish::none:
        out.finish = "interrupted";
        break;
    }
  return out;
}

Generated Generator::generate(const std::vector<int32_t>& prompt, int64_t n_predict,
                              const SampleOptions& sampling, const std::vector<std::string>& stops,
                              const std::function<bool(std::string_view)>& show) {
  Text text(stops, show);
  begin(text, prompt, n_predict, sampling);
  {
    int64_t left = decoder_.prompt_left(text.place);
    Progress progress("reading the prompt", static_cast<uint64_t>(left));
    while (left > 0) {
      decoder_.step();
      const int64_t now = decoder_.prompt_left(text.place);
      progress.advance(static_cast<uint64_t>(left - now));
      left = now;
    }
  }
  PollsInterrupt polls;
  while (!interrupted() && decoder_.step()) {
  }
  decoder_.leave(text.place);
  return end(text);
}

void Generator::generate_all(const std::vector<Prompt>& prompts, int64_t n_predict,
                             const SampleOptions& sampling, const std::vector<std::string>& stops,
                             const std::function<bool(size_t index, const Generated&)>& done) {
  struct Job {
    std::unique_ptr<Text> text;  // while it is being written
    std::optional<Generated> result;
  };
  std::vector<Job> jobs(prompts.size());
  size_t next = 0, shown = 0;
  PollsInterrupt polls;
  for (bool wanted = true; wanted && shown < jobs.size();) {
    for (; next < jobs.size() && decoder_.n_free() > 0; ++next) {
      jobs[next].text = std::make_unique<Text>(stops, [](std::string_view) { return true; });
      begin(*jobs[next].text, prompts[next].ids, n_predict, sampling, prompts[next].n_ctx);
    }
    decoder_.step();
    const bool stop = interrupted();
    for (size_t i = shown; i < next; ++i) {
      Job& job = jobs[i];
      if (!job.text) continue;
      if (stop) decoder_.leave(job.text->place);
      if (decoder_.active(job.text->place)) continue;
      job.result = end(*job.text);
      job.text.reset();
    }
    for (; wanted && shown < next && jobs[shown].result; ++shown)
      wanted = done(shown, *std::exchange(jobs[shown].result, std::nullopt));
    wanted = wanted && !stop;
  }
  for (Job& job : jobs)
    if (job.text) decoder_.leave(job.text->place);
}

}  // namespace mt::cli
