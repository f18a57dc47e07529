#include <algorithm>
#include <bit>
#include <cassert>

#include "base/checked.h"
#include "base/files.h"
#include "file/cursor.h"
#include "file/gguf.h"
#include "file/gguf_format.h"
#include "file/names.h"

namespace mt {
namespace {

using namespace gguf;

// What the numbers that no Dtype has once meant, for the message.
struct ForeignType {
  uint32_t number;
  const char* what;
};
constexpr ForeignType kForeignTypes[] = {
    {4, "Q4_2, withdrawn in 2023"},        {5, "Q4_3, withdrawn in 2023"},
    {9, "Q8_1, a format of activations"},  {15, "Q8_K, a format of activations"},
    {31, "Q4_0_4_4, withdrawn in 2024"},   {32, "Q4_0_4_8, withdrawn in 2024"},
    {33, "Q4_0_8_8, withdrawn in 2024"},   {36, "IQ4_NL_4_4, withdrawn in 2024"},
    {37, "IQ4_NL_4_8, withdrawn in 2024"}, {38, "IQ4_NL_8_8, withdrawn in 2024"},
};

std::string describe_type(uint32_t number) {
  for (const auto& f : kForeignTypes)
    if (f.number == number) return fmt::format("{} ({})", number, f.what);
  return fmt::format("{}{}", number,
                     number > 42 ? " (newer than this program or a fork's own)" : "");
}

class Reader {
 public:
  Reader(const std::string& path, SharedBytes bytes)
      : in_(path, "gguf", bytes.bytes), bytes_(std::move(bytes)) {
    file_.path = path;
    file_.format = "gguf";
  }

  TensorFile read() {
    read_header();
    read_metadata();
    read_tensor_infos();
    place_tensors();
    return std::move(file_);
  }

 private:
  void read_header() {
    auto magic = in_.take_bytes(4, "magic");
    std::string_view text(reinterpret_cast<const char*>(magic.data()), 4);
    if (text == "FUGG") in_.fail("magic", "'GGUF'", "'FUGG': a big-endian file");
    if (text != kMagic) in_.fail("magic", "'GGUF'", fmt::format("'{}'", printable(text)));
    auto version = in_.take<uint32_t>("version");
    // A big-endian file has the same magic, and its small version number in the high bytes.
    if (version != 0 && (version & 0xFFFF) == 0)
      in_.fail("version", "2 or 3 in little-endian order",
               fmt::format("{}: a big-endian file", version));
    if (version != 2 && version != 3) in_.fail("version", "2 or 3", std::to_string(version));
    n_tensors_ = take_count("tensor count", kLeastTensorInfo);
    n_metadata_ = take_count("key-value count", kLeastKeyValue);
  }

  // A number of entries that take at least `least_bytes` each; more than the rest of the file could
  // hold is refused before anything is reserved.
  uint64_t take_count(std::string_view place, uint64_t least_bytes) {
    auto count = in_.take<uint64_t>(place);
    if (count > in_.remaining() / least_bytes)
      in_.fail(place, fmt::format("at most {} in this file", in_.remaining() / least_bytes),
               std::to_string(count));
    return count;
  }

  void read_metadata() {
    file_.metadata.reserve(n_metadata_);
    for (uint64_t i = 0; i < n_metadata_; ++i) {
      std::string key(take_name(fmt::format("key {}", i), kLongestKey));
      std::string place = fmt::format("metadata '{}'", printable(key));
      auto type = in_.take<uint32_t>(place);
      file_.metadata.emplace_back(std::move(key), MetaValue{});
      file_.metadata.back().second = take_value(type, place);
    }
    std::vector<std::string_view> keys;
    keys.reserve(file_.metadata.size());
    for (const auto& entry : file_.metadata) keys.push_back(entry.first);
    if (auto twice = find_duplicate(std::move(keys)))
      in_.fail("metadata", "every key once", fmt::format("'{}' twice", printable(*twice)));
  }

  std::string_view take_name(const std::string& place, size_t longest) {
    std::string_view name = in_.take_text<uint64_t>(place);
    if (name.empty() || name.size() > longest)
      in_.fail(place, fmt::format("a name of 1 to {} bytes", longest),
               fmt::format("{} bytes", name.size()));
    if (!is_utf8(name)) in_.fail(place, "UTF-8", fmt::format("'{}'", printable(name)));
    return name;
  }

  MetaValue take_value(uint32_t type, const std::string& place) {
    if (type == kArray) {
      auto element = in_.take<uint32_t>(place);
      if (element == kArray) in_.fail(place, "an array of plain values", "an array of arrays");
      return with_type(element, place, [&]<class T>() { return MetaValue{take_array<T>(place)}; });
    }
    return with_type(type, place, [&]<class T>() { return MetaValue{take_one<T>(place)}; });
  }

  // Calls f.operator()<T>() for the C++ type of a value type's number.
  template <class F>
  MetaValue with_type(uint32_t type, const std::string& place, F f) {
    switch (type) {
      case kU8:
        return f.template operator()<uint8_t>();
      case kI8:
        return f.template operator()<int8_t>();
      case kU16:
        return f.template operator()<uint16_t>();
      case kI16:
        return f.template operator()<int16_t>();
      case kU32:
        return f.template operator()<uint32_t>();
      case kI32:
        return f.template operator()<int32_t>();
      case kF32:
        return f.template operator()<float>();
      case kBool:
        return f.template operator()<bool>();
      case kString:
        return f.template operator()<std::string>();
      case kU64:
        return f.template operator()<uint64_t>();
      case kI64:
        return f.template operator()<int64_t>();
      case kF64:
        return f.template operator()<double>();
    }
    in_.fail(place, "a value type of 0 to 12", std::to_string(type));
  }

  template <class T>
  T take_one(const std::string& place) {
    if constexpr (std::is_same_v<T, std::string>) {
      return std::string(in_.take_text<uint64_t>(place));
    } else if constexpr (std::is_same_v<T, bool>) {
      auto byte = in_.take<uint8_t>(place);
      if (byte > 1) in_.fail(place, "a boolean of 0 or 1", std::to_string(byte));
      return byte == 1;
    } else {
      return in_.take<T>(place);
    }
  }

  template <class T>
  std::vector<T> take_array(const std::string& place) {
    constexpr uint64_t least = std::is_same_v<T, std::string> ? 8
                               : std::is_same_v<T, bool>      ? 1
                                                              : sizeof(T);
    uint64_t count = take_count(place, least);
    std::vector<T> values;
    if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, bool>) {
      values.reserve(count);
      for (uint64_t i = 0; i < count; ++i) values.push_back(take_one<T>(place));
    } else {
      values.resize(count);
      auto bytes = in_.take_bytes(count * sizeof(T), place);
      if (count) std::memcpy(values.data(), bytes.data(), bytes.size());
    }
    return values;
  }

  void read_tensor_infos() {
    file_.tensors.reserve(n_tensors_);
    offsets_.reserve(n_tensors_);
    for (uint64_t i = 0; i < n_tensors_; ++i) {
      Tensor t;
      t.name = take_name(fmt::format("tensor {}", i), kLongestTensorName);
      std::string place = fmt::format("tensor '{}'", printable(t.name));
      auto n_dims = in_.take<uint32_t>(place);
      if (n_dims < 1 || n_dims > kMostDims)
        in_.fail(place, fmt::format("1 to {} dimensions", kMostDims), std::to_string(n_dims));
      for (uint32_t d = 0; d < n_dims; ++d) {
        auto dim = in_.take<int64_t>(place);
        if (dim < 1)
          in_.fail(place, fmt::format("dimension {} of at least 1", d), std::to_string(dim));
        t.shape.insert(t.shape.begin(), dim);
      }
      auto number = in_.take<uint32_t>(place);
      auto dtype = dtype_from_number(number);
      if (!dtype) in_.fail(place, "a known tensor type", describe_type(number));
      t.dtype = *dtype;
      offsets_.push_back(in_.take<uint64_t>(place));
      file_.tensors.push_back(std::move(t));
    }
    std::vector<std::string_view> names;
    names.reserve(file_.tensors.size());
    for (const auto& t : file_.tensors) names.push_back(t.name);
    if (auto twice = find_duplicate(std::move(names)))
      in_.fail("tensors", "every name once", fmt::format("'{}' twice", printable(*twice)));
  }

  uint64_t tensor_bytes(const Tensor& t, const std::string& place) const {
    const DtypeInfo& format = info(t.dtype);
    if (t.shape.back() % format.block_length != 0)
      in_.fail(place,
               fmt::format("rows of a multiple of {} for {}", format.block_length, format.name),
               std::to_string(t.shape.back()));
    std::optional<uint64_t> count = 1;
    for (int64_t d : t.shape)
      if (count) count = checked_mul(*count, static_cast<uint64_t>(d));
    std::optional<uint64_t> bytes;
    if (count && *count <= static_cast<uint64_t>(INT64_MAX))
      bytes = checked_mul(*count / static_cast<uint64_t>(format.block_length),
                          static_cast<uint64_t>(format.block_bytes));
    if (!bytes || *bytes > static_cast<uint64_t>(INT64_MAX))
      in_.fail(place, "a size below 2^63", "dimensions whose product overflows");
    return *bytes;
  }

  void place_tensors() {
    uint64_t alignment = kDefaultAlignment;
    if (const MetaValue* v = file_.find_meta(kAlignmentKey)) {
      const auto* u = std::get_if<uint32_t>(&v->value);
      if (!u) in_.fail(kAlignmentKey, "a u32", "another type");
      if (!std::has_single_bit(*u) || *u > kLargestAlignment)
        in_.fail(kAlignmentKey, fmt::format("a power of two up to {}", kLargestAlignment),
                 std::to_string(*u));
      alignment = *u;
    }
    if (file_.tensors.empty()) return;  // a vocabulary alone need not even be padded
    uint64_t start = round_up(in_.offset(), alignment);
    uint64_t running = 0;
    for (size_t i = 0; i < file_.tensors.size(); ++i) {
      Tensor& t = file_.tensors[i];
      std::string place = fmt::format("tensor '{}'", printable(t.name));
      uint64_t bytes = tensor_bytes(t, place);
      if (offsets_[i] != running)
        in_.fail(place, fmt::format("offset {}", running), std::to_string(offsets_[i]));
      // `start + running` is inside the file, or the tensor before would have failed.
      if (start > in_.size() || bytes > in_.size() - start || running > in_.size() - start - bytes)
        in_.fail(place, fmt::format("{} bytes at byte {}", bytes, start + running),
                 fmt::format("a file of {}", in_.size()));
      t.data = {bytes_.owner, bytes_.bytes.subspan(start + running, bytes)};
      running = round_up(running + bytes, alignment);
    }
  }

  Cursor in_;
  SharedBytes bytes_;
  TensorFile file_;
  uint64_t n_tensors_ = 0;
  uint64_t n_metadata_ = 0;
  std::vector<uint64_t> offsets_;
};

}  // namespace

TensorFile parse_gguf(const std::string& path, SharedBytes bytes) {
  return Reader(path, std::move(bytes)).read();
}

TensorFile read_gguf(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  return parse_gguf(path.string(), {file, file->bytes()});
}

}  // namespace mt
