#include "report/report_json.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "base/error.h"
#include "flow/json_fields.h"

namespace mt {
namespace {

constexpr int format_version = 1;
constexpr size_t max_entries = 1'000'000;

// One list of fields for reading and writing: `f(name, member)` for each.
template <class F>
void fields_of(F& f, Estimate& e) {
  f("value", e.value), f("low", e.low), f("high", e.high);
}

template <class F>
void fields_of(F& f, Comparison& c) {
  f("corpus", c.corpus), f("corpus_sha256", c.corpus_sha256), f("path", c.path);
  f("n_ctx", c.n_ctx), f("n_windows", c.n_windows), f("n_tokens", c.n_tokens);
  f("base_perplexity", c.base_perplexity), f("perplexity", c.perplexity);
  f("kl_mean", c.kl_mean), f("kl_median", c.kl_median), f("kl_p90", c.kl_p90);
  f("kl_p99", c.kl_p99), f("kl_p999", c.kl_p999), f("kl_max", c.kl_max);
  f("same_top", c.same_top), f("dp_mean", c.dp_mean), f("dp_rms", c.dp_rms);
}

template <class F>
void fields_of(F& f, PlaceReport& p) {
  f("place", p.place), f("layer", p.layer), f("role", p.role), f("from", p.from), f("to", p.to);
  f("n_weights", p.n_weights), f("bytes_from", p.bytes_from), f("bytes_to", p.bytes_to);
  f("predicted_kl", p.predicted_kl), f("measured_kl", p.measured_kl);
}

template <class F>
void fields_of(F& f, FrontierPoint& p) {
  f("bytes", p.bytes), f("bits_per_weight", p.bits_per_weight), f("predicted_kl", p.predicted_kl);
}

template <class F>
void fields_of(F& f, Report& r) {
  f("source", r.source), f("output", r.output);
  f("source_sha256", r.source_sha256), f("output_sha256", r.output_sha256), f("goal", r.goal);
  f("source_bytes", r.source_bytes), f("output_bytes", r.output_bytes);
  f("n_weights", r.n_weights), f("source_bits", r.source_bits), f("output_bits", r.output_bits);
  f("predicted_kl", r.predicted_kl), f("optimality_gap", r.optimality_gap);
  f("comparisons", r.comparisons), f("places", r.places), f("frontier", r.frontier);
  f("notes", r.notes), f("seconds", r.seconds), f("peak_memory_bytes", r.peak_memory_bytes);
  f("cpu", r.cpu), f("version", r.version);
}

template <class T>
concept Plain = std::is_same_v<T, std::string> || std::is_same_v<T, int64_t>;

struct Writer {
  Json json = Json::object();

  template <Plain T>
  static Json value_of(const T& v) {
    return v;
  }
  static Json value_of(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }
  template <class T>
  static Json value_of(const std::vector<T>& list) {
    Json array = Json::array();
    for (const T& v : list) array.push_back(value_of(v));
    return array;
  }
  template <class T>
  requires(std::is_class_v<T> && !Plain<T>) static Json value_of(const T& v) {
    Writer w;
    fields_of(w, const_cast<T&>(v));  // the one list serves reading too; nothing is written
    return w.json;
  }
  template <class T>
  void operator()(const char* name, const T& v) {
    json[name] = value_of(v);
  }
};

struct Reader {
  const Json& json;
  std::string where;  // path and field, for messages

  [[noreturn]] static void wrong(const std::string& at, const char* expected, const Json& found) {
    throw_error("{}: expected {}, found {}", at, expected, describe(found));
  }
  static void read(const Json& j, const std::string& at, std::string& v) {
    if (!j.is_string()) wrong(at, "a string", j);
    v = j.get<std::string>();
  }
  static void read(const Json& j, const std::string& at, int64_t& v) {
    const bool fits =
        j.is_number_unsigned() ? j.get<uint64_t>() <= uint64_t(INT64_MAX) : j.is_number_integer();
    if (!fits) wrong(at, "an integer", j);
    v = j.get<int64_t>();
  }
  static void read(const Json& j, const std::string& at, double& v) {
    if (!j.is_number() && !j.is_null()) wrong(at, "a number or null", j);
    v = j.is_null() ? std::numeric_limits<double>::quiet_NaN() : j.get<double>();
  }
  template <class T>
  static void read(const Json& j, const std::string& at, std::vector<T>& list) {
    if (!j.is_array() || j.size() > max_entries) wrong(at, "an array of at most a million", j);
    list.resize(j.size());
    for (size_t i = 0; i < j.size(); ++i) read(j[i], fmt::format("{}[{}]", at, i), list[i]);
  }
  template <class T>
  requires(std::is_class_v<T> && !Plain<T>) static void read(const Json& j, const std::string& at,
                                                             T& v) {
    if (!j.is_object()) wrong(at, "an object", j);
    Reader r{j, at};
    fields_of(r, v);
  }
  template <class T>
  void operator()(const char* name, T& v) {
    const auto it = json.find(name);
    const std::string at = where + (where.ends_with(' ') ? "" : ".") + name;
    if (it == json.end()) throw_error("{}: missing", at);
    read(*it, at, v);
  }
};

Json json_of(const Report& report) {
  Json json;
  json["microtome_report"] = format_version;
  json.update(Writer::value_of(report));
  return json;
}

}  // namespace

std::string to_json(const Report& report) {
  return json_of(report).dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string to_script_json(const Report& report) {
  const std::string text = json_of(report).dump(-1, ' ', true, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size() + text.size() / 16);
  for (const char c : text) {  // these stand in strings only, where an escape means the same
    if (c == '<' || c == '>' || c == '&') {
      safe += fmt::format("\\u{:04x}", int(c));
    } else {
      safe += c;
    }
  }
  return safe;
}

Report report_from_json(const std::string& text, const std::string& path) {
  const Json json = parse_json(text, path);
  if (!json.is_object()) throw_error("{}: expected an object, found {}", path, describe(json));
  int64_t version = 0;
  Reader{json, path + ": "}("microtome_report", version);
  if (version != format_version)
    throw_error("{}: version {} of the report format, this program reads {}", path, version,
                format_version);
  Report report;
  Reader reader{json, path + ": "};
  fields_of(reader, report);
  return report;
}

}  // namespace mt
