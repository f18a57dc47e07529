#include "file/imatrix.h"

#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "file/cursor.h"
#include "file/gguf.h"
#include "file/names.h"

namespace mt {
namespace {

constexpr std::string_view kSums = ".in_sum2";
constexpr std::string_view kCounts = ".counts";

[[noreturn]] void fail(const std::string& file, const std::string& place,
                       const std::string& expected, const std::string& found) {
  throw_error("{}: imatrix: {}: expected {}, found {}", file, place, expected, found);
}

// A mapped tensor may lie at any byte.
std::vector<float> floats_of(const std::string& file, const Tensor& t) {
  if (t.dtype != Dtype::F32)
    fail(file, "tensor '" + printable(t.name) + "'", "F32", std::string(name(t.dtype)));
  std::vector<float> values(t.data.bytes.size() / sizeof(float));
  std::memcpy(values.data(), t.data.bytes.data(), values.size() * sizeof(float));
  for (float v : values)
    if (!std::isfinite(v) || v < 0)
      fail(file, "tensor '" + printable(t.name) + "'", "finite sums of squares",
           fmt::format("{}", v));
  return values;
}

// Experts lie one below the other, [n_experts, in]; an entry holds one vector, so their sums and
// their counts are added.
ImatrixEntry make_entry(const std::string& file, const std::string& name, const Tensor& sums,
                        const Tensor& counts) {
  ImatrixEntry entry;
  entry.tensor = name;
  auto s = floats_of(file, sums);
  auto c = floats_of(file, counts);
  const auto in = static_cast<size_t>(sums.shape.back());
  if (c.size() != 1 && c.size() != s.size() / in)
    fail(file, "tensor '" + printable(counts.name) + "'", "one count, or one a matrix",
         fmt::format("{} counts for {} matrices", c.size(), s.size() / in));
  entry.in_sum2.assign(in, 0.0f);
  for (size_t i = 0; i < s.size(); ++i) entry.in_sum2[i % in] += s[i];
  for (float v : c) entry.count += v;
  return entry;
}

Imatrix from_gguf(const std::string& path, SharedBytes bytes) {
  TensorFile file = parse_gguf(path, std::move(bytes));
  auto type = file.get_string("general.type");
  if (type != "imatrix")
    fail(path, "general.type", "'imatrix'", type ? "'" + printable(*type) + "'" : "none");
  Imatrix imatrix;
  if (const auto* datasets = file.get_strings("imatrix.datasets")) imatrix.datasets = *datasets;
  imatrix.chunk_count = file.get_int("imatrix.chunk_count").value_or(0);
  imatrix.chunk_size = file.get_int("imatrix.chunk_size").value_or(0);
  std::map<std::string_view, const Tensor*> by_name;
  for (const Tensor& t : file.tensors) by_name[t.name] = &t;
  for (const Tensor& t : file.tensors) {
    std::string_view name = t.name;
    bool sums = name.ends_with(kSums);
    if (!sums && !name.ends_with(kCounts))
      fail(path, "tensor '" + printable(name) + "'", "a name in .in_sum2 or .counts", "another");
    std::string base(name.substr(0, name.size() - (sums ? kSums : kCounts).size()));
    std::string other = base + std::string(sums ? kCounts : kSums);
    auto partner = by_name.find(other);
    if (partner == by_name.end())
      fail(path, "tensor '" + printable(name) + "'", "'" + printable(other) + "' beside it",
           "none");
    if (sums) imatrix.entries.push_back(make_entry(path, base, t, *partner->second));
  }
  return imatrix;
}

// The form before GGUF: i32 n; n times (i32 length, name, i32 calls, i32 n_values, values), where
// values / calls is the mean square; then, in later versions, i32 chunks and the data set's name.
Imatrix from_dat(const std::string& path, std::span<const std::byte> bytes) {
  Cursor in(path, "imatrix", bytes);
  auto take_size = [&](const std::string& place) {
    auto n = in.take<int32_t>(place);
    if (n < 1) in.fail(place, "a positive size", std::to_string(n));
    return static_cast<uint64_t>(n);
  };
  Imatrix imatrix;
  // There is no mark to know the form by, but an entry takes 17 bytes at least.
  const auto told = bytes.size() < 4 ? int32_t{0} : in.take<int32_t>("entry count");
  if (told < 1 || static_cast<uint64_t>(told) > bytes.size() / 17)
    throw_error(
        "{}: expected an importance matrix (a GGUF file, or the older .dat form), found another "
        "kind of file",
        path);
  const auto n = static_cast<uint64_t>(told);
  std::vector<std::string_view> names;
  for (uint64_t i = 0; i < n; ++i) {
    std::string place = fmt::format("entry {}", i);
    auto length = take_size(place);
    auto text = in.take_bytes(length, place);
    std::string_view name(reinterpret_cast<const char*>(text.data()), text.size());
    if (!is_utf8(name)) in.fail(place, "a name in UTF-8", "'" + printable(name) + "'");
    names.push_back(name);
    ImatrixEntry entry;
    entry.tensor = name;
    entry.count = static_cast<double>(take_size(place));
    auto values = in.take_bytes(take_size(place) * sizeof(float), place);
    entry.in_sum2.resize(values.size() / sizeof(float));
    std::memcpy(entry.in_sum2.data(), values.data(), values.size());
    for (float v : entry.in_sum2)
      if (!std::isfinite(v) || v < 0)
        in.fail(place, "finite sums of squares", fmt::format("{}", v));
    imatrix.entries.push_back(std::move(entry));
  }
  if (auto twice = find_duplicate(std::move(names)))
    in.fail("entries", "every name once", "'" + printable(*twice) + "' twice");
  if (in.remaining() > 0) {
    imatrix.chunk_count = in.take<int32_t>("chunk count");
    imatrix.datasets.emplace_back(in.take_text<uint32_t>("data set"));
  }
  return imatrix;
}

}  // namespace

Imatrix read_imatrix(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  auto bytes = file->bytes();
  if (bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0)
    return from_gguf(path.string(), {file, bytes});
  return from_dat(path.string(), bytes);
}

void write_imatrix(const std::filesystem::path& path, const Imatrix& imatrix) {
  auto u32 = [&](const char* key, int64_t value) {
    if (value < 0 || value > UINT32_MAX) fail(path.string(), key, "a u32", std::to_string(value));
    return MetaValue{static_cast<uint32_t>(value)};
  };
  std::vector<std::pair<std::string, MetaValue>> metadata = {
      {"general.type", {std::string("imatrix")}},
      {"imatrix.datasets", {imatrix.datasets}},
      {"imatrix.chunk_count", u32("imatrix.chunk_count", imatrix.chunk_count)},
      {"imatrix.chunk_size", u32("imatrix.chunk_size", imatrix.chunk_size)},
  };
  std::vector<TensorSource> tensors;
  for (const ImatrixEntry& e : imatrix.entries) {
    tensors.push_back({e.tensor + std::string(kSums),
                       {static_cast<int64_t>(e.in_sum2.size())},
                       Dtype::F32,
                       [&e](const auto& write) { write(std::as_bytes(std::span(e.in_sum2))); }});
    tensors.push_back({e.tensor + std::string(kCounts), {1}, Dtype::F32, [&e](const auto& write) {
                         const float count = static_cast<float>(e.count);
                         write(std::as_bytes(std::span(&count, 1)));
                       }});
  }
  write_gguf(path, metadata, tensors);
}

}  // namespace mt
