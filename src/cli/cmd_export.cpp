#include "base/error.h"
#include "cli/command.h"
#include "file/hf.h"
#include "file/open.h"

namespace mt::cli {
namespace {

struct Options {
  std::string model, type = "F16";
  std::filesystem::path output;
  bool force = false;
};

void check_folder(const Options& options) {
  namespace fs = std::filesystem;
  const fs::path& folder = options.output;
  std::error_code none;
  if (fs::exists(folder, none) && !fs::is_directory(folder, none))
    throw_error("{}: exists and is no folder; name another with -o", folder.string());
  if (fs::is_directory(folder, none)) {
    const fs::path input(options.model);
    if (fs::equivalent(folder, input, none) ||
        fs::equivalent(folder, fs::absolute(input).parent_path(), none))
      throw_error("{}: holds the input; name another folder with -o", folder.string());
    if (!fs::is_empty(folder, none) && !options.force)
      throw_error("{}: is not empty; write into it with --force", folder.string());
  }
}

int run(Context& context, const Options& options) {
  const auto dtype = dtype_from_name(options.type);
  check_folder(options);
  const TensorFile file = open_model_file(options.model);
  write_hf_folder(options.output, file, dtype.value());
  const auto weights = options.output / "model.safetensors";
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(weights));
  if (context.json)
    context.print_json(Json{{"output", options.output.string()},
                            {"weights", weights.string()},
                            {"dtype", name(*dtype)},
                            {"bytes", bytes}});
  else
    context.print(fmt::format("{}: {} bytes of weights, matrices in {}\n",
                              printable(options.output.string()), grouped(bytes), name(*dtype)));
  return exit_done;
}

Run add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  declare_model(app, options->model);
  app.add_option("-o,--output", options->output, "The folder to write; it is made if absent")
      ->required()
      ->type_name("FOLDER");
  app.add_option("--type", options->type,
                 "What matrices are decoded to: F32 (exact), F16 or BF16; vectors are F32")
      ->check(CLI::IsMember({"F32", "F16", "BF16"}, CLI::ignore_case))
      ->capture_default_str();
  app.add_flag("--force", options->force, "Write into a folder that is not empty");
  return [options](Context& context) { return run(context, *options); };
}

}  // namespace

const Command export_command = {
    .name = "export",
    .summary = "Write a model as a Hugging Face folder: safetensors, config, tokenizer",
    .examples =
        "microtome export small.gguf -o small-hf/\n"
        "microtome export small.gguf -o exact/ --type F32",
    .add = add};

}  // namespace mt::cli
