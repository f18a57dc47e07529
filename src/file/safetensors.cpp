#include "file/safetensors.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/checked.h"
#include "base/error.h"
#include "base/files.h"
#include "file/cursor.h"
#include "file/json.h"
#include "file/names.h"
#include "file/tensor_writer.h"
#include "flow/json_mistake.h"

namespace mt {
namespace {

struct NamedType {
  std::string_view name;
  Dtype dtype;
};
constexpr NamedType kTypes[] = {
    {"F32", Dtype::F32}, {"F16", Dtype::F16}, {"BF16", Dtype::BF16}, {"F64", Dtype::F64},
    {"I64", Dtype::I64}, {"I32", Dtype::I32}, {"I16", Dtype::I16},   {"I8", Dtype::I8},
};

std::string known_types() {
  std::string list;
  for (const auto& t : kTypes) list += fmt::format("{}{}", list.empty() ? "" : " ", t.name);
  return list;
}

struct Entry {
  Tensor tensor;
  std::vector<uint64_t> offsets;  // [begin, end) of the data
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Follows the header's fixed form {name: {dtype, shape, data_offsets}, "__metadata__": {k: v}}
// token by token: whatever else comes is an error at once, so no tree is built.
class HeaderParser : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderParser(const Cursor& in, std::string_view header, TensorFile& file,
               std::vector<Entry>& entries)
      : in_(in), header_(header), file_(file), entries_(entries) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { unexpected(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { unexpected(text); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) unexpected(std::to_string(value));
    if (field_ == "shape") {
      if (value > static_cast<uint64_t>(INT64_MAX) || entry().tensor.shape.size() >= kMostDims)
        unexpected(fmt::format("dimension {} of {}", entry().tensor.shape.size(), value));
      entry().tensor.shape.push_back(static_cast<int64_t>(value));
    } else {
      if (entry().offsets.size() == 2) unexpected("a third offset");
      entry().offsets.push_back(value);
    }
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      file_.metadata.emplace_back(field_, MetaValue{value});
    } else if (depth_ == 2 && field_ == "dtype") {
      auto type = std::find_if(std::begin(kTypes), std::end(kTypes),
                               [&](const NamedType& t) { return t.name == value; });
      if (type == std::end(kTypes))
        in_.fail(place(), "a dtype of " + known_types(), "'" + printable(value) + "'");
      entry().tensor.dtype = type->dtype;
    } else {
      unexpected("'" + printable(value) + "'");
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (depth_ >= 2 || in_array_) unexpected("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    if (depth_ == 2 && !in_metadata_ &&
        !(entry().has_dtype && entry().has_shape && entry().offsets.size() == 2))
      in_.fail(place(), "dtype, shape and two data_offsets", "fewer");
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_metadata_ || in_array_ || (field_ != "shape" && field_ != "data_offsets"))
      unexpected("an array");
    in_array_ = true;
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool key(string_t& value) override {
    if (depth_ == 1) {
      in_metadata_ = value == "__metadata__";
      if (in_metadata_) {
        if (seen_metadata_) in_.fail("header", "every key once", "'__metadata__' twice");
        seen_metadata_ = true;
      } else {
        entries_.emplace_back();
        entry().tensor.name = value;
      }
      field_.clear();
      return true;
    }
    field_ = value;
    if (in_metadata_) return true;
    bool* seen = field_ == "dtype"          ? &entry().has_dtype
                 : field_ == "shape"        ? &entry().has_shape
                 : field_ == "data_offsets" ? &entry().has_offsets
                                            : nullptr;
    if (!seen) in_.fail(place(), "dtype, shape or data_offsets", "'" + printable(field_) + "'");
    if (*seen) in_.fail(place(), "every key once", "'" + field_ + "' twice");
    *seen = true;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& e) override {
    in_.fail(fmt::format("header, byte {}", position), "JSON", json_mistake(e, header_));
  }

 private:
  static constexpr size_t kMostDims = 8;

  Entry& entry() { return entries_.back(); }
  std::string place() {
    if (depth_ == 0) return "header";
    if (in_metadata_) return "__metadata__";
    return entries_.empty() ? "header" : "tensor '" + printable(entry().tensor.name) + "'";
  }
  [[noreturn]] void unexpected(const std::string& found) {
    in_.fail(place(),
             depth_ == 0    ? "an object"
             : in_metadata_ ? "an object of strings"
             : depth_ == 1  ? "an object with dtype, shape and data_offsets"
             : field_ == "dtype"
                 ? "a string for dtype"
                 : "an array of a few non-negative integers for " + printable(field_),
             found);
  }

  const Cursor& in_;
  std::string_view header_;
  TensorFile& file_;
  std::vector<Entry>& entries_;
  int depth_ = 0;
  bool in_array_ = false, in_metadata_ = false, seen_metadata_ = false;
  std::string field_;
};

void check_duplicates(const Cursor& in, const TensorFile& file, const std::vector<Entry>& entries) {
  std::vector<std::string_view> names, keys;
  for (const auto& e : entries) names.push_back(e.tensor.name);
  for (const auto& entry : file.metadata) keys.push_back(entry.first);
  if (auto twice = find_duplicate(std::move(names)))
    in.fail("header", "every tensor once", "'" + printable(*twice) + "' twice");
  if (auto twice = find_duplicate(std::move(keys)))
    in.fail("__metadata__", "every key once", "'" + printable(*twice) + "' twice");
}

// The format allows neither holes nor overlaps: in the order of their offsets the tensors follow
// one another from 0 to the end of the file.
void place_tensors(const Cursor& in, const SharedBytes& bytes, std::vector<Entry>& entries,
                   TensorFile& file) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.offsets[0], a.offsets[1]) < std::pair(b.offsets[0], b.offsets[1]);
  });
  const uint64_t start = in.offset();
  uint64_t running = 0;
  for (Entry& e : entries) {
    std::string place = "tensor '" + printable(e.tensor.name) + "'";
    std::optional<uint64_t> size = static_cast<uint64_t>(info(e.tensor.dtype).block_bytes);
    for (int64_t d : e.tensor.shape)
      if (size) size = checked_mul(*size, static_cast<uint64_t>(d));
    if (!size) in.fail(place, "a size below 2^64", "dimensions whose product overflows");
    auto [begin, end] = std::pair(e.offsets[0], e.offsets[1]);
    if (begin != running)
      in.fail(place, fmt::format("data from {} (no hole, no overlap)", running),
              fmt::format("data from {}", begin));
    if (end < begin || end - begin != *size)
      in.fail(place, fmt::format("{} bytes for its shape and dtype", *size),
              fmt::format("data_offsets {} to {}", begin, end));
    if (end > in.remaining())
      in.fail(place, fmt::format("data up to {}", end),
              fmt::format("{} bytes of data in the file", in.remaining()));
    e.tensor.data = {bytes.owner, bytes.bytes.subspan(start + begin, *size)};
    running = end;
    file.tensors.push_back(std::move(e.tensor));
  }
  if (running != in.remaining())
    in.fail("data", fmt::format("{} bytes, as the header says", running),
            fmt::format("{} to the end of the file", in.remaining()));
}

TensorFile read_sharded(const std::filesystem::path& path) {
  const std::string file = path.string();
  auto fail = [&](const std::string& place, const std::string& expected, const std::string& found) {
    throw_error("{}: safetensors index: {}: expected {}, found {}", file, place, expected, found);
  };
  nlohmann::json index = read_json_file(path);
  const nlohmann::json* map = find_json(index, "/weight_map");
  if (!map || !map->is_object()) fail("weight_map", "an object of tensor names", "none");
  std::map<std::string, std::set<std::string>> shards;  // shard -> its tensors
  for (const auto& [name, shard] : map->items()) {
    std::string place = "weight_map '" + printable(name) + "'";
    if (!shard.is_string()) fail(place, "a file name", "another type");
    const auto& shard_name = shard.get_ref<const std::string&>();
    // A name that leads out of the folder could open any file of the user.
    if (shard_name.empty() ||
        shard_name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
        shard_name == "." || shard_name == "..")
      fail(place, "a file name inside the folder", "'" + printable(shard_name) + "'");
    shards[shard_name].insert(name);
  }
  TensorFile whole;
  whole.path = file;
  whole.format = "safetensors";
  for (const auto& [shard, names] : shards) {
    TensorFile part = read_safetensors(path.parent_path() / shard);
    for (Tensor& t : part.tensors) {
      if (!names.contains(t.name))
        fail("shard '" + printable(shard) + "'", "only tensors that weight_map places there",
             "'" + printable(t.name) + "'");
      whole.tensors.push_back(std::move(t));
    }
    if (part.tensors.size() != names.size())
      fail("shard '" + printable(shard) + "'", fmt::format("{} tensors", names.size()),
           std::to_string(part.tensors.size()));
    for (auto& [key, value] : part.metadata) whole.set_meta(key, std::move(value));
  }
  return whole;
}

}  // namespace

TensorFile parse_safetensors(const std::string& path, SharedBytes bytes) {
  Cursor in(path, "safetensors", bytes.bytes);
  auto header = in.take_text<uint64_t>("header");
  TensorFile file;
  file.path = path;
  file.format = "safetensors";
  std::vector<Entry> entries;
  HeaderParser parser(in, header, file, entries);
  nlohmann::json::sax_parse(header.begin(), header.end(), &parser);
  check_duplicates(in, file, entries);
  place_tensors(in, bytes, entries, file);
  return file;
}

TensorFile read_safetensors(const std::filesystem::path& path) {
  if (path.extension() == ".json") return read_sharded(path);
  auto file = MappedFile::open(path);
  return parse_safetensors(path.string(), {file, file->bytes()});
}

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, std::string>>& metadata,
                       const std::vector<TensorSource>& tensors) {
  auto fail = [&](const std::string& place, const std::string& expected, const std::string& found) {
    throw_error("{}: safetensors: {}: expected {}, found {}", path.string(), place, expected,
                found);
  };
  // Wide elements first, so that every tensor lies on its element's boundary.
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return info(tensors[a].dtype).block_bytes > info(tensors[b].dtype).block_bytes;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    auto& strings = header["__metadata__"] = nlohmann::ordered_json::object();
    for (const auto& [key, value] : metadata) strings[key] = value;
  }
  uint64_t offset = 0;
  std::vector<std::string_view> names;
  for (size_t i : order) {
    const TensorSource& t = tensors[i];
    auto type = std::find_if(std::begin(kTypes), std::end(kTypes),
                             [&](const NamedType& n) { return n.dtype == t.dtype; });
    if (type == std::end(kTypes))
      fail("tensor '" + printable(t.name) + "'", "a dtype of " + known_types(),
           std::string(info(t.dtype).name));
    if (!is_utf8(t.name) || t.name == "__metadata__")
      fail("tensors", "a name in UTF-8, not __metadata__", "'" + printable(t.name) + "'");
    names.push_back(t.name);
    uint64_t end = offset + source_bytes(path.string(), "safetensors", t);
    // push_back rather than operator[]: ordered_json looks keys up linearly.
    nlohmann::ordered_json entry;
    entry["dtype"] = type->name;
    entry["shape"] = t.shape;
    entry["data_offsets"] = {offset, end};
    header.get_ref<nlohmann::ordered_json::object_t&>().push_back({t.name, std::move(entry)});
    offset = end;
  }
  if (auto twice = find_duplicate(std::move(names)))
    fail("tensors", "every name once", "'" + printable(*twice) + "' twice");
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize(round_up(text.size(), 8), ' ');
  const uint64_t length = text.size();
  AtomicFile file(path);
  TensorWriter writer(file);
  writer.write(std::as_bytes(std::span(&length, 1)));
  writer.write(std::as_bytes(std::span(text)));
  for (size_t i : order)
    writer.write(tensors[i], source_bytes(path.string(), "safetensors", tensors[i]));
  writer.flush();
  file.commit();
}

}  // namespace mt
