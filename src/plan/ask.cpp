#include "plan/ask.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/error.h"

namespace mt {
namespace {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
  return text;
}

bool by_bits(Dtype a, Dtype b) {
  const double x = info(a).bits_per_weight(), y = info(b).bits_per_weight();
  return x != y ? x < y : uint32_t(a) < uint32_t(b);
}

std::string names(const std::vector<Dtype>& types) {
  std::string text;
  for (const Dtype d : types) text += (text.empty() ? "" : " ") + std::string(name(d));
  return text;
}

// The format that a recipe such as Q4_K_M or IQ3_M is named after.
std::optional<Dtype> base_of_recipe(const std::string& word) {
  const size_t bar = word.rfind('_');
  if (bar == std::string::npos) return std::nullopt;
  const std::string size = lower(word.substr(bar + 1)), stem = word.substr(0, bar);
  if (size != "s" && size != "m" && size != "l" && size != "xs" && size != "xl")
    return std::nullopt;
  for (const std::string& name : {stem, stem + "_S", stem + "_K"})
    if (const auto dtype = dtype_from_name(name)) return dtype;
  return std::nullopt;
}

Dtype writable(const std::string& word, const std::string& where, const std::string& also) {
  const auto dtype = dtype_from_name(word);
  if (dtype && info(*dtype).encodes) return *dtype;
  if (dtype)
    throw_error("{}: {} can be read but not written; writable are {}", where, word,
                names(all_types()));
  if (const auto base = base_of_recipe(word))
    throw_error(
        "{}: '{}' is a recipe of llama.cpp's quantizer that mixes formats, not a format: use {} "
        "for that one alone, or --bpw {:.1f} (or --size) for a mix chosen by what is measured",
        where, word, name(*base), info(*base).bits_per_weight() + 0.3);
  throw_error("{}: '{}' is no format; writable are {}{}", where, word, names(all_types()), also);
}

}  // namespace

Dtype parse_type(const std::string& text) {
  return writable(trimmed(text), "--type", "");
}

int64_t parse_size(const std::string& given) {
  const std::string text = trimmed(given);
  const auto refuse = [&] [[noreturn]] (const char* why) {
    throw_error(
        "size '{}': {}; expected bytes such as 75000000, or a number with kB MB GB TB (powers of "
        "1000) or KiB MiB GiB TiB (powers of 1024), such as 75MB, 71.5MiB, 1.2 GB",
        given, why);
  };
  double value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc() || text.empty() || text[0] == '-') refuse("no number");
  const std::string unit = lower(trimmed(std::string(end, text.data() + text.size())));
  constexpr std::array<std::pair<std::string_view, double>, 14> units = {
      {{"", 1},
       {"b", 1},
       {"kb", 1e3},
       {"mb", 1e6},
       {"gb", 1e9},
       {"tb", 1e12},
       {"k", 1e3},
       {"m", 1e6},
       {"g", 1e9},
       {"t", 1e12},
       {"kib", 1024.0},
       {"mib", 1048576.0},
       {"gib", 1073741824.0},
       {"tib", 1099511627776.0}}};
  const auto unit_at =
      std::find_if(units.begin(), units.end(), [&](const auto& u) { return u.first == unit; });
  if (unit_at == units.end()) refuse("unknown unit");
  const double bytes = std::floor(value * unit_at->second + 1e-6);
  if (!(bytes >= 1)) refuse("less than a byte");
  if (bytes > 0x1p50) refuse("beyond 2^50 bytes");
  return int64_t(bytes);
}

std::vector<Dtype> default_types() {
  std::vector<Dtype> types = {Dtype::Q4_0,   Dtype::Q4_1,   Dtype::Q5_0, Dtype::Q5_1, Dtype::Q8_0,
                              Dtype::Q2_K,   Dtype::Q3_K,   Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K,
                              Dtype::IQ4_NL, Dtype::IQ4_XS, Dtype::F16};
  std::erase_if(types, [](Dtype d) { return !info(d).encodes; });
  std::sort(types.begin(), types.end(), by_bits);
  return types;
}

std::vector<Dtype> all_types() {
  std::vector<Dtype> types;
  for (const DtypeInfo& d : all_dtypes())
    if (d.encodes) types.push_back(d.dtype);
  std::sort(types.begin(), types.end(), by_bits);
  return types;
}

std::vector<Dtype> parse_types(const std::string& list) {
  std::vector<Dtype> types;
  bool first = true;
  for (size_t start = 0; start <= list.size();) {
    const size_t comma = std::min(list.find(',', start), list.size());
    const std::string entry = trimmed(list.substr(start, comma - start));
    start = comma + 1;
    const bool add = entry.starts_with('+'), remove = entry.starts_with('-');
    const std::string word = add || remove ? trimmed(entry.substr(1)) : entry;
    // "+Q2_0" and "-MXFP4" change the default set where nothing stands before them.
    if (first && (add || remove)) types = default_types();
    first = false;
    std::vector<Dtype> meant;
    if (lower(word) == "all") {
      meant = all_types();
    } else if (lower(word) == "default") {
      meant = default_types();
    } else {
      meant = {writable(word, fmt::format("types '{}'", list), ", and the words default and all")};
    }
    for (const Dtype d : meant) {
      std::erase(types, d);
      if (!remove) types.push_back(d);
    }
  }
  if (types.empty()) throw_error("types '{}': no format is left", list);
  std::sort(types.begin(), types.end(), by_bits);
  return types;
}

std::vector<Dtype> types_that_fit(const std::vector<Dtype>& types, int64_t cols) {
  std::vector<Dtype> fit;
  for (const Dtype d : types)
    if (cols > 0 && cols % info(d).block_length == 0) fit.push_back(d);
  return fit;
}

}  // namespace mt
