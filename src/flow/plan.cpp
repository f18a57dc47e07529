#include "flow/plan.h"

#include <cmath>
#include <set>

#include "base/error.h"
#include "flow/json_fields.h"

namespace mt {
namespace {

constexpr int format_version = 1;
constexpr size_t max_places = 1'000'000;
constexpr int64_t max_bytes = int64_t{1} << 60;

Json option_json(const Option& option) {
  Json j;
  j["dtype"] = std::string(name(option.dtype));
  if (option.keep) j["keep"] = true;
  j["bytes"] = option.bytes;
  j["loss"] = option.loss;
  return j;
}

void check_number(double value, const std::string& what) {
  if (!std::isfinite(value)) throw_error("plan: {} is not finite ({})", what, value);
}

std::string dump(const Json& json) {
  try {
    return json.dump();
  } catch (const Json::exception&) {
    throw_error("plan: a name or note is not UTF-8: {}", describe(json));
  }
}

Dtype read_dtype(const Fields& fields) {
  fields.need("dtype");
  const std::string text = fields.text("dtype");
  const auto dtype = dtype_from_name(text);
  if (!dtype)
    throw_error("{}: unknown dtype '{}', expected a format's name such as Q4_0 or Q6_K",
                fields.at("dtype"), text);
  return *dtype;
}

Option read_option(const Fields& fields) {
  return {.dtype = read_dtype(fields),
          .keep = fields.flag("keep", false),
          .bytes = fields.integer("bytes", 0, max_bytes, 0),
          .loss = fields.number("loss", 0)};
}

std::optional<Option> read_neighbour(const Fields& of, std::string_view field,
                                     const std::string& where) {
  if (!of.has(field)) return std::nullopt;
  return read_option(Fields(of.need(field), of.path(), fmt::format("{}.{}", where, field),
                            {"dtype", "keep", "bytes", "loss"}));
}

}  // namespace

bool keeps_all(const Plan& plan) {
  return std::all_of(plan.decisions.begin(), plan.decisions.end(),
                     [](const Decision& d) { return d.chosen.keep; });
}

std::string to_json(const Plan& plan) {
  check_number(plan.predicted_kl, "predicted_kl");
  check_number(plan.optimality_gap, "optimality_gap");
  Json head;
  head["microtome_plan"] = format_version;
  head["model_name"] = plan.model_name;
  head["model_sha256"] = plan.model_sha256;
  head["goal"] = plan.goal;
  if (!plan.calibration.empty()) head["calibration"] = plan.calibration;
  if (!plan.calibration_sha256.empty()) head["calibration_sha256"] = plan.calibration_sha256;
  if (!plan.aimed_on.empty()) head["aimed_on"] = plan.aimed_on;
  head["head"] = plan.head == HeadPlan::tied ? "tied" : "as_source";
  if (!plan.tied_source.empty()) head["tied_source"] = plan.tied_source;
  head["fixed_bytes"] = plan.fixed_bytes;
  head["predicted_bytes"] = plan.predicted_bytes;
  head["predicted_kl"] = plan.predicted_kl;
  head["optimality_gap"] = plan.optimality_gap;
  if (!plan.note.empty()) head["note"] = plan.note;
  std::string text = "{\n";
  for (const auto& [key, value] : head.items())
    text += fmt::format("  {}: {},\n", dump(key), dump(value));
  // One line a place: the plan reads, sorts and diffs as a table.
  text += "  \"places\": [";
  bool first = true;
  for (const Decision& d : plan.decisions) {
    Json line;
    line["place"] = d.place;
    check_number(d.chosen.loss, d.place + ".loss");
    line.update(option_json(d.chosen));
    for (const auto& [key, option] : {std::pair{"cheaper", &d.cheaper}, {"dearer", &d.dearer}}) {
      if (!*option) continue;
      check_number((*option)->loss, fmt::format("{}.{}.loss", d.place, key));
      line[key] = option_json(**option);
    }
    text += fmt::format("{}\n    {}", first ? "" : ",", dump(line));
    first = false;
  }
  return text + (first ? "]\n}\n" : "\n  ]\n}\n");
}

Plan plan_from_json(const std::string& text, const std::string& path) {
  const Json json = parse_json(text, path);
  const Fields fields(json, path, "",
                      {"microtome_plan", "model_name", "model_sha256", "goal", "calibration",
                       "calibration_sha256", "aimed_on", "head", "tied_source", "fixed_bytes",
                       "predicted_bytes", "predicted_kl", "optimality_gap", "note", "places"});
  const int64_t written = fields.integer("microtome_plan", 1, INT64_MAX, format_version);
  if (written != format_version)
    throw_error("{}: version {} of the plan format, this program reads {}",
                fields.at("microtome_plan"), written, format_version);
  Plan plan;
  plan.model_name = fields.text("model_name");
  plan.model_sha256 = fields.text("model_sha256");
  plan.goal = fields.text("goal");
  plan.calibration = fields.text("calibration");
  plan.calibration_sha256 = fields.text("calibration_sha256");
  plan.aimed_on = fields.text("aimed_on");
  const std::string head = fields.text("head", "as_source");
  if (head == "tied") {
    plan.head = HeadPlan::tied;
  } else if (head != "as_source") {
    throw_error("{}: expected \"as_source\" or \"tied\", found \"{}\"", fields.at("head"), head);
  }
  plan.tied_source = fields.text("tied_source");
  if (plan.head == HeadPlan::tied && plan.tied_source.empty())
    throw_error("{}: missing, a tied head says whose values serve", fields.at("tied_source"));
  plan.fixed_bytes = fields.integer("fixed_bytes", 0, max_bytes, 0);
  plan.predicted_bytes = fields.integer("predicted_bytes", 0, max_bytes, 0);
  plan.predicted_kl = fields.number("predicted_kl", 0);
  if (plan.predicted_kl < 0)
    throw_error("{}: expected 0 or more, found {}", fields.at("predicted_kl"), plan.predicted_kl);
  plan.optimality_gap = fields.number("optimality_gap", 0);
  plan.note = fields.text("note");

  std::set<std::string> names;
  const Json& places = fields.need_array("places", max_places);
  for (size_t i = 0; i < places.size(); ++i) {
    const std::string where = fmt::format("places[{}]", i);
    const Fields entry(places[i], path, where,
                       {"place", "dtype", "keep", "bytes", "loss", "cheaper", "dearer"});
    entry.need("place");
    Decision d;
    d.place = entry.text("place");
    if (d.place.empty()) throw_error("{}: empty", entry.at("place"));
    if (!names.insert(d.place).second)
      throw_error("{}: '{}' stands twice in the plan", entry.at("place"), d.place);
    d.chosen = read_option(entry);
    d.cheaper = read_neighbour(entry, "cheaper", where);
    d.dearer = read_neighbour(entry, "dearer", where);
    plan.decisions.push_back(std::move(d));
  }
  return plan;
}

}  // namespace mt
