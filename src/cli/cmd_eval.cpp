#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/kv_options.h"
#include "cli/session_options.h"
#include "file/model_hash.h"
#include "measure/eval.h"
#include "measure/qa.h"
#include "model/open.h"
#include "text/corpus.h"
#include "text/tokenizer.h"

namespace mt::cli {
namespace {

struct Options {
  std::string model, text, against, qa, separator = "\\nAnswer: ", logits, path = "exact",
                                        base_path;
  int64_t n_ctx = 512, n_windows = 0, limit = 0;
  double max_kl = -1;
  uint64_t seed = 1;
  bool force = false;
  KvOptions kv;
};

void check_same_tokens(const Model& model, const Model& base) {
  const auto* a = model.file->get_strings("tokenizer.ggml.tokens");
  const auto* b = base.file->get_strings("tokenizer.ggml.tokens");
  if (a && b && *a != *b)
    throw_error("{}: cannot be compared with {}: their tokens differ", model.file->path,
                base.file->path);
}

Json to_json(const Comparison& c, bool against) {
  const auto estimate = [&](const Estimate& e) {  // an interval only where it holds
    const bool holds = c.intervals_hold();
    return Json{{"value", e.value},
                {"low", holds ? Json(e.low) : Json()},
                {"high", holds ? Json(e.high) : Json()}};
  };
  Json out = {{"corpus", c.corpus},
              {"corpus_sha256", c.corpus_sha256},
              {"n_ctx", c.n_ctx},
              {"windows", c.n_windows},
              {"tokens", c.n_tokens},
              {"path", c.path},
              {"intervals_hold", c.intervals_hold()},
              {"perplexity", estimate(c.perplexity)}};
  out["perplexity"]["standard_error"] = c.perplexity_se;
  if (!against) return out;
  out["base_perplexity"] = estimate(c.base_perplexity);
  out["base_perplexity"]["standard_error"] = c.base_perplexity_se;
  out["kl"] = {{"mean", estimate(c.kl_mean)}, {"median", estimate(c.kl_median)},
               {"p90", estimate(c.kl_p90)},   {"p99", estimate(c.kl_p99)},
               {"p999", estimate(c.kl_p999)}, {"max", estimate(c.kl_max)}};
  out["kl"]["mean"]["standard_error"] = c.kl_se;
  out["same_top"] = estimate(c.same_top);
  out["delta_p"] = {{"mean", estimate(c.dp_mean)}, {"rms", estimate(c.dp_rms)}};
  return out;
}

Json to_json(const QaResult& r) {
  auto one = [](const Accuracy& a) {
    return Json{{"value", a.value}, {"standard_error", a.standard_error}};
  };
  return {{"questions", r.n_questions},
          {"shortened", r.n_shortened},
          {"accuracy", one(r.raw)},
          {"accuracy_per_byte", one(r.normalised)}};
}

// base_path: the base's, where it was named.
std::string table(const Context& context, const Comparison& c, bool against,
                  const std::string& base_path) {
  const std::string base = base_path.empty() ? "" : fmt::format(", base {} path", base_path);
  std::string out =
      wrapped("",
              fmt::format("{}: {} window{} of {} tokens, {} tokens scored, {} path{}",
                          printable(c.corpus), c.n_windows, c.n_windows == 1 ? "" : "s", c.n_ctx,
                          grouped(c.n_tokens), c.path, base),
              context.out.is_terminal ? context.out.width() : 0, 2) +
      "\n";
  // Tokens of a window are not independent: the interval, drawn over windows, is the safer one.
  Table t({{""},
           {"value", Table::Align::right},
           {"± s.e.", Table::Align::right},
           {"95 %", Table::Align::right}});
  auto row = [&](const char* label, const Estimate& e, const char* form, double scale = 1,
                 double se = -1) {
    auto f = [&](double x) {
      return std::abs(x) < 1e6 ? fmt::format(fmt::runtime(form), x * scale)
                               : fmt::format("{:.2e}", x * scale);
    };
    t.row({label, f(e.value), se < 0 ? "" : f(se),
           c.intervals_hold() ? "[" + f(e.low) + ", " + f(e.high) + "]" : "–"});
  };
  if (against) row("perplexity, base", c.base_perplexity, "{:.4f}", 1, c.base_perplexity_se);
  row("perplexity", c.perplexity, "{:.4f}", 1, c.perplexity_se);
  if (against) {
    row("KL mean", c.kl_mean, "{:.6f}", 1, c.kl_se);
    row("  median", c.kl_median, "{:.6f}");
    row("  90 %", c.kl_p90, "{:.5f}");
    row("  99 %", c.kl_p99, "{:.5f}");
    row("  99.9 %", c.kl_p999, "{:.4f}");
    row("  largest", c.kl_max, "{:.4f}");
    row("same top, %", c.same_top, "{:.2f}", 100);
    row("Δp mean, %", c.dp_mean, "{:.3f}", 100);
    row("  RMS, %", c.dp_rms, "{:.3f}", 100);
  }
  out += t.text(context.out.is_terminal ? context.out.width() : 0, context.out.colour);
  out += "\n";
  if (against)
    out += folded(context,
                  "KL(base || model) in nats a token; same top: both have the same most "
                  "likely token; Δp: change of the true token's probability");
  out += folded(context, c.intervals_hold()
                             ? "s.e.: of the mean over tokens, as if they were independent; 95 %: "
                               "interval by bootstrap over windows"
                             : fmt::format("s.e.: of the mean over tokens, as if they were "
                                           "independent; no intervals: they need {} windows",
                                           Comparison::kLeastWindows));
  return out;
}

std::string table(const Context& context, const QaResult& r, const std::string& name) {
  Table t({{""}, {"accuracy, %", Table::Align::right}, {"± s.e.", Table::Align::right}});
  auto row = [&](const char* label, const Accuracy& a) {
    t.row({label, fmt::format("{:.2f}", 100 * a.value),
           fmt::format("{:.2f}", 100 * a.standard_error)});
  };
  row("by log-likelihood", r.raw);
  row("by log-likelihood a byte", r.normalised);
  return fmt::format("{}: {} questions\n\n", printable(name), r.n_questions) +
         t.text(context.out.is_terminal ? context.out.width() : 0, context.out.colour);
}

void write_logits(const Runtime& rt, const Model& model, const Windows& windows, Path path,
                  const KvTypes& types, const Options& options) {
  check_output(options.logits, options.model, options.force);
  check_distinct({{"--logits", options.logits},
                  {"--text", options.text},
                  {"--against", options.against},
                  {"--qa", options.qa}});
  AtomicFile file(options.logits);
  Progress progress("writing logits", windows.size());
  for (const auto& window : windows) {
    window_logits(
        rt, model, window, path,
        [&](ConstMatrix rows) {
          file.write(
              std::as_bytes(std::span(rows.data, static_cast<size_t>(rows.rows * rows.cols))));
        },
        types);
    progress.advance();
  }
  file.commit();
}

// "\n" and "\t" as two characters become what they stand for; shells do not pass them easily.
std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    char next = text[i] == '\\' && i + 1 < text.size() ? text[i + 1] : 0;
    if (next == 'n' || next == 't' || next == '\\') {
      out += next == 'n' ? '\n' : next == 't' ? '\t' : '\\';
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

int run(Context& context, const Options& options) {
  if (options.text.empty() && options.qa.empty())
    throw Error("nothing to measure: give a text with --text or questions with --qa");
  if (options.text.empty() && (!options.against.empty() || !options.logits.empty()))
    throw Error("--against and --logits need a --text to run on");
  if (!options.base_path.empty() && options.against.empty())
    throw Error("--against-path needs a model to compare with: --against BASE");
  if (options.max_kl >= 0 && options.against.empty())
    throw Error("--max-kl needs a model to compare with: --against BASE");
  Path path = options.path == "fast" ? Path::fast : Path::exact;
  const KvTypes types = kv_types(options.kv, path);
  Model model = open_model(options.model);
  std::map<std::string, std::string> states;  // of the files measured
  states[options.model] = model_state(options.model);
  auto tokenizer = Tokenizer::open(*model.file);
  bool against = !options.against.empty();
  Json out = {{"model", options.model}};
  if (path == Path::fast) out["cache"] = kv_name(types);
  std::string text;
  int code = exit_done;

  if (!options.text.empty()) {
    std::optional<Model> base;
    std::optional<Path> base_path;
    if (against) {
      base = open_model(options.against);
      states[options.against] = model_state(options.against);
      check_same_tokens(model, *base);
      out["against"] = options.against;
      if (!options.base_path.empty()) {
        base_path = options.base_path == "fast" ? Path::fast : Path::exact;
        out["against_path"] = options.base_path;
      }
      if (path == Path::fast || base_path) out["against_cache"] = kv_name(base_kv_types(base_path));
    }
    TokenWindows text_windows = windows_of_text(*tokenizer, read_text_file(options.text),
                                                options.text, options.n_ctx, options.n_windows);
    warn_beyond_training(context, model.context_length, options.n_ctx);
    Windows windows;
    for (int64_t w = 0; w < text_windows.count(); ++w) {
      auto ids = text_windows.window(w);
      windows.emplace_back(ids.begin(), ids.end());
    }
    const Runtime& rt = context.runtime();
    if (!options.logits.empty()) write_logits(rt, model, windows, path, types, options);
    EvalOptions eval;
    eval.path = path;
    eval.base_path = base_path;
    eval.kv_types = types;
    eval.seed = options.seed;
    eval.label = against ? "measuring both models" : "measuring perplexity";
    Comparison c =
        base ? compare(rt, *base, model, windows, eval) : perplexity(rt, model, windows, eval);
    c.corpus = std::filesystem::path(options.text).filename().string();
    c.corpus_sha256 = text_windows.sha256;
    out.update(to_json(c, against));
    text += table(context, c, against, options.base_path);
    if (options.max_kl >= 0) {
      bool holds = c.kl_mean.value <= options.max_kl;
      out["max_kl"] = {{"bound", options.max_kl}, {"holds", holds}};
      text += fmt::format("\nmean KL {:.6f} is {} the bound of {}\n", c.kl_mean.value,
                          holds ? "within" : "above", options.max_kl);
      if (!holds) code = exit_check_failed;
    }
  }
  if (!options.qa.empty()) {
    std::vector<Question> questions = read_questions(options.qa).questions;
    if (options.limit > 0 && std::ssize(questions) > options.limit)
      questions.resize(static_cast<size_t>(options.limit));
    QaResult r = answer_questions(
        context.runtime(), model, *tokenizer, questions,
        {.path = path, .kv_types = types, .separator = unescape(options.separator)});
    if (r.n_shortened > 0)
      context.note(
          fmt::format("{} of {} questions are longer than the model's context of {} tokens and "
                      "lost their beginning",
                      r.n_shortened, r.n_questions, model.context_length));
    out["qa"] = to_json(r);
    out["qa"]["file"] = options.qa;
    text += (text.empty() ? "" : "\n") + table(context, r, options.qa);
  }
  for (const auto& [file, state] : states)
    if (model_state(file) != state)
      throw_error("{}: was written to while it was being measured; run again", file);
  if (context.json)
    context.print_json(out);
  else
    context.print(text);
  return code;
}

Run add(CLI::App& app) {
  auto o = std::make_shared<Options>();
  declare_model(app, o->model);
  auto* text =
      app.add_option("--text", o->text, "Measure perplexity on this plain text")->type_name("FILE");
  app.add_option("--against", o->against,
                 "Compare with this model (the original): KL divergence and agreement on --text")
      ->type_name("BASE");
  app.add_option("--n-ctx", o->n_ctx, "Tokens a window; its second half is scored")
      ->check(within(int64_t{4}, int64_t{1} << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--windows", o->n_windows, "Only the first N windows (default: all)")
      ->needs(text)
      ->check(within(int64_t{1}, int64_t{1} << 40))
      ->type_name("N");
  app.add_option("--path", o->path, "exact: f32 in a fixed order; fast: quantised kernels")
      ->check(CLI::IsMember({"exact", "fast"}))
      ->capture_default_str();
  app.add_option("--against-path", o->base_path,
                 "That of the model compared with, with its default cache (default: the same path, "
                 "cache in F32); with the same file twice, the distance between the paths")
      ->check(CLI::IsMember({"exact", "fast"}));
  declare_kv_types(app, o->kv);
  app.add_option("--max-kl", o->max_kl, "Exit with 1 where the mean KL exceeds this")
      ->check(within(0.0, 1e9))
      ->type_name("NATS");
  auto* qa =
      app.add_option(
             "--qa", o->qa,
             "Score multiple-choice questions by log-likelihood: JSON lines of query, choices, "
             "gold; or TruthfulQA's array of question and mc1_targets")
          ->type_name("FILE");
  app.add_option("--qa-separator", o->separator, "Between question and choice")
      ->needs(qa)
      ->type_name("TEXT")
      ->capture_default_str();
  app.add_option("--limit", o->limit, "Only the first N questions (default: all)")
      ->needs(qa)
      ->check(within(int64_t{1}, int64_t{1} << 40))
      ->type_name("N");
  app.add_option("--logits", o->logits,
                 "Write all logits as raw f32 [windows, n_ctx, n_vocab], for checks")
      ->type_name("OUT.f32");
  app.add_option("--seed", o->seed, "Of the intervals' bootstrap")
      ->check(seed_number())
      ->type_name("N")
      ->capture_default_str();
  app.add_flag("--force", o->force, "Overwrite an existing --logits file");
  return [o](Context& context) { return run(context, *o); };
}

}  // namespace

const Command eval_command = {
    .name = "eval",
    .summary = "Measure a model: perplexity, distance to its original, questions",
    .examples =
        "microtome eval model.gguf --text wiki.test.raw\n"
        "microtome eval small.gguf --against model.gguf --text wiki.test.raw --windows 64\n"
        "microtome eval small.gguf --against model.gguf --text t.txt --max-kl 0.05\n"
        "microtome eval model.gguf --qa arc_easy.jsonl --limit 200",
    .add = add};

}  // namespace mt::cli
