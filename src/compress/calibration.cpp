#include "compress/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/files.h"
#include "flow/json_fields.h"
#include "measure/self_text.h"
#include "run/kv_store.h"
#include "text/corpus.h"

namespace mt {
namespace {

std::vector<float> as_floats(const std::vector<int32_t>& ids) {  // exact below 2^24
  return {ids.begin(), ids.end()};
}
std::vector<int32_t> as_ids(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

constexpr int64_t kCacheBytes = int64_t{384} << 20;  // of the sequences that are written at once

// What the model writes, kept in the selected run of the measurement file.
Windows kept_self_text(const Runtime& rt, const Model& model, const Tokenizer& tokenizer,
                       const SelfTextSettings& settings, Measurements& db, int64_t first,
                       int64_t n) {
  Windows sequences;
  // In groups, whose cache has a bound: a killed run loses at most one.
  const int64_t group = std::clamp<int64_t>(
      kCacheBytes / std::max<int64_t>(1, kv_bytes_a_position(model, {}) * settings.n_tokens), 4,
      64);
  auto place = [](int64_t i) { return fmt::format("sequence {}", i); };
  for (const int64_t end = first + n; first < end; first += group) {
    const int64_t count = std::min(group, end - first);
    if (!db.vector(place(first + count - 1), "tokens")) {
      auto text = sample_self_text(rt, model, tokenizer, settings, first, count);
      db.begin();
      for (int64_t i = 0; i < count; ++i)
        db.put(place(first + i), "tokens", as_floats(text[static_cast<size_t>(i)]));
      db.commit();
    }
    for (int64_t i = first; i < first + count; ++i) {
      auto tokens = db.vector(place(i), "tokens");
      if (!tokens || std::ssize(*tokens) != settings.n_tokens ||
          !std::all_of(tokens->begin(), tokens->end(),
                       [&](float id) { return id >= 0 && id < float(model.n_vocab); }))
        throw_error("{}: '{}' is damaged; delete the file or name another with --db",
                    db.path().string(), place(i));
      sequences.push_back(as_ids(*tokens));
    }
  }
  return sequences;
}

constexpr int64_t kMostRefined = 96;  // windows that are sampled to refine on

struct Counts {
  int64_t windows, proof, n_ctx;
};

// Sequences first .. first+n-1, in the selected run.
using Sampler = std::function<Windows(int64_t first, int64_t n)>;

Calibration sample_calibration(const std::string& model_sha256, const CalibrationSettings& settings,
                               Counts n, Measurements& db, const Sampler& sample) {
  const std::string what = fmt::format("sampled from the model: seed {}, {} sequences of {} tokens",
                                       settings.seed, n.windows + n.proof, n.n_ctx);
  Calibration c{.name = calibration_name(settings),
                .sha256 = sha256_hex(what),
                .windows = {},
                .proof = {},
                .aim = {},
                .aim_name = {},
                .refine = {}};
  db.select_run(model_sha256, c.sha256, what);
  c.windows = sample(0, n.windows + n.proof);
  c.proof.assign(c.windows.begin() + n.windows, c.windows.end());
  c.windows.resize(static_cast<size_t>(n.windows));
  if (settings.refine_steps > 0) {
    c.refine = c.windows;
    // What refinement sees again teaches it less than what is new.
    const int64_t wanted = std::min(settings.refine_steps, kMostRefined);
    if (const int64_t more = wanted - n.windows; more > 0) {
      db.select_run(model_sha256, c.sha256, what + ", and those to refine on");
      const Windows others = sample(n.windows + 2 * n.proof, more);
      c.refine.insert(c.refine.end(), others.begin(), others.end());
    }
  }
  if (!settings.aims) return c;
  // In a run of their own: the other goals' measurements stay valid.
  db.select_run(model_sha256, c.sha256, what + ", and those to plan against");
  c.aim = sample(n.windows + n.proof, n.proof);
  c.aim_name = "windows of text sampled from the model, none of them the proof's";
  return c;
}

Calibration read_calibration(const Tokenizer& tokenizer, const CalibrationSettings& settings,
                             Counts n) {
  std::vector<TextSource> sources;
  Calibration c;
  c.name = calibration_name(settings);
  for (const auto& text : settings.texts) sources.push_back(parse_text_source(text));
  const auto all = windows_of_files(tokenizer, sources, n.n_ctx);
  // Evenly over the whole text; of the windows taken, the proof's evenly among them.
  const int64_t taken = std::min(all.count(), n.windows + n.proof);
  if (taken < 2)
    throw_error(
        "--text: {} tokens give {} windows of {}: expected at least 2; give more text or a "
        "smaller --n-ctx",
        all.tokens.size(), all.count(), n.n_ctx);
  const int64_t proof = std::max<int64_t>(1, taken * n.proof / (n.windows + n.proof));
  std::vector<bool> free(static_cast<size_t>(all.count()), true);  // to refine on
  std::vector<bool> unused = free;
  for (int64_t i = 0; i < taken; ++i) {
    const int64_t at = i * all.count() / taken;
    auto window = all.window(at);
    const bool held_out = (i + 1) * proof / taken > i * proof / taken;
    (held_out ? c.proof : c.windows).emplace_back(window.begin(), window.end());
    if (held_out) free[static_cast<size_t>(at)] = false;
    unused[static_cast<size_t>(at)] = false;
  }
  // n of those marked, evenly apart; all of them where there are fewer.
  auto take = [&](const std::vector<bool>& marked, int64_t count, Windows& to) {
    std::vector<int64_t> others, chosen;
    for (int64_t i = 0; i < all.count(); ++i)
      if (marked[static_cast<size_t>(i)]) others.push_back(i);
    count = std::min(count, std::ssize(others));
    for (int64_t i = 0; i < count; ++i) {
      chosen.push_back(others[static_cast<size_t>(i * std::ssize(others) / count)]);
      auto window = all.window(chosen.back());
      to.emplace_back(window.begin(), window.end());
    }
    return chosen;
  };
  if (settings.aims) {
    c.aim_name = "windows of " + c.name + ", none of them the proof's";
    for (int64_t i : take(unused, proof, c.aim)) free[static_cast<size_t>(i)] = false;
    if (std::ssize(c.aim) < proof) {  // the text is used up
      c.aim = c.windows;
      c.aim_name = "calibration windows of " + c.name;
    }
  }
  take(free, settings.refine_steps, c.refine);
  std::string weights;
  for (const auto& source : sources) weights += fmt::format(" {}", source.weight);
  c.sha256 = sha256_hex(all.sha256 + weights);
  return c;
}

}  // namespace

int64_t n_proof_windows(const CalibrationSettings& settings) {
  return settings.n_proof_windows ? settings.n_proof_windows : 12;
}

std::string calibration_name(const CalibrationSettings& settings) {
  if (settings.texts.empty()) return "sampled from the model";
  std::string names;
  for (const auto& text : settings.texts)
    names += (names.empty() ? "" : " + ") + name_of_file(parse_text_source(text).path);
  return names;
}

Calibration make_calibration(const Runtime& rt, const Model& model, const std::string& model_sha256,
                             const Tokenizer& tokenizer, const CalibrationSettings& settings,
                             Measurements& db) {
  const bool own = settings.texts.empty();
  const Counts n{.windows = settings.n_windows ? settings.n_windows
                            : own              ? 36
                                               : 24,
                 .proof = n_proof_windows(settings),
                 .n_ctx = settings.n_ctx ? settings.n_ctx
                          : own          ? 256
                                         : 512};
  auto sample = [&](int64_t first, int64_t count) {
    return kept_self_text(rt, model, tokenizer, {.seed = settings.seed, .n_tokens = n.n_ctx}, db,
                          first, count);
  };
  Calibration c = own ? sample_calibration(model_sha256, settings, n, db, sample)
                      : read_calibration(tokenizer, settings, n);
  db.select_run(model_sha256, c.sha256,
                fmt::format("{} windows of {} tokens, {} for the proof, seed {}", c.windows.size(),
                            n.n_ctx, c.proof.size(), settings.seed));
  if (own) c.sha256 = hash_of(c.windows);  // so far of how it was asked for
  return c;
}

Windows first_windows(const Windows& windows, int64_t n) {
  return {windows.begin(), windows.begin() + std::min<std::ptrdiff_t>(n, std::ssize(windows))};
}

std::string hash_of(const Windows& windows) {
  std::string text;
  for (const auto& window : windows)
    for (int32_t id : window) text += std::to_string(id) + " ";
  return sha256_hex(text);
}

}  // namespace mt
