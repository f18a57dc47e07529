#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <iterator>
#include <optional>
#include <random>

#include "base/error.h"
#include "base/files.h"
#include "cli/command.h"
#include "cli/generator.h"
#include "cli/kv_options.h"
#include "model/open.h"
#include "text/chat.h"

namespace mt::cli {
namespace {

struct Options {
  std::string model, prompt, file, system;
  bool has_prompt = false;
  bool raw = false, stats = false;
  int64_t n_predict = 256;  // negative: until the text ends or the context is full
  int64_t n_ctx = 0;
  std::vector<std::string> stops;
  std::string path = "fast";
  KvOptions kv;
  SampleOptions sampling;
};

void without_final_newlines(std::string& text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
}

std::string read_standard_input() {
  constexpr size_t kMost = size_t{16} << 20;  // more than any context holds
  std::string text;
  for (char part[1 << 16]; std::cin.read(part, sizeof part) || std::cin.gcount() > 0;) {
    text.append(part, static_cast<size_t>(std::cin.gcount()));
    if (text.size() > kMost)
      throw_error("standard input: expected a prompt of at most {} MiB, found more", kMost >> 20);
  }
  return text;
}

std::string read_prompt(const Options& options) {
  std::string text = options.prompt;
  if (!options.file.empty())
    text = read_text_file(options.file);
  else if (!options.has_prompt)
    text = read_standard_input();
  else
    return text;
  // A text file ends with a newline that is not part of the question.
  if (!options.raw) without_final_newlines(text);
  return text;
}

void show_stats(Context& context, const Generated& g) {
  context.flush();  // below the text
  auto rate = [](double n, double seconds) { return seconds > 0 ? n / seconds : 0.0; };
  auto n = static_cast<int64_t>(g.ids.size());
  write_error(fmt::format(
      "microtome: prompt {} tokens ({} run) in {:.2f} s, {:.1f} tokens/s; {} tokens in "
      "{:.2f} s, {:.1f} tokens/s; ended by {}\n",
      g.n_prompt, g.n_prompt_run, g.prompt_seconds, rate(double(g.n_prompt_run), g.prompt_seconds),
      n, g.seconds, rate(double(n), g.seconds), g.finish));
}

Json to_json(const Generated& g, const Options& options) {
  return {{"text", g.text},         {"ids", g.ids},
          {"finish", g.finish},     {"prompt_tokens", g.n_prompt},
          {"tokens", g.ids.size()}, {"prompt_seconds", g.prompt_seconds},
          {"seconds", g.seconds},   {"seed", options.sampling.seed},
          {"path", options.path}};
}

// Streams to standard output; with --json nothing until the end.
std::function<bool(std::string_view)> shower(Context& context) {
  return [&context](std::string_view text) {
    if (context.json) return true;
    context.print(text);
    context.flush();
    return !context.reader_gone();
  };
}

class Chat {
 public:
  Chat(const TensorFile& file, const Generator& generator, const Options& options)
      : file_(file), generator_(generator) {
    if (!options.system.empty()) messages_.push_back({"system", options.system});
    n_fixed_ = messages_.size();
  }

  void say(const std::string& role, const std::string& text) { messages_.push_back({role, text}); }

  // The conversation in ids. Where it leaves less than `room` tokens free the oldest question and
  // its answer are forgotten; `forgot` tells.
  std::vector<int32_t> ids(int64_t room, bool& forgot) {
    for (;;) {
      std::vector<int32_t> list = generator_.encode(format_chat(file_, messages_));
      if (std::ssize(list) + room <= generator_.n_ctx() || messages_.size() < n_fixed_ + 3)
        return list;
      forgot = true;
      auto oldest = messages_.begin() + static_cast<std::ptrdiff_t>(n_fixed_);
      messages_.erase(oldest, oldest + 2);
    }
  }

 private:
  const TensorFile& file_;
  const Generator& generator_;
  std::vector<ChatMessage> messages_;
  size_t n_fixed_ = 0;
};

int converse(Context& context, const Model& model, Generator& generator, const Options& options) {
  Chat chat(*model.file, generator, options);
  context.note("an empty line or Ctrl-D ends the conversation, Ctrl-C an answer");
  for (std::string line;;) {
    if (context.out.is_terminal) context.print(context.out.colour ? "\x1b[1m> \x1b[0m" : "> ");
    context.flush();
    if (!std::getline(std::cin, line) || line.empty() || context.reader_gone()) break;
    chat.say("user", line);
    bool forgot = false;
    const int64_t room = options.n_predict < 0 ? generator.n_ctx() / 2 : options.n_predict;
    std::vector<int32_t> ids = chat.ids(std::min(room, generator.n_ctx() / 2), forgot);
    if (forgot) context.note("the context is full: the oldest question and answer are forgotten");
    Generated g = generator.generate(ids, options.n_predict, options.sampling, options.stops,
                                     shower(context));
    clear_interrupt();
    context.print("\n");
    chat.say("assistant", g.text);
    if (options.stats) show_stats(context, g);
  }
  if (context.out.is_terminal) context.print("\n");
  return exit_done;
}

int run(Context& context, const Options& options) {
  Path path = options.path == "exact" ? Path::exact : Path::fast;
  const KvTypes types = kv_types(options.kv, path);
  Model model = open_model(options.model);
  auto tokenizer = Tokenizer::open(*model.file);
  bool chats = !options.raw && model.file->find_meta("tokenizer.chat_template");
  int64_t longest = model.context_length > 0 ? model.context_length : 1 << 20;
  bool interactive = !options.has_prompt && options.file.empty() && ::isatty(STDIN_FILENO) == 1;

  if (interactive) {
    if (context.json) throw Error("--json needs a prompt: give one with -p, -f or standard input");
    if (!chats)
      throw Error("this model has no chat template to converse in: give a prompt with -p or -f");
    int64_t n_ctx = options.n_ctx > 0 ? options.n_ctx : std::min<int64_t>(longest, 4096);
    warn_beyond_training(context, model, n_ctx);
    Generator generator(context.runtime(), model, *tokenizer, path, n_ctx, types);
    return converse(context, model, generator, options);
  }

  if (!chats && !options.system.empty())
    throw Error("--system needs a model with a chat template, and no --raw");
  std::string text = read_prompt(options);
  if (text.empty()) throw Error("the prompt is empty: give one with -p, -f or standard input");
  if (!chats && !options.raw)
    context.note("the model has no chat template: the prompt is continued as plain text (--raw)");
  if (chats) {
    std::vector<ChatMessage> messages;
    if (!options.system.empty()) messages.push_back({"system", options.system});
    messages.push_back({"user", text});
    text = format_chat(*model.file, messages);
  }
  // Counted by a generator of no size: the cache is made for what is needed.
  auto ids = Generator(context.runtime(), model, *tokenizer, path, 1, types).encode(text);
  // Without an end the context is one that a machine holds: a model's own may be a million.
  int64_t needed = options.n_predict < 0 ? std::max<int64_t>(4096, 2 * std::ssize(ids))
                                         : std::ssize(ids) + options.n_predict;
  if (options.n_predict < 0 && options.n_ctx > 0) needed = options.n_ctx;
  int64_t n_ctx = options.n_ctx > 0 ? options.n_ctx : std::min(longest, needed);
  warn_beyond_training(context, model, n_ctx);
  Generator generator(context.runtime(), model, *tokenizer, path, std::min(n_ctx, needed), types);
  if (std::ssize(ids) > n_ctx)
    throw_error("the prompt has {} tokens, the context holds {}: {}", ids.size(), n_ctx,
                options.n_ctx > 0 ? "raise --ctx or shorten it" : "shorten it");
  Generated g =
      generator.generate(ids, options.n_predict, options.sampling, options.stops, shower(context));
  if (context.json)
    context.print_json(to_json(g, options));
  else if (!g.text.ends_with('\n'))
    context.print("\n");
  if (options.stats) show_stats(context, g);
  return interrupted() ? exit_interrupted : exit_done;
}

Run add(CLI::App& app) {
  auto o = std::make_shared<Options>();
  SampleOptions& s = o->sampling;
  declare_model(app, o->model);
  auto* prompt =
      app.add_option("-p,--prompt", o->prompt, "The question, or with --raw the start of the text");
  app.add_option("-f,--file", o->file, "Read the prompt from a file")
      ->excludes(prompt)
      ->type_name("FILE");
  app.add_option("--system", o->system, "What the model is told before the conversation");
  app.add_flag("--raw", o->raw, "Continue the plain text, without the model's chat format");
  app.add_option("-n,--n-predict,--predict", o->n_predict,
                 "Tokens at most; -1: until the text ends or the context is full")
      ->check(within(int64_t{-1}, int64_t{1} << 30))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("-c,--ctx,--ctx-size", o->n_ctx,
                 "Context length (default: what is needed; 4096 in a chat and with -n -1)")
      ->check(within(int64_t{1}, int64_t{1} << 24))
      ->type_name("N");
  app.add_option("--temp", s.temperature, "Temperature; 0 takes the most likely token")
      ->check(within(0.0, 1000.0))
      ->type_name("T")
      ->capture_default_str();
  app.add_option("--top-k", s.top_k, "Draw from the K most likely; 0: all")
      ->check(within(int64_t{0}, int64_t{1} << 31))
      ->type_name("K")
      ->capture_default_str();
  app.add_option("--top-p", s.top_p, "Draw from the fewest tokens that hold this share; 1: all")
      ->check(within(0.0, 1.0))
      ->type_name("P")
      ->capture_default_str();
  app.add_option("--min-p", s.min_p, "Drop tokens below this share of the likeliest; 0: none")
      ->check(within(0.0, 1.0))
      ->type_name("P")
      ->capture_default_str();
  app.add_option("--repeat-penalty", s.repeat_penalty, "Makes recent tokens less likely; 1: off")
      ->check(within(0.01, 100.0))
      ->type_name("R")
      ->capture_default_str();
  app.add_option("--repeat-last", s.repeat_last, "Tokens that are recent; -1: all")
      ->check(within(int64_t{-1}, int64_t{1} << 24))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("-s,--seed", s.seed, "Same seed, same text; -1: another one each time")
      ->check(seed_number("-1"))
      ->transform(CLI::Validator(
          [](std::string& text) {
            if (text == "-1") text = std::to_string(std::random_device{}());
            return std::string();
          },
          ""))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--stop", o->stops, "End before this text (may be given several times)")
      ->take_all()
      ->expected(1)
      ->type_name("TEXT");
  app.add_option("--path", o->path, "fast: quantised kernels; exact: f32 in a fixed order")
      ->check(CLI::IsMember({"fast", "exact"}))
      ->capture_default_str();
  declare_kv_types(app, o->kv);
  app.add_flag("--stats", o->stats, "Tokens a second, on standard error");
  return [o, prompt](Context& context) {
    o->has_prompt = prompt->count() > 0;
    return run(context, *o);
  };
}

}  // namespace

const Command generate_command = {
    .name = "generate",
    .summary = "Let a model write: an answer, a text, a conversation",
    .examples =
        "microtome generate model.gguf -p 'What is a microtome?'\n"
        "microtome generate model.gguf --raw -p 'Once upon a time' --temp 0 -n 64\n"
        "echo 'Name three rivers.' | microtome generate model.gguf --json\n"
        "microtome generate model.gguf",
    .add = add};

}  // namespace mt::cli
