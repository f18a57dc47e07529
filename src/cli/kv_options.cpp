#include "cli/kv_options.h"

#include <algorithm>

#include "base/error.h"

namespace mt::cli {

void declare_kv_types(CLI::App& app, KvOptions& options, bool list) {
  const std::string each = list ? "; a list, a row for each" : "";
  auto declare = [&](const char* name, std::vector<std::string>& types, const std::string& help) {
    auto* option =
        app.add_option(name, types, help + each + " (default: f16; exact path: f32)")
            ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0", "q4_0"}, CLI::ignore_case))
            ->type_name(list ? "TYPE,..." : "TYPE");
    if (list)
      option->delimiter(',');
    else
      option->expected(1);
  };
  declare("--cache-type-k", options.keys, "Format of cached keys: f32 f16 bf16 q8_0 q4_0");
  declare("--cache-type-v", options.values, "Format of cached values, as --cache-type-k");
}

std::vector<KvTypes> kv_type_list(const KvOptions& options, Path path) {
  const auto &k = options.keys, &v = options.values;
  if (k.size() > 1 && v.size() > 1 && k.size() != v.size())
    throw_error(
        "--cache-type-k and --cache-type-v: expected as many of one as of the other, found "
        "{} and {}",
        k.size(), v.size());
  auto type = [&](const std::vector<std::string>& names, size_t i, Dtype otherwise) {
    if (names.empty()) return otherwise;
    return dtype_from_name(names[names.size() == 1 ? 0 : i]).value();
  };
  const KvTypes standard = default_kv_types(path);
  std::vector<KvTypes> list;
  for (size_t i = 0; i < std::max({k.size(), v.size(), size_t{1}}); ++i) {
    list.push_back({.keys = type(k, i, standard.keys), .values = type(v, i, standard.values)});
    if (path != Path::fast && list.back() != KvTypes{})
      throw_error("a cache in {} is of the fast path; the exact path's is F32",
                  kv_name(list.back()));
  }
  return list;
}

KvTypes kv_types(const KvOptions& options, Path path) {
  return kv_type_list(options, path).front();
}

std::string kv_name(const KvTypes& types) {
  std::string out(name(types.keys));
  if (types.values != types.keys) out += "/" + std::string(name(types.values));
  return out;
}

}  // namespace mt::cli
