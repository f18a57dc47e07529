#pragma once
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "file/gguf.h"

namespace mt::test {

// Builds files by hand, apart from the library's writers, and remembers where each field lies.
struct Bytes {
  struct Field {
    std::string label;
    size_t offset;
    size_t width;
  };
  std::string data;
  std::vector<Field> fields;

  template <class T>
  Bytes& put(T value, const std::string& label) {
    fields.push_back({label, data.size(), sizeof(T)});
    data.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Bytes& text(const std::string& s, const std::string& label) {
    put<uint64_t>(s.size(), label + " length");
    data += s;
    return *this;
  }
  Bytes& pad(size_t alignment) {
    data.resize((data.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  size_t at(const std::string& label) const {
    for (const auto& f : fields)
      if (f.label == label) return f.offset;
    throw std::logic_error("no field " + label);
  }
};

// The same bytes with one field overwritten.
template <class T>
std::string with(const Bytes& bytes, const std::string& label, T value) {
  std::string copy = bytes.data;
  std::memcpy(copy.data() + bytes.at(label), &value, sizeof(T));
  return copy;
}

// Exactly sized memory on the heap: a sanitizer sees a read of one byte too many.
inline SharedBytes share(const std::string& data) {
  auto owner = std::shared_ptr<std::byte[]>(new std::byte[data.size()]);
  std::memcpy(owner.get(), data.data(), data.size());
  return {owner, {owner.get(), data.size()}};
}

inline std::string read_all(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void write_all(const std::filesystem::path& path, const std::string& data) {
  std::ofstream(path, std::ios::binary) << data;
}

// A folder of its own, removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "microtome-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("mkdtemp");
    path_ = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// What write_gguf and write_safetensors want, of tensors that are in memory.
inline std::vector<TensorSource> sources(const std::vector<Tensor>& tensors) {
  std::vector<TensorSource> out;
  for (const Tensor& t : tensors)
    out.push_back({t.name, t.shape, t.dtype, [&t](const auto& write) { write(t.data.bytes); }});
  return out;
}

// The largest sum of live allocations while f runs, beyond what lived before. Counted by the test
// program's own operator new (allocation_helper.cpp).
size_t live_allocations();
void reset_peak_allocations();
size_t peak_allocations();

// The error's text, "" where there was none. `most` bounds what was allocated on the way.
template <class F>
std::string error_of(F f, size_t most = SIZE_MAX) {
  reset_peak_allocations();
  const size_t before = live_allocations();
  std::string text;
  try {
    f();
  } catch (const std::runtime_error& e) {
    text = e.what();
  }
  if (peak_allocations() - before > most)
    throw std::logic_error("allocated " + std::to_string(peak_allocations() - before) +
                           " bytes, bound " + std::to_string(most) + ": " + text);
  return text;
}

}  // namespace mt::test
