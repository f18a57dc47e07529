#pragma once
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "run/forward.h"

namespace mt::cli {

// Formats of the cache as they were asked for, llama.cpp's names, and perhaps layers that have
// another: "q8_0:0-1=f16:29=f16"; empty: the path's default.
struct KvOptions {
  std::vector<std::string> keys, values;
};

// --cache-type-k and --cache-type-v (llama.cpp's -ctk and -ctv, which main.cpp spells out).
// list: several may be given.
void declare_kv_types(CLI::App& app, KvOptions& options, bool list = false);

// One for each that was asked for; a single one goes with all of the other list. Throws Error where
// two lists differ in length, or where the exact path, whose cache is F32, is to have another.
std::vector<KvTypes> kv_type_list(const KvOptions& options, Path path);
KvTypes kv_types(const KvOptions& options, Path path);

// "F16", "Q8_0:0-1=F16"; or keys and values where they differ: "Q8_0/F16".
std::string kv_name(const KvTypes& types, KvPart part);
std::string kv_name(const KvTypes& types);

}  // namespace mt::cli
