#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <random>
#include <sstream>

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
  std::string drafts = "none";
  int64_t draft_max = 7, draft_min = 0;
  bool has_draft_numbers = false;
  std::filesystem::path prompts;
  int64_t parallel = 4;
  SampleOptions sampling;
};

void without_final_newlines(std::string& text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
}

std::string read_all(std::istream& stream, const std::string& what) {
  constexpr size_t kMost = size_t{16} << 20;  // more than any context holds
  std::string text;
  for (char part[1 << 16]; stream.read(part, sizeof part) || stream.gcount() > 0;) {
    text.append(part, static_cast<size_t>(stream.gcount()));
    if (text.size() > kMost)
      throw_error("{}: expected prompts of at most {} MiB, found more", what, kMost >> 20);
  }
  return text;
}

// A file, a pipe, or "-" for standard input; without the byte order mark that editors put first.
std::string read_prompt_file(const std::filesystem::path& path) {
  std::string text;
  std::error_code none;
  if (path == "-") {
    text = read_all(std::cin, "standard input");
  } else if (std::filesystem::is_fifo(path, none) ||
             std::filesystem::is_character_file(path, none)) {
    std::ifstream pipe(path, std::ios::binary);
    if (!pipe) throw_error("{}: cannot be opened", path.string());
    text = read_all(pipe, path.string());
  } else {
    text = read_text_file(path);
  }
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  return text;
}

std::string read_prompt(const Options& options) {
  std::string text = options.prompt;
  if (!options.file.empty())
    text = read_prompt_file(options.file);
  else if (!options.has_prompt)
    text = read_prompt_file("-");
  else
    return text;
  // A text file ends with a newline that is not part of the question.
  if (!options.raw) without_final_newlines(text);
  return text;
}

double rate(int64_t n, double seconds) {
  return seconds > 0 ? double(n) / seconds : 0.0;
}

std::string drafts_kept(const Written& w) {
  if (w.n_drafted == 0) return "";
  return fmt::format("; {} of {} drafted tokens kept, in {} batches", w.n_accepted, w.n_drafted,
                     w.n_verified);
}

void show_stats(Context& context, const Generated& g) {
  context.flush();  // below the text
  const Written& w = g.written;
  const int64_t n = std::ssize(w.ids);
  write_error(fmt::format(
      "microtome: prompt {} tokens ({} run) in {:.2f} s, {:.1f} tokens/s; {} tokens in "
      "{:.2f} s, {:.1f} tokens/s{}; ended by {}\n",
      w.n_prompt, w.n_prompt_run, w.prompt_seconds, rate(w.n_prompt_run, w.prompt_seconds), n,
      w.seconds, rate(n, w.seconds), drafts_kept(w), g.finish));
}

Json to_json(const Generated& g, const Options& options) {
  const Written& w = g.written;
  Json out = {{"text", g.text},         {"ids", w.ids},
              {"finish", g.finish},     {"prompt_tokens", w.n_prompt},
              {"tokens", w.ids.size()}, {"prompt_seconds", w.prompt_seconds},
              {"seconds", w.seconds},   {"seed", options.sampling.seed},
              {"path", options.path}};
  if (options.drafts != "none")
    out["drafts"] = {{"type", options.drafts},
                     {"drafted", w.n_drafted},
                     {"accepted", w.n_accepted},
                     {"batches", w.n_verified}};
  return out;
}

DecoderOptions decoder_options(const Options& options) {
  const Path path = options.path == "exact" ? Path::exact : Path::fast;
  return {.path = path,
          .types = kv_types(options.kv, path),
          .drafts = options.drafts == "none" ? Drafts::none : Drafts::ngram,
          .draft_max = options.draft_max,
          .draft_min = options.draft_min};
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
  Chat(const TensorFile& file, const Tokenizer& tokenizer, int64_t n_ctx, const Options& options)
      : file_(file), tokenizer_(tokenizer), n_ctx_(n_ctx) {
    if (!options.system.empty()) messages_.push_back({"system", options.system});
    n_fixed_ = messages_.size();
  }

  void say(const std::string& role, const std::string& text) { messages_.push_back({role, text}); }

  // The conversation in ids. Where it leaves less than `room` tokens free the oldest question and
  // its answer are forgotten; `forgot` tells.
  std::vector<int32_t> ids(int64_t room, bool& forgot) {
    for (;;) {
      std::vector<int32_t> list = encode_prompt(tokenizer_, format_chat(file_, messages_));
      if (std::ssize(list) + room <= n_ctx_ || messages_.size() < n_fixed_ + 3) return list;
      forgot = true;
      auto oldest = messages_.begin() + static_cast<std::ptrdiff_t>(n_fixed_);
      messages_.erase(oldest, oldest + 2);
    }
  }

 private:
  const TensorFile& file_;
  const Tokenizer& tokenizer_;
  int64_t n_ctx_;
  std::vector<ChatMessage> messages_;
  size_t n_fixed_ = 0;
};

int converse(Context& context, const Model& model, const Tokenizer& tokenizer, Generator& generator,
             const Options& options) {
  Chat chat(*model.file, tokenizer, generator.n_ctx(), options);
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

// The conversation that a single question begins.
std::string asked(const Model& model, const Options& options, const std::string& question) {
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", question});
  return format_chat(*model.file, messages);
}

// A prompt as it was given; line: where it stands in the file of --prompts, from 1.
struct Given {
  std::string text;
  int64_t line = 0;
};

// One a line; blank lines do not count.
std::vector<Given> read_prompts(const std::filesystem::path& file) {
  std::vector<Given> list;
  std::istringstream lines(read_prompt_file(file));
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    without_final_newlines(line);
    if (line.find_first_not_of(" \t") != line.npos) list.push_back({line, number});
  }
  if (list.empty()) throw_error("{}: expected a prompt a line, found none", file.string());
  return list;
}

// Results in the order of the prompts, each under its line's number and its prompt.
int write_all(Context& context, Generator& generator, const std::vector<Prompt>& prompts,
              const std::vector<Given>& given, const Options& options) {
  Json all = Json::array();
  int64_t n_texts = 0, n_tokens = 0;
  Written total;  // tokens of all
  auto done = [&](size_t i, const Generated& g) {
    if (context.json) {
      Json document = {{"line", given[i].line}, {"prompt", given[i].text}};
      document.update(to_json(g, options));
      all.push_back(std::move(document));
    } else {
      context.print(fmt::format("{}==> {}: {} <==\n{}", i > 0 ? "\n" : "", given[i].line,
                                printable(given[i].text), g.text));
      if (!g.text.ends_with('\n')) context.print("\n");
      context.flush();
    }
    if (options.stats) show_stats(context, g);
    ++n_texts;
    n_tokens += std::ssize(g.written.ids);
    total.n_prompt += g.written.n_prompt;
    total.n_verified += g.written.n_verified;
    total.n_drafted += g.written.n_drafted;
    total.n_accepted += g.written.n_accepted;
    return context.json || !context.reader_gone();
  };
  const auto start = std::chrono::steady_clock::now();
  generator.generate_all(prompts, options.n_predict, options.sampling, options.stops, done);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  if (context.json) context.print_json(all);
  if (options.stats)  // the texts' own times overlap
    write_error(
        fmt::format("microtome: {} texts: prompts of {} tokens, {} tokens written, in {:.2f} s "
                    "together, {:.1f} tokens/s{}\n",
                    n_texts, total.n_prompt, n_tokens, took.count(), rate(n_tokens, took.count()),
                    drafts_kept(total)));
  if (!interrupted()) return exit_done;
  context.note(fmt::format("interrupted: {} of {} texts were begun, the last may be cut short",
                           n_texts, prompts.size()));
  return exit_interrupted;
}

// Positions that a text can use. Without an end the context is one that a machine holds: a model's
// own may be a million.
int64_t context_of(const Options& options, int64_t longest, int64_t n_prompt) {
  const bool endless = options.n_predict < 0;
  if (endless && options.n_ctx > 0) return options.n_ctx;
  const int64_t needed =
      endless ? std::max<int64_t>(4096, 2 * n_prompt) : n_prompt + options.n_predict;
  return std::min(needed, options.n_ctx > 0 ? options.n_ctx : longest);
}

void check_drafts(const Options& options) {
  if (options.has_draft_numbers && options.drafts == "none")
    throw Error("--draft-max and --draft-min need drafts: --spec-type ngram");
  if (options.draft_min > options.draft_max)
    throw_error("--draft-min: expected at most --draft-max, {}, found {}", options.draft_max,
                options.draft_min);
}

int run(Context& context, const Options& options) {
  check_drafts(options);
  DecoderOptions decoding = decoder_options(options);
  Model model = open_model(options.model);
  auto tokenizer = Tokenizer::open(*model.file);
  bool chats = !options.raw && model.file->find_meta("tokenizer.chat_template");
  int64_t longest = model.context_length > 0 ? model.context_length : 1 << 20;
  bool interactive = !options.has_prompt && options.file.empty() && options.prompts.empty() &&
                     ::isatty(STDIN_FILENO) == 1;

  if (interactive) {
    if (context.json) throw Error("--json needs a prompt: give one with -p, -f or standard input");
    if (!chats)
      throw Error("this model has no chat template to converse in: give a prompt with -p or -f");
    int64_t n_ctx = options.n_ctx > 0 ? options.n_ctx : std::min<int64_t>(longest, 4096);
    warn_beyond_training(context, model.context_length, n_ctx);
    decoding.n_ctx = n_ctx;
    Generator generator(context.runtime(), model, *tokenizer, decoding);
    return converse(context, model, *tokenizer, generator, options);
  }

  if (!chats && !options.system.empty())
    throw Error("--system needs a model with a chat template, and no --raw");
  const bool several = !options.prompts.empty();
  const std::vector<Given> given =
      several ? read_prompts(options.prompts) : std::vector<Given>{{.text = read_prompt(options)}};
  std::vector<Prompt> prompts;
  int64_t n_ctx = 0;
  for (const auto& [text, line] : given) {
    if (text.empty()) throw Error("the prompt is empty: give one with -p, -f or standard input");
    auto ids = encode_prompt(*tokenizer, chats ? asked(model, options, text) : text);
    const int64_t room = context_of(options, longest, std::ssize(ids));
    if (std::ssize(ids) > room)
      throw_error("{}the prompt has {} tokens, the context holds {}: {}",
                  several ? fmt::format("{}: line {}: ", options.prompts.string(), line) : "",
                  ids.size(), room, options.n_ctx > 0 ? "raise --ctx or shorten it" : "shorten it");
    n_ctx = std::max(n_ctx, room);
    prompts.push_back({std::move(ids), room});
  }
  if (!chats && !options.raw)
    context.note("the model has no chat template: the prompt is continued as plain text (--raw)");
  warn_beyond_training(context, model.context_length, options.n_ctx > 0 ? options.n_ctx : n_ctx);
  decoding.n_ctx = n_ctx;     // the cache is made for what is needed
  decoding.reuse = !several;  // each as it would be alone
  decoding.n_sequences = std::min(options.parallel, std::ssize(prompts));
  Generator generator(context.runtime(), model, *tokenizer, decoding);
  if (several) return write_all(context, generator, prompts, given, options);
  Generated g = generator.generate(prompts[0].ids, options.n_predict, options.sampling,
                                   options.stops, shower(context));
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
  auto* file = app.add_option("-f,--file", o->file, "Read the prompt from a file")
                   ->excludes(prompt)
                   ->type_name("FILE");
  auto* prompts = app.add_option("--prompts", o->prompts,
                                 "Write behind each line of a file, several at once, the results "
                                 "in order; --json: an array, each with its line and prompt")
                      ->excludes(prompt)
                      ->excludes(file)
                      ->type_name("FILE");
  app.add_option("--parallel", o->parallel, "Prompts that are written at once")
      ->needs(prompts)
      ->check(within(int64_t{1}, Decoder::kLikeSingle))
      ->type_name("N")
      ->capture_default_str();
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
      ->check(CLI::Validator(
          [](std::string& text) {
            return std::string(text.empty() ? "An empty text ends nothing" : "");
          },
          ""))
      ->type_name("TEXT");
  app.add_option("--path", o->path, "fast: quantised kernels; exact: f32 in a fixed order")
      ->check(CLI::IsMember({"fast", "exact"}))
      ->capture_default_str();
  declare_kv_types(app, o->kv);
  app.add_option("--spec-type", o->drafts,
                 "Draft tokens and look them over in one batch, where that is faster: none, or "
                 "ngram, what the text repeats of itself. The text is the same")
      ->check(CLI::IsMember({"none", "ngram"}))
      ->capture_default_str();
  auto* draft_max =
      app.add_option("--draft-max,--spec-draft-n-max", o->draft_max, "Drafted tokens at most")
          ->check(within(int64_t{1}, Decoder::kLikeSingle - 1))
          ->type_name("N")
          ->capture_default_str();
  auto* draft_min = app.add_option("--draft-min,--spec-draft-n-min", o->draft_min,
                                   "So many wherever there are any, faster or not")
                        ->check(within(int64_t{0}, Decoder::kLikeSingle - 1))
                        ->type_name("N")
                        ->capture_default_str();
  app.add_flag("--stats", o->stats, "Tokens a second, on standard error");
  return [o, prompt, draft_max, draft_min](Context& context) {
    o->has_prompt = prompt->count() > 0;
    o->has_draft_numbers = draft_max->count() + draft_min->count() > 0;
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
        "microtome generate model.gguf -f edit-this-code.txt --spec-type ngram --stats\n"
        "microtome generate model.gguf --prompts questions.txt --parallel 4 --json\n"
        "microtome generate model.gguf",
    .add = add};

}  // namespace mt::cli
