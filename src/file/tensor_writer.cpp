#include "file/tensor_writer.h"

#include <cassert>

#include "base/checked.h"
#include "base/error.h"
#include "file/names.h"

namespace mt {
namespace {
constexpr size_t kBuffer = 1 << 20;
}

uint64_t source_bytes(const std::string& file, const std::string& format, const TensorSource& t) {
  const DtypeInfo& dtype = info(t.dtype);
  const int64_t row = t.shape.empty() ? 1 : t.shape.back();  // safetensors has scalars
  if (row % dtype.block_length != 0)
    throw_error("{}: {}: tensor '{}': expected rows of a multiple of {} for {}, found {}", file,
                format, printable(t.name), dtype.block_length, dtype.name, row);
  std::optional<uint64_t> count = 1;
  for (int64_t d : t.shape) {
    if (d < 1)
      throw_error("{}: {}: tensor '{}': expected dimensions of at least 1, found {}", file, format,
                  printable(t.name), d);
    if (count) count = checked_mul(*count, static_cast<uint64_t>(d));
  }
  std::optional<uint64_t> bytes;
  if (count)
    bytes = checked_mul(*count / static_cast<uint64_t>(dtype.block_length),
                        static_cast<uint64_t>(dtype.block_bytes));
  if (!bytes || *bytes > static_cast<uint64_t>(INT64_MAX))
    throw_error("{}: {}: tensor '{}': expected a size below 2^63, found a product that overflows",
                file, format, printable(t.name));
  return *bytes;
}

TensorWriter::TensorWriter(AtomicFile& file) : file_(file) {
  buffer_.reserve(kBuffer);
}

void TensorWriter::write(std::span<const std::byte> bytes) {
  if (buffer_.size() + bytes.size() > kBuffer) flush();
  if (bytes.size() >= kBuffer) return file_.write(bytes);
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
}

void TensorWriter::write(const TensorSource& tensor, [[maybe_unused]] uint64_t bytes) {
  uint64_t written = 0;
  tensor.produce([&](std::span<const std::byte> piece) {
    written += piece.size();
    write(piece);
  });
  assert(written == bytes && "produce must write exactly the tensor's bytes");
}

void TensorWriter::write_zeros(uint64_t n) {
  const std::byte zeros[256] = {};
  for (; n > 0; n -= std::min<uint64_t>(n, sizeof zeros))
    write(std::span(zeros, std::min<uint64_t>(n, sizeof zeros)));
}

void TensorWriter::flush() {
  file_.write(buffer_);
  buffer_.clear();
}

}  // namespace mt
