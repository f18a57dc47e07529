#include <bit>
#include <type_traits>

#include "base/checked.h"
#include "base/error.h"
#include "file/gguf.h"
#include "file/gguf_format.h"
#include "file/names.h"
#include "file/tensor_writer.h"

namespace mt {
namespace {

using namespace gguf;
using Metadata = std::vector<std::pair<std::string, MetaValue>>;

template <class T>
constexpr uint32_t value_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return kU8;
  if constexpr (std::is_same_v<T, int8_t>) return kI8;
  if constexpr (std::is_same_v<T, uint16_t>) return kU16;
  if constexpr (std::is_same_v<T, int16_t>) return kI16;
  if constexpr (std::is_same_v<T, uint32_t>) return kU32;
  if constexpr (std::is_same_v<T, int32_t>) return kI32;
  if constexpr (std::is_same_v<T, float>) return kF32;
  if constexpr (std::is_same_v<T, bool>) return kBool;
  if constexpr (std::is_same_v<T, std::string>) return kString;
  if constexpr (std::is_same_v<T, uint64_t>) return kU64;
  if constexpr (std::is_same_v<T, int64_t>) return kI64;
  if constexpr (std::is_same_v<T, double>) return kF64;
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put_text(std::string& out, const std::string& text) {
  put<uint64_t>(out, text.size());
  out += text;
}

template <class T>
void put_one(std::string& out, const T& value) {
  if constexpr (std::is_same_v<T, std::string>)
    put_text(out, value);
  else if constexpr (std::is_same_v<T, bool>)
    put<uint8_t>(out, value ? 1 : 0);
  else
    put(out, value);
}

template <class T>
struct ElementOf {
  using type = void;  // a plain value
};
template <class E>
struct ElementOf<std::vector<E>> {
  using type = E;
};

void put_value(std::string& out, const MetaValue& value) {
  std::visit(
      [&](const auto& v) {
        using T = std::decay_t<decltype(v)>;
        using E = typename ElementOf<T>::type;
        if constexpr (std::is_void_v<E>) {
          put<uint32_t>(out, value_type<T>());
          put_one<T>(out, v);
        } else {
          put<uint32_t>(out, kArray);
          put<uint32_t>(out, value_type<E>());
          put<uint64_t>(out, v.size());
          for (size_t i = 0; i < v.size(); ++i) put_one<E>(out, v[i]);
        }
      },
      value.value);
}

// Everything before the tensor data, and where each tensor goes.
struct Layout {
  std::string head;  // padded
  uint64_t alignment = kDefaultAlignment;
  std::vector<uint64_t> bytes;
  uint64_t file_bytes = 0;
};

[[noreturn]] void fail(const std::string& file, const std::string& place,
                       const std::string& expected, const std::string& found) {
  throw_error("{}: gguf: {}: expected {}, found {}", file, place, expected, found);
}

uint64_t alignment_of(const std::string& file, const Metadata& metadata) {
  for (const auto& [key, value] : metadata)
    if (key == kAlignmentKey) {
      const auto* u = std::get_if<uint32_t>(&value.value);
      if (!u || !std::has_single_bit(*u) || *u > kLargestAlignment)
        fail(file, key, fmt::format("a u32, a power of two up to {}", kLargestAlignment),
             u ? std::to_string(*u) : "another type");
      return *u;
    }
  return kDefaultAlignment;
}

// The writer refuses what the reader would: nothing leaves that cannot be opened again.
void check_names(const std::string& file, const Metadata& metadata,
                 const std::vector<TensorSource>& tensors) {
  std::vector<std::string_view> keys, names;
  for (const auto& entry : metadata) keys.push_back(entry.first);
  for (const auto& t : tensors) names.push_back(t.name);
  for (auto key : keys)
    if (key.empty() || key.size() > kLongestKey || !is_utf8(key))
      fail(file, "metadata", "a key of 1 to 65535 bytes of UTF-8", "'" + printable(key) + "'");
  for (auto name : names)
    if (name.empty() || name.size() > kLongestTensorName || !is_utf8(name))
      fail(file, "tensors", "a name of 1 to 63 bytes of UTF-8", "'" + printable(name) + "'");
  if (auto twice = find_duplicate(std::move(keys)))
    fail(file, "metadata", "every key once", "'" + printable(*twice) + "' twice");
  if (auto twice = find_duplicate(std::move(names)))
    fail(file, "tensors", "every name once", "'" + printable(*twice) + "' twice");
}

Layout lay_out(const std::string& file, const Metadata& metadata,
               const std::vector<TensorSource>& tensors) {
  check_names(file, metadata, tensors);
  Layout layout;
  layout.alignment = alignment_of(file, metadata);
  std::string& head = layout.head;
  head = kMagic;
  put<uint32_t>(head, kVersion);
  put<uint64_t>(head, tensors.size());
  put<uint64_t>(head, metadata.size());
  for (const auto& [key, value] : metadata) {
    put_text(head, key);
    put_value(head, value);
  }
  uint64_t offset = 0;
  for (const auto& t : tensors) {
    if (t.shape.empty() || t.shape.size() > kMostDims)
      fail(file, "tensor '" + t.name + "'", "1 to 4 dimensions", std::to_string(t.shape.size()));
    put_text(head, t.name);
    put<uint32_t>(head, static_cast<uint32_t>(t.shape.size()));
    for (size_t d = t.shape.size(); d-- > 0;) put<int64_t>(head, t.shape[d]);
    put<uint32_t>(head, static_cast<uint32_t>(t.dtype));
    put<uint64_t>(head, offset);
    layout.bytes.push_back(source_bytes(file, "gguf", t));
    offset = round_up(offset + layout.bytes.back(), layout.alignment);
  }
  head.resize(round_up(head.size(), layout.alignment), '\0');
  layout.file_bytes = head.size() + offset;
  return layout;
}

}  // namespace

void write_gguf(const std::filesystem::path& path, const Metadata& metadata,
                const std::vector<TensorSource>& tensors, bool replace) {
  Layout layout = lay_out(path.string(), metadata, tensors);
  AtomicFile file(path, replace);
  TensorWriter writer(file);
  writer.write(std::as_bytes(std::span(layout.head)));
  for (size_t i = 0; i < tensors.size(); ++i) {
    writer.write(tensors[i], layout.bytes[i]);
    writer.write_zeros(round_up(layout.bytes[i], layout.alignment) - layout.bytes[i]);
  }
  writer.flush();
  file.commit();
}

int64_t gguf_file_bytes(const Metadata& metadata, const std::vector<TensorSource>& tensors) {
  return static_cast<int64_t>(lay_out("(planned file)", metadata, tensors).file_bytes);
}

}  // namespace mt
