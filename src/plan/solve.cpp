#include "plan/solve.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "plan/knapsack.h"

namespace mt {
namespace {

constexpr int64_t max_bytes = int64_t{1} << 50;  // sums stay exact as doubles
constexpr size_t max_layouts = 256;

std::string in_mb(int64_t bytes) {
  return fmt::format("{} bytes ({:.2f} MB)", bytes, double(bytes) / 1e6);
}

std::string with_hint(const SolveSettings& settings) {
  return settings.hint.empty() ? "" : "; " + settings.hint;
}

void check(const Problem& problem) {
  const auto size_ok = [](int64_t bytes) { return bytes >= 0 && bytes < max_bytes; };
  if (!size_ok(problem.fixed_bytes))
    throw_error("plan: fixed bytes are {}, expected 0 to 2^50", problem.fixed_bytes);
  int64_t largest = problem.fixed_bytes;
  for (const Place& place : problem.places) {
    if (place.options.empty()) throw_error("plan: '{}' has no option", place.name);
    int64_t of_place = 0;
    for (const Option& option : place.options) {
      if (!size_ok(option.bytes))
        throw_error("plan: '{}' has an option of {} bytes, expected 0 to 2^50", place.name,
                    option.bytes);
      if (!std::isfinite(option.loss))
        throw_error("plan: '{}' has an option whose loss is not finite ({})", place.name,
                    option.loss);
      of_place = std::max(of_place, option.bytes);
    }
    largest += of_place;
    if (!size_ok(largest)) throw_error("plan: the sizes up to '{}' sum beyond 2^50", place.name);
  }
  for (const Exclusive& choice : problem.alternatives) {
    if (choice.alternatives.empty()) throw_error("plan: '{}' has no alternative", choice.name);
    for (const Alternative& a : choice.alternatives) {
      if (std::abs(a.fixed_bytes) >= max_bytes || !std::isfinite(a.fixed_loss))
        throw_error("plan: alternative '{}' of '{}' has no finite size or loss", a.label,
                    choice.name);
      for (const size_t p : a.places)
        if (p >= problem.places.size())
          throw_error("plan: alternative '{}' of '{}' names place {}, there are {}", a.label,
                      choice.name, p, problem.places.size());
    }
  }
}

// One alternative of each exclusive, and so: which places are in use.
struct Layout {
  std::vector<int> alternative;
  std::vector<bool> used;
  int64_t fixed_bytes = 0;
  double fixed_loss = 0;
};

Layout make_layout(const Problem& problem, const std::vector<int>& alternative) {
  Layout layout{alternative, std::vector<bool>(problem.places.size(), true), problem.fixed_bytes,
                0};
  for (const Exclusive& choice : problem.alternatives)
    for (const Alternative& a : choice.alternatives)
      for (const size_t p : a.places) layout.used[p] = false;
  for (size_t e = 0; e < alternative.size(); ++e) {
    const Alternative& a = problem.alternatives[e].alternatives[alternative[e]];
    for (const size_t p : a.places) layout.used[p] = true;
    layout.fixed_bytes += a.fixed_bytes;
    layout.fixed_loss += a.fixed_loss;
  }
  return layout;
}

std::vector<Layout> all_layouts(const Problem& problem) {
  std::vector<Layout> layouts;
  std::vector<int> alternative(problem.alternatives.size(), 0);
  for (;;) {
    layouts.push_back(make_layout(problem, alternative));
    if (layouts.size() > max_layouts)
      throw_error("plan: the alternatives combine to more than {} layouts", max_layouts);
    size_t e = 0;
    while (e < alternative.size() &&
           ++alternative[e] == int(problem.alternatives[e].alternatives.size()))
      alternative[e++] = 0;
    if (e == alternative.size()) return layouts;
  }
}

// Places that are decided together (a group, or one place), and their joint options.
struct Item {
  std::vector<size_t> places;
  struct Joint {
    std::vector<int> option;  // of each place
    int64_t bytes = 0;
    double loss = 0;
  };
  std::vector<Joint> joint;
};

using Format = std::pair<bool, Dtype>;  // kept, or written as
Format format_of(const Option& option) {
  return option.keep ? Format{true, Dtype::F32} : Format{false, option.dtype};
}

// Kept bytes first, then by format number: the order in which ties are decided.
std::vector<int> in_tie_order(const Place& place) {
  std::vector<int> order(place.options.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = int(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const Option &x = place.options[a], &y = place.options[b];
    return std::pair(!x.keep, uint32_t(x.dtype)) < std::pair(!y.keep, uint32_t(y.dtype));
  });
  return order;
}

std::vector<Item> make_items(const Problem& problem, const Layout& layout) {
  std::vector<Item> items;
  std::map<int, size_t> item_of_group;
  for (size_t p = 0; p < problem.places.size(); ++p) {
    if (!layout.used[p]) continue;
    const Place& place = problem.places[p];
    if (place.group >= 0) {
      const auto [it, fresh] = item_of_group.try_emplace(place.group, items.size());
      if (!fresh) {
        items[it->second].places.push_back(p);
        continue;
      }
    }
    items.push_back({.places = {p}, .joint = {}});
  }
  for (Item& item : items) {
    const Place& first = problem.places[item.places[0]];
    for (const int o : in_tie_order(first)) {
      Item::Joint joint{{o}, first.options[o].bytes, first.options[o].loss};
      for (size_t i = 1; i < item.places.size(); ++i) {
        const Place& other = problem.places[item.places[i]];
        const auto order = in_tie_order(other);
        const auto same = std::find_if(order.begin(), order.end(), [&](int q) {
          return format_of(other.options[q]) == format_of(first.options[o]);
        });
        if (same == order.end()) break;
        joint.option.push_back(*same);
        joint.bytes += other.options[*same].bytes;
        joint.loss += other.options[*same].loss;
      }
      if (joint.option.size() == item.places.size()) item.joint.push_back(std::move(joint));
    }
    if (item.joint.empty())
      throw_error("plan: '{}' and the {} places of its group have no format in common", first.name,
                  item.places.size() - 1);
  }
  return items;
}

// The sums in order of places: what every answer is judged by.
void total(const Problem& problem, const Layout& layout, Solution& s) {
  s.alternative = layout.alternative;
  s.bytes = layout.fixed_bytes;
  s.loss = layout.fixed_loss;
  for (size_t p = 0; p < problem.places.size(); ++p) {
    if (s.option[p] < 0) continue;
    s.bytes += problem.places[p].options[s.option[p]].bytes;
    s.loss += problem.places[p].options[s.option[p]].loss;
  }
}

enum class Goal { loss, bytes };

struct Attempt {
  Layout layout;
  std::vector<Item> items;
  std::vector<std::vector<Point>> classes;
  double fixed_cost = 0, capacity = 0;
};

Attempt make_attempt(const Problem& problem, Layout layout, Goal goal, double limit) {
  Attempt a{std::move(layout), {}, {}, 0, 0};
  a.items = make_items(problem, a.layout);
  a.fixed_cost = goal == Goal::loss ? a.layout.fixed_loss : double(a.layout.fixed_bytes);
  const double fixed_weight =
      goal == Goal::loss ? double(a.layout.fixed_bytes) : a.layout.fixed_loss;
  a.capacity = limit - fixed_weight;
  for (const Item& item : a.items) {
    std::vector<Point> points;
    for (size_t j = 0; j < item.joint.size(); ++j) {
      const double bytes = double(item.joint[j].bytes), loss = item.joint[j].loss;
      points.push_back(goal == Goal::loss ? Point{bytes, loss, int(j)}
                                          : Point{loss, bytes, int(j)});
    }
    a.classes.push_back(std::move(points));
  }
  return a;
}

// Every layout is a knapsack of its own; one whose bound is no better than the best so far ends
// there. Nothing: no layout fits.
std::optional<Solution> solve(const Problem& problem, Goal goal, double limit,
                              const SolveSettings& settings) {
  std::optional<Solution> best;
  double best_cost = std::numeric_limits<double>::infinity(), bound = best_cost;
  for (Layout& layout : all_layouts(problem)) {
    const Attempt a = make_attempt(problem, std::move(layout), goal, limit);
    const Picked picked = pick_one_each(a.classes, a.capacity,
                                        {.gap = settings.gap,
                                         .cost_offset = a.fixed_cost,
                                         .cutoff = best_cost - a.fixed_cost,
                                         .max_nodes = settings.max_nodes,
                                         .max_seconds = settings.max_seconds});
    bound = std::min(bound, picked.bound + a.fixed_cost);
    if (!picked.found || !(picked.cost + a.fixed_cost < best_cost)) continue;
    best_cost = picked.cost + a.fixed_cost;
    Solution s;
    s.option.assign(problem.places.size(), -1);
    for (size_t i = 0; i < a.items.size(); ++i)
      for (size_t m = 0; m < a.items[i].places.size(); ++m)
        s.option[a.items[i].places[m]] = a.items[i].joint[picked.ids[i]].option[m];
    total(problem, a.layout, s);
    best = std::move(s);
  }
  if (best)
    best->gap = best_cost > bound ? (best_cost - bound) / std::max(std::abs(best_cost), 1e-300) : 0;
  return best;
}

double least(const Problem& problem, Goal goal) {
  double best = std::numeric_limits<double>::infinity();
  for (Layout& layout : all_layouts(problem)) {
    // The goal's quantity is the weight of the other goal.
    const Attempt a =
        make_attempt(problem, std::move(layout), goal == Goal::bytes ? Goal::loss : Goal::bytes, 0);
    double sum = -a.capacity;
    for (const auto& points : a.classes) {
      double low = std::numeric_limits<double>::infinity();
      for (const Point& p : points) low = std::min(low, p.weight);
      sum += low;
    }
    best = std::min(best, sum);
  }
  return best;
}

double with_rounding(double loss) {
  return loss + 1e-12 * std::abs(loss);
}

// What llama.cpp's quantizer writes instead where the row length does not fit the block.
std::optional<Dtype> fallback_of(Dtype dtype) {
  constexpr std::array<std::pair<Dtype, Dtype>, 15> table = {{
      {Dtype::Q2_K, Dtype::Q4_0},
      {Dtype::Q3_K, Dtype::Q4_0},
      {Dtype::Q4_K, Dtype::Q5_0},
      {Dtype::Q5_K, Dtype::Q5_1},
      {Dtype::Q6_K, Dtype::Q8_0},
      {Dtype::IQ4_XS, Dtype::IQ4_NL},
      {Dtype::IQ1_S, Dtype::IQ4_NL},
      {Dtype::IQ1_M, Dtype::IQ4_NL},
      {Dtype::IQ2_XXS, Dtype::IQ4_NL},
      {Dtype::IQ2_XS, Dtype::IQ4_NL},
      {Dtype::IQ2_S, Dtype::IQ4_NL},
      {Dtype::IQ3_XXS, Dtype::IQ4_NL},
      {Dtype::IQ3_S, Dtype::IQ4_NL},
      {Dtype::TQ1_0, Dtype::Q4_0},
      {Dtype::TQ2_0, Dtype::Q4_0},
  }};
  for (const auto& [from, to] : table)
    if (from == dtype) return to;
  return std::nullopt;
}

int find_dtype(const Place& place, Dtype dtype) {
  int found = -1;
  for (const int o : in_tie_order(place))
    if (found < 0 && place.options[o].dtype == dtype) found = o;
  return found;
}

// The offered format of the fewest bits that has at least those of the one asked for; else the
// largest. Kept bytes serve only as a last resort: they are not a cut.
int next_larger(const Place& place, Dtype dtype) {
  const double bits = info(dtype).bits_per_weight();
  int best = -1;
  const auto rank = [&](int o) {
    const Option& option = place.options[o];
    const double b = info(option.dtype).bits_per_weight();
    return std::tuple(b < bits, b < bits ? -b : b, option.keep, uint32_t(option.dtype));
  };
  for (int o = 0; o < int(place.options.size()); ++o)
    if (best < 0 || rank(o) < rank(best)) best = o;
  return best;
}

}  // namespace

std::vector<int> own_curve(const Place& place) {
  std::vector<Point> points;
  for (const int o : in_tie_order(place))
    points.push_back({double(place.options[o].bytes), place.options[o].loss, o});
  std::vector<int> curve;
  for (const Point& p : lower_staircase(std::move(points))) curve.push_back(p.id);
  return curve;
}

int64_t fewest_bytes(const Problem& problem) {
  check(problem);
  return int64_t(least(problem, Goal::bytes));
}

Solution minimise_loss(const Problem& problem, int64_t budget, const SolveSettings& settings) {
  check(problem);
  auto solution =
      solve(problem, Goal::loss, double(std::clamp<int64_t>(budget, -1, max_bytes)), settings);
  if (!solution)
    throw_error("plan: nothing fits in {}: the fewest bytes reachable are {}{}", in_mb(budget),
                in_mb(int64_t(least(problem, Goal::bytes))), with_hint(settings));
  return std::move(*solution);
}

Solution minimise_bytes(const Problem& problem, double max_loss, const SolveSettings& settings) {
  check(problem);
  if (!std::isfinite(max_loss)) throw_error("plan: the loss asked for is not finite");
  auto solution = solve(problem, Goal::bytes, with_rounding(max_loss), settings);
  if (!solution)
    throw_error("plan: no choice has a predicted loss of {:.6g} or less: the smallest is {:.6g}{}",
                max_loss, least(problem, Goal::loss), with_hint(settings));
  // Of the choices of that size the one of least loss.
  const auto polished = solve(problem, Goal::loss, double(solution->bytes), settings);
  if (polished && polished->loss < solution->loss) {
    const double gap = solution->gap;
    solution = polished;
    solution->gap = gap;
  }
  return std::move(*solution);
}

Solution uniform(const Problem& problem, Dtype dtype, const SolveSettings& settings) {
  check(problem);
  const Layout layout = make_layout(problem, std::vector<int>(problem.alternatives.size(), 0));
  Solution s;
  s.option.assign(problem.places.size(), -1);
  for (size_t p = 0; p < problem.places.size(); ++p) {
    if (!layout.used[p]) continue;
    const Place& place = problem.places[p];
    int o = find_dtype(place, dtype);
    if (o < 0) {
      if (const auto other = fallback_of(dtype)) o = find_dtype(place, *other);
      if (o < 0) o = next_larger(place, dtype);
      s.notes.push_back(fmt::format("{}: {} in place of {}, which it does not offer", place.name,
                                    name(place.options[o].dtype), name(dtype)));
    }
    s.option[p] = o;
  }
  total(problem, layout, s);
  if (s.notes.size() == problem.places.size() && !s.notes.empty())
    throw_error("plan: no place offers {}{}", name(dtype), with_hint(settings));
  s.gap = -1;  // nothing was optimised
  return s;
}

std::vector<Solution> frontier(const Problem& problem, int n, const SolveSettings& settings,
                               int64_t most) {
  check(problem);
  if (n < 2 || n > 10000) throw_error("plan: a frontier has 2 to 10000 points, not {}", n);
  const int64_t low = int64_t(least(problem, Goal::bytes));
  const int64_t best = minimise_bytes(problem, least(problem, Goal::loss), settings).bytes;
  const int64_t high = std::max(low, std::min(best, most));
  std::vector<Solution> points;
  for (int i = 0; i < n; ++i) {
    const double share = double(i) / (n - 1);
    const int64_t budget = i == n - 1
                               ? high
                               : std::clamp(int64_t(std::exp((1 - share) * std::log(double(low)) +
                                                             share * std::log(double(high))) +
                                                    0.5),
                                            low, high);
    Solution s = minimise_loss(problem, budget, settings);
    // A solve ends within its gap; a point that is no better than a smaller one is left out.
    if (!points.empty() && (s.loss >= points.back().loss || s.bytes <= points.back().bytes))
      continue;
    points.push_back(std::move(s));
  }
  return points;
}

Decision decide(const Place& place, const Option& chosen) {
  Decision decision{place.name, chosen, {}, {}};
  for (const int o : own_curve(place)) {
    const Option& option = place.options[o];
    if (option.bytes < chosen.bytes) decision.cheaper = option;
    if (option.bytes > chosen.bytes && !decision.dearer) decision.dearer = option;
  }
  return decision;
}

Plan to_plan(const Problem& problem, const Solution& solution) {
  Plan plan;
  plan.fixed_bytes = problem.fixed_bytes;
  for (size_t e = 0; e < problem.alternatives.size(); ++e)
    plan.fixed_bytes += problem.alternatives[e].alternatives[solution.alternative[e]].fixed_bytes;
  plan.predicted_bytes = solution.bytes;
  plan.predicted_kl = solution.loss;
  plan.optimality_gap = solution.gap;
  for (const std::string& note : solution.notes)
    plan.note += (plan.note.empty() ? "" : "\n") + note;
  std::set<std::string> names;
  for (size_t p = 0; p < problem.places.size(); ++p) {
    if (solution.option[p] < 0) continue;
    const Place& place = problem.places[p];
    if (!names.insert(place.name).second)
      throw_error("plan: two places in use are named '{}'", place.name);
    plan.decisions.push_back(decide(place, place.options[solution.option[p]]));
  }
  return plan;
}

}  // namespace mt
