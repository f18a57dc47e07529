#include "cli/kv_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "kernels/kv_strips.h"

namespace mt::cli {
namespace {

struct Type {
  Dtype dtype = Dtype::F16;
  bool before_rope = false;
};
struct Spelled {
  Type type;
  std::vector<LayerType> of;
};

// Keys by channel that are rounded before RoPE.
constexpr std::string_view kBeforeRope = "Q4_1_PRE_ROPE";

bool same_name(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::toupper(x) == std::toupper(y);
  });
}

Type cache_type(const std::string& text, KvPart part) {
  const bool before_rope = same_name(text, kBeforeRope);
  const auto dtype = before_rope ? Dtype::Q4_1 : dtype_from_name(text);
  if (part == KvPart::values && dtype && by_channel(*dtype))
    throw_error("'{}' is a format of cached keys only: expected f32, f16, bf16, q8_0 or q4_0",
                text);
  if (!dtype || !is_key_type(*dtype))
    throw_error("'{}' is no format of a cache: expected f32, f16, bf16, q8_0{}", text,
                part == KvPart::keys ? ", q4_0, q4_1 or q4_1_pre_rope" : " or q4_0");
  return {*dtype, before_rope};
}

int64_t layer_number(std::string_view text) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size() || n < 0 || n > 1'000'000)
    throw_error("'{}' is no layer: expected layers as in q8_0:0-1=f16", text);
  return n;
}

// "q8_0", "q8_0:0-1=f16:29=f16".
Spelled spelled(const std::string& text, KvPart kind) {
  Spelled result;
  size_t begin = 0;
  for (bool first = true; begin <= text.size(); first = false) {
    const size_t end = std::min(text.find(':', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const size_t equal = part.find('=');
    if (first) {
      result.type = cache_type(part, kind);
    } else {
      if (equal == part.npos)
        throw_error("'{}': expected layers and a format, as in 0-1=f16", part);
      const std::string layers = part.substr(0, equal);
      const size_t dash = std::min(layers.find('-'), layers.size());
      const int64_t from = layer_number(std::string_view(layers).substr(0, dash));
      const int64_t to =
          dash < layers.size() ? layer_number(std::string_view(layers).substr(dash + 1)) : from;
      const Type type = cache_type(part.substr(equal + 1), kind);
      if (from > to) throw_error("'{}': expected the lower layer first, as in 0-1=f16", part);
      result.of.push_back(
          {.first = from, .last = to, .dtype = type.dtype, .before_rope = type.before_rope});
    }
    begin = end + 1;
  }
  return result;
}

std::string_view name_of(Dtype dtype, bool before_rope) {
  return before_rope ? kBeforeRope : name(dtype);
}

std::string why_not(const std::string& text, KvPart part) {
  try {
    spelled(text, part);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace

void declare_kv_types(CLI::App& app, KvOptions& options, bool list) {
  const std::string each = list ? "; a list, a row for each" : "";
  auto declare = [&](const char* name, KvPart part, std::vector<std::string>& types,
                     const std::string& help) {
    auto* option =
        app.add_option(name, types, help + each + " (default: f16; exact path: f32)")
            ->check(CLI::Validator([part](std::string& text) { return why_not(text, part); }, ""))
            ->type_name(list ? "TYPE,..." : "TYPE");
    if (list)
      option->delimiter(',');
    else
      option->expected(1);
  };
  declare(
      "--cache-type-k", KvPart::keys, options.keys,
      "Format of cached keys: f32 f16 bf16 q8_0 q4_0 q4_1 (4 bits by channel over 32 positions: "
      "far nearer than q4_0) q4_1_pre_rope (the same before RoPE: nearer still, a little slower); "
      "layers apart: q8_0:0-1=f16, of two that name a layer the later");
  declare("--cache-type-v", KvPart::values, options.values,
          "Format of cached values: f32 f16 bf16 q8_0 q4_0; layers as for --cache-type-k");
}

std::vector<KvTypes> kv_type_list(const KvOptions& options, Path path) {
  const auto &k = options.keys, &v = options.values;
  if (k.size() > 1 && v.size() > 1 && k.size() != v.size())
    throw_error(
        "--cache-type-k and --cache-type-v: expected as many of one as of the other, found "
        "{} and {}",
        k.size(), v.size());
  auto type = [&](const std::vector<std::string>& names, KvPart part, size_t i, Dtype otherwise) {
    if (names.empty()) return Spelled{{otherwise}, {}};
    return spelled(names[names.size() == 1 ? 0 : i], part);
  };
  const KvTypes standard = default_kv_types(path);
  std::vector<KvTypes> list;
  for (size_t i = 0; i < std::max({k.size(), v.size(), size_t{1}}); ++i) {
    const Spelled keys = type(k, KvPart::keys, i, standard.keys);
    const Spelled values = type(v, KvPart::values, i, standard.values);
    list.push_back({.keys = keys.type.dtype,
                    .values = values.type.dtype,
                    .keys_of = keys.of,
                    .values_of = values.of,
                    .before_rope = keys.type.before_rope});
    if (path != Path::fast && list.back() != KvTypes{})
      throw_error("a cache in {} is of the fast path (--path fast); the exact path's is F32",
                  kv_name(list.back()));
  }
  return list;
}

KvTypes kv_types(const KvOptions& options, Path path) {
  return kv_type_list(options, path).front();
}

std::string kv_name(const KvTypes& types, KvPart part) {
  const bool keys = part == KvPart::keys;
  std::string out(keys ? name_of(types.keys, types.before_rope) : name(types.values));
  for (const LayerType& t : keys ? types.keys_of : types.values_of) {
    const std::string_view type = name_of(t.dtype, t.before_rope);
    out += t.first == t.last ? fmt::format(":{}={}", t.first, type)
                             : fmt::format(":{}-{}={}", t.first, t.last, type);
  }
  return out;
}

std::string kv_name(const KvTypes& types) {
  const std::string keys = kv_name(types, KvPart::keys);
  const std::string values = kv_name(types, KvPart::values);
  return keys == values ? keys : keys + "/" + values;
}

}  // namespace mt::cli
