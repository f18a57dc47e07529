#pragma once
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace mt {

// Reads little-endian values off untrusted bytes. What does not fit in the rest of the file throws
// Error "FILE: FORMAT: PLACE: expected ..., found ..."; nothing is allocated here.
class Cursor {
 public:
  Cursor(std::string_view file, std::string_view format, std::span<const std::byte> bytes)
      : file_(file), format_(format), bytes_(bytes) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }
  uint64_t size() const { return bytes_.size(); }

  template <class T>
  T take(std::string_view place) {
    T value;
    std::memcpy(&value, take_bytes(sizeof(T), place).data(), sizeof(T));
    return value;
  }
  std::span<const std::byte> take_bytes(uint64_t n, std::string_view place) {
    if (n > remaining())
      fail(place, fmt::format("{} bytes at byte {}", n, offset_),
           fmt::format("{} to the end of the file", remaining()));
    auto bytes = bytes_.subspan(offset_, n);
    offset_ += n;
    return bytes;
  }
  // Text behind a length of type Length, still in the file's memory.
  template <class Length>
  std::string_view take_text(std::string_view place) {
    auto length = static_cast<uint64_t>(take<Length>(place));
    auto bytes = take_bytes(length, place);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  [[noreturn]] void fail(std::string_view place, std::string_view expected,
                         std::string_view found) const {
    throw_error("{}: {}: {}: expected {}, found {}", file_, format_, place, expected, found);
  }

 private:
  std::string file_;
  std::string format_;
  std::span<const std::byte> bytes_;
  uint64_t offset_ = 0;
};

}  // namespace mt
