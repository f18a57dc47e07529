#include <fnmatch.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/error.h"
#include "cli/command.h"
#include "cli/inspect_facts.h"
#include "cli/kv_options.h"
#include "file/imatrix.h"
#include "file/open.h"

namespace mt::cli {
namespace {

struct Options {
  std::string path;
  int64_t n_ctx = 0;
  KvOptions kv;
  bool tensors = false;
  std::string pattern;
  bool metadata = false;
};

// "blk.*.attn_q*" as the shell matches; plain text is searched for.
bool matches(const std::string& pattern, const std::string& name) {
  if (pattern.empty()) return true;
  if (pattern.find_first_of("*?[") == std::string::npos)
    return name.find(pattern) != std::string::npos;
  return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

template <class List, class Name>
void check_matched(const Options& options, const List& list, Name name_of) {
  if (!options.pattern.empty() &&
      std::ranges::none_of(
          list, [&](const std::string& n) { return matches(options.pattern, n); }, name_of))
    throw_error("{}: no tensor matches '{}'", options.path, options.pattern);
}

Json to_json(const MetaValue& value) {
  return std::visit(
      [&](const auto& x) -> Json {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>)
          return x;
        else
          return describe(value);
      },
      value.value);
}

Json to_json(const std::vector<NamedValue>& list) {
  Json out = Json::object();
  for (const auto& [key, value] : list) out[key] = to_json(value);
  return out;
}

Json tensor_list(const TensorFile& file, const Options& options) {
  Json list = Json::array();
  for (const Tensor& t : file.tensors)
    if (matches(options.pattern, t.name))
      list.push_back({{"name", t.name},
                      {"dtype", name(t.dtype)},
                      {"shape", t.shape},
                      {"bytes", t.data.bytes.size()}});
  return list;
}

Json to_json(const Facts& f, const TensorFile& file, const Options& options) {
  Json dtypes = Json::array(), wastes = Json::array();
  for (const auto& d : f.dtypes)
    dtypes.push_back({{"dtype", d.dtype},
                      {"tensors", d.n_tensors},
                      {"weights", d.n_weights},
                      {"bytes", d.bytes}});
  for (const auto& w : f.wastes) {
    Json one = {{"kind", w.kind}, {"bytes", w.bytes}, {"text", w.text}};
    if (w.relative_rms >= 0) one["relative_rms"] = w.relative_rms;
    wastes.push_back(std::move(one));
  }
  Json out = {{"path", f.path},
              {"format", f.format},
              {"type", f.kind},
              {"architecture", f.architecture},
              {"name", f.name},
              {"file_bytes", f.file_bytes},
              {"tensor_bytes", f.tensor_bytes},
              {"tensors", f.n_tensors},
              {"weights", f.n_weights},
              {"bits_per_weight", f.bits_per_weight},
              {"runs", f.cannot_run.empty()}};
  if (!f.cannot_run.empty()) out["cannot_run"] = f.cannot_run;
  out["sizes"] = to_json(f.sizes);
  out["dtypes"] = std::move(dtypes);
  if (f.memory) {
    out["memory"] = {{"n_ctx", f.memory->n_ctx},
                     {"weights", f.memory->weights},
                     {"cache_type_k", kv_name(f.memory->kv_types, KvPart::keys)},
                     {"cache_type_v", kv_name(f.memory->kv_types, KvPart::values)},
                     {"kv_cache", f.memory->kv_cache},
                     {"logits", f.memory->logits},
                     {"total", f.memory->total()}};
    if (f.memory->kv_cache_windowed)
      out["memory"]["kv_cache_windowed"] = f.memory->kv_cache_windowed;
  }
  out["tokenizer"] = to_json(f.tokenizer);
  out["chat"] = f.chat;
  out["receipt"] = to_json(f.receipt);
  out["waste"] = std::move(wastes);
  if (options.metadata) {
    out["metadata"] = to_json(file.metadata);
  }
  if (options.tensors) out["tensor_list"] = tensor_list(file, options);
  return out;
}

// "label   text"; what is too wide for the terminal goes on below the text.
std::string fact(const Context& context, std::string_view label, std::string_view text) {
  const int width = context.out.is_terminal ? context.out.width() : 0;
  return wrapped(fmt::format("{:<14}", label), printable(text), width, width >= 40 ? 14 : 2);
}

std::string joined(const std::vector<NamedValue>& list) {
  std::string text;
  for (const auto& [key, value] : list)
    text += (text.empty() ? "" : ", ") + key + " " + describe(value);
  return text;
}

void show(Context& context, const Facts& f, const TensorFile& file, const Options& options) {
  int width = context.out.is_terminal ? context.out.width() : 0;
  std::string text = fact(context, "file", f.path);
  if (!f.name.empty()) text += fact(context, "name", f.name);
  text += fact(context, "architecture",
               (f.architecture.empty() ? "none given" : f.architecture) +
                   (f.kind == "model" ? "" : " (" + f.kind + ")"));
  text += fact(context, "bytes",
               fmt::format("{} ({}), {} of them tensors", grouped(f.file_bytes),
                           human_bytes(f.file_bytes), grouped(f.tensor_bytes)));
  text += fact(context, "weights",
               fmt::format("{} ({}) in {} tensors", human_count(f.n_weights), grouped(f.n_weights),
                           f.n_tensors));
  text += fact(context, "bits/weight",
               fmt::format("{:.3f}, embedding and head included", f.bits_per_weight));
  if (!f.sizes.empty()) text += fact(context, "sizes", joined(f.sizes));
  if (f.memory) {
    const MemoryNeed& m = *f.memory;
    text += fact(context, "memory",
                 fmt::format("{} at {} tokens: weights {}, KV cache ({}) {}, logits {}",
                             human_bytes(m.total()), m.n_ctx, human_bytes(m.weights),
                             kv_name(m.kv_types), human_bytes(m.kv_cache), human_bytes(m.logits)));
    if (m.kv_cache_windowed)
      text += fact(context, "",
                   fmt::format("KV cache {} where layers with a window keep only that",
                               human_bytes(m.kv_cache_windowed)));
  }
  if (!f.tokenizer.empty()) text += fact(context, "tokenizer", joined(f.tokenizer));
  if (!f.chat.empty()) text += fact(context, "chat", f.chat);
  if (!f.cannot_run.empty()) text += fact(context, "does not run", f.cannot_run);
  text += "\n";

  Table dtypes({{"format"},
                {"tensors", Table::Align::right},
                {"weights", Table::Align::right},
                {"bytes", Table::Align::right},
                {"share", Table::Align::right}});
  for (const auto& d : f.dtypes)
    dtypes.row({d.dtype, std::to_string(d.n_tensors), human_count(d.n_weights), grouped(d.bytes),
                fmt::format("{:.1f} %", 100.0 * double(d.bytes) / double(f.tensor_bytes))});
  text += dtypes.text(width, context.out.colour);

  if (!f.receipt.empty()) {
    text += "\nreceipt\n";
    for (const auto& [key, value] : f.receipt)
      text += wrapped("  ", printable(key + " = " + describe(value)), width, 4);
  }
  if (!f.wastes.empty()) {
    text += "\nwaste\n";
    for (const auto& w : f.wastes)
      text += folded(context, fmt::format("{}: {}", human_bytes(w.bytes), printable(w.text)));
  }
  if (options.metadata) {
    text += "\nmetadata\n";
    for (const auto& [key, value] : file.metadata)
      text +=
          "  " + fit(printable(key + " = " + describe(value)), (width ? width : 200) - 2) + "\n";
  }
  if (options.tensors) {
    Table list(
        {{"tensor"}, {"format"}, {"shape", Table::Align::right}, {"bytes", Table::Align::right}});
    for (const Tensor& t : file.tensors)
      if (matches(options.pattern, t.name))
        list.row({printable(t.name), std::string(name(t.dtype)), describe_shape(t.shape),
                  grouped(static_cast<int64_t>(t.data.bytes.size()))});
    text += "\n" + list.text(width, context.out.colour);
  }
  context.print(text);
}

constexpr const char* kOlderForm =
    "the .dat form of before GGUF; this program reads it, llama.cpp's tools of today want the GGUF "
    "form";

void show_imatrix(Context& context, const Imatrix& imatrix, const Options& options, bool older) {
  const std::string& path = options.path;
  check_matched(options, imatrix.entries, &ImatrixEntry::tensor);
  if (context.json) {
    Json entries = Json::array();
    for (const auto& e : imatrix.entries)
      if (matches(options.pattern, e.tensor))
        entries.push_back(
            {{"tensor", e.tensor}, {"channels", e.in_sum2.size()}, {"count", e.count}});
    context.print_json(Json{{"path", path},
                            {"type", "imatrix"},
                            {"form", older ? "dat" : "gguf"},
                            {"datasets", imatrix.datasets},
                            {"chunk_count", imatrix.chunk_count},
                            {"chunk_size", imatrix.chunk_size},
                            {"entries", std::move(entries)}});
    return;
  }
  std::string text = fact(context, "file", path);
  text += fact(context, "importance", fmt::format("{} tensors", imatrix.entries.size()));
  if (older) text += fact(context, "form", kOlderForm);
  text += fact(context, "measured on",
               fmt::format("{} chunks", imatrix.chunk_count) +
                   (older ? "" : fmt::format(" of {} tokens", imatrix.chunk_size)));
  for (const auto& dataset : imatrix.datasets) text += fact(context, "text", dataset);
  if (options.tensors) {
    Table list(
        {{"tensor"}, {"channels", Table::Align::right}, {"rows counted", Table::Align::right}});
    for (const auto& e : imatrix.entries)
      if (matches(options.pattern, e.tensor))
        list.row({printable(e.tensor), std::to_string(e.in_sum2.size()),
                  fmt::format("{:.0f}", e.count)});
    text += "\n" + list.text(context.out.is_terminal ? context.out.width() : 0, context.out.colour);
  }
  context.print(text);
}

// The form has no mark to know it by: what is no model is tried.
std::optional<Imatrix> read_older_imatrix(const Options& options) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(options.path, none)) return std::nullopt;
  try {
    return read_imatrix(options.path);
  } catch (const Error&) {
    return std::nullopt;  // the model reader's message says more
  }
}

int run(Context& context, const Options& options) {
  std::shared_ptr<const TensorFile> file;
  try {
    file = std::make_shared<const TensorFile>(open_model_file(options.path));
  } catch (const Error&) {
    const auto imatrix = read_older_imatrix(options);
    if (!imatrix) throw;
    show_imatrix(context, *imatrix, options, true);
    return exit_done;
  }
  if (file->get_string("general.type").value_or("") == "imatrix") {
    show_imatrix(context, read_imatrix(options.path), options, false);
    return exit_done;
  }
  check_matched(options, file->tensors, &Tensor::name);
  Facts facts =
      inspect(file, options.n_ctx, kv_types(options.kv, Path::fast), context.runtime().pool);
  if (context.json)
    context.print_json(to_json(facts, *file, options));
  else
    show(context, facts, *file, options);
  if (facts.memory) warn_beyond_training(context, facts.memory->trained, facts.memory->n_ctx);
  return exit_done;
}

Run add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  declare_model(app, options->path,
                "A GGUF or safetensors file, a Hugging Face folder, or an imatrix file");
  app.add_option("--ctx", options->n_ctx, "Context length for the memory needed (default: 4096)")
      ->check(within(int64_t{1}, int64_t{1} << 32))
      ->type_name("N");
  declare_kv_types(app, options->kv);
  auto* tensors = app.add_option("--tensors", options->pattern,
                                 "List the tensors; with a pattern (\"blk.*.attn_q*\" or a part of "
                                 "the name) only those that match")
                      ->expected(0, 1)
                      ->type_name("[PATTERN]");
  app.add_flag("--metadata", options->metadata, "List the file's metadata");
  return [options, tensors](Context& context) {
    options->tensors = tensors->count() > 0;
    return run(context, *options);
  };
}

}  // namespace

const Command inspect_command = {
    .name = "inspect",
    .summary = "Show what a file holds, needs and wastes",
    .examples =
        "microtome inspect model.gguf\n"
        "microtome inspect model.gguf --ctx 32768 --tensors 'blk.0.*'\n"
        "microtome inspect model.gguf --json",
    .add = add};

}  // namespace mt::cli
