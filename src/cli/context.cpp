#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>

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

void Context::suggest(std::string_view command) {
  if (json || quiet || !err.is_terminal) return;
  flush();
  write_error(fmt::format("next: {}\n", printable(command)));
}

std::string shell_word(std::string_view word) {
  constexpr std::string_view plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+:,=@%";
  if (!word.empty() && word.find_first_not_of(plain) == word.npos) return std::string(word);
  std::string quoted = "'";
  for (char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

CLI::Validator seed_number(std::string also) {
  return CLI::Validator(
      [also = std::move(also)](std::string& text) {
        uint64_t seed = 0;
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, seed);
        if ((error == std::errc() && stop == end) || (!also.empty() && text == also))
          return std::string();
        return fmt::format("Value '{}' is no whole number from 0 to 18446744073709551615", text);
      },
      "");
}

std::string folded(const Context& context, std::string_view text) {
  return wrapped("  ", text, context.out.is_terminal ? context.out.width() : 0, 4);
}

void warn_beyond_training(Context& context, int64_t trained, int64_t n_ctx) {
  if (trained > 0 && n_ctx > trained)
    context.note(fmt::format(
        "warning: {} tokens of context are more than the {} that the model was trained on; what it "
        "says of text beyond them means little",
        n_ctx, trained));
}

// Where standard error is gone or full there is nobody to tell.
void write_error(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stderr) != text.size()) std::clearerr(stderr);
}

}  // namespace mt::cli
