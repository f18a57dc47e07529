#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/files.h"
#include "file/gguf.h"

namespace mt {

// Bytes of a tensor to be written. Throws Error "FILE: FORMAT: tensor '...': expected ..., found
// ..." for a shape that its dtype cannot hold.
uint64_t source_bytes(const std::string& file, const std::string& format, const TensorSource& t);

// Gathers small pieces (a row at a time) into large writes.
class TensorWriter {
 public:
  explicit TensorWriter(AtomicFile& file);
  void write(std::span<const std::byte> bytes);
  // The tensor's own bytes; asserts that `produce` wrote exactly `bytes`.
  void write(const TensorSource& tensor, uint64_t bytes);
  void write_zeros(uint64_t n);
  void flush();

 private:
  AtomicFile& file_;
  std::vector<std::byte> buffer_;
};

}  // namespace mt
