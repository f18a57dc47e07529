// libFuzzer: bytes as a GGUF file. Anything but a TensorFile or an Error is a bug; so is a tensor
// that reaches outside the bytes, which the sum below would touch.
#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "file/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy of its own: a read of one byte too many leaves the allocation.
  std::shared_ptr<std::byte[]> copy(new std::byte[size]);
  for (size_t i = 0; i < size; ++i) copy[i] = std::byte(data[i]);
  try {
    mt::TensorFile file = mt::parse_gguf("fuzz", {copy, {copy.get(), size}});
    unsigned sum = 0;
    for (const auto& t : file.tensors) {
      int64_t n = 1;
      for (int64_t d : t.shape) n *= d;
      if (static_cast<uint64_t>(mt::row_bytes(t.dtype, n)) != t.data.bytes.size()) std::abort();
      for (auto b : t.data.bytes) sum += unsigned(b);
    }
    volatile unsigned keep = sum;
    (void)keep;
    for (const auto& entry : file.metadata) file.find_meta(entry.first);
  } catch (const mt::Error&) {
  }
  return 0;
}
