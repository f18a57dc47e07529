// libFuzzer: bytes as a safetensors file, and its header alone as JSON for the tree parser.
#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "file/json.h"
#include "file/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::shared_ptr<std::byte[]> copy(new std::byte[size]);
  for (size_t i = 0; i < size; ++i) copy[i] = std::byte(data[i]);
  try {
    mt::TensorFile file = mt::parse_safetensors("fuzz", {copy, {copy.get(), size}});
    unsigned sum = 0;
    for (const auto& t : file.tensors) {
      uint64_t n = uint64_t(mt::info(t.dtype).block_bytes);
      for (int64_t d : t.shape) n *= uint64_t(d);
      if (n != t.data.bytes.size()) std::abort();
      for (auto b : t.data.bytes) sum += unsigned(b);
    }
    volatile unsigned keep = sum;
    (void)keep;
  } catch (const mt::Error&) {
  }
  if (size > 8) {
    try {
      mt::parse_json("fuzz", {reinterpret_cast<const char*>(copy.get()) + 8, size - 8});
    } catch (const mt::Error&) {
    }
  }
  return 0;
}
