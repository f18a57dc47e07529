#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "cli/command.h"

namespace mt::cli {

const Runtime& Context::runtime() {
  if (!runtime_) {
    // Threads beyond the processors only wait for each other.
    const int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    pool_ = std::make_unique<ThreadPool>(std::min(threads, 4 * processors));
    runtime_ = std::make_unique<Runtime>(Runtime{select_kernels(), *pool_});
  }
  return *runtime_;
}

void Context::keep(std::string_view text) {
  if (reader_gone_ || text.empty()) return;
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return;
  if (errno != EPIPE) throw_error("standard output: writing failed: {}", std::strerror(errno));
  reader_gone_ = true;
}

void Context::print(std::string_view text) {
  keep(text);
}

void Context::print_json(const Json& document) {
  keep(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void Context::flush() {
  if (reader_gone_ || std::fflush(stdout) == 0) return;
  if (errno != EPIPE) throw_error("standard output: writing failed: {}", std::strerror(errno));
  reader_gone_ = true;
}

void Context::note(std::string_view text) {
  if (!quiet) write_error(fmt::format("microtome: {}\n", text));
}

std::string folded(const Context& context, std::string_view text) {
  return wrapped("  ", text, context.out.is_terminal ? context.out.width() : 0, 4);
}

void warn_beyond_training(Context& context, const Model& model, int64_t n_ctx) {
  if (model.context_length > 0 && n_ctx > model.context_length)
    context.note(fmt::format(
        "warning: {} tokens of context are more than the {} that the model was trained on; what it "
        "says of text beyond them means little",
        n_ctx, model.context_length));
}

// Where standard error is gone or full there is nobody to tell.
void write_error(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stderr) != text.size()) std::clearerr(stderr);
}

}  // namespace mt::cli
