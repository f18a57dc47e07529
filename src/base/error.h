#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace mt {

// Bad input: the message says what, where, expected and got. The CLI prints it and exits with 2.
// A broken invariant of our own asserts instead.
struct Error : std::runtime_error {
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

// throw_error("gguf: '{}' ends at byte {}, the file has {}", name, end, size)
template <class... Args>
[[noreturn]] void throw_error(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace mt
