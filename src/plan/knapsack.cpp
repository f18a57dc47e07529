#include "plan/knapsack.h"

#include <CbcModel.hpp>
#include <OsiClpSolverInterface.hpp>

#include <algorithm>
#include <cmath>
#include <memory>

namespace mt {
namespace {

using Classes = std::vector<std::vector<Point>>;

double sum_weight(const Classes& classes, const std::vector<int>& at) {
  double sum = 0;
  for (size_t k = 0; k < classes.size(); ++k) sum += classes[k][at[k]].weight;
  return sum;
}

double sum_cost(const Classes& classes, const std::vector<int>& at) {
  double sum = 0;
  for (size_t k = 0; k < classes.size(); ++k) sum += classes[k][at[k]].cost;
  return sum;
}

// A step along the lower convex hull of one class.
struct Segment {
  int k, from, to;
  double weight, gain;  // both > 0
};

std::vector<Segment> hull_segments(const Classes& classes) {
  std::vector<Segment> segments;
  for (size_t k = 0; k < classes.size(); ++k) {
    const auto& p = classes[k];
    std::vector<int> hull;
    for (int i = 0; i < int(p.size()); ++i) {
      // Drops the last corner while it does not lie below the line past it.
      while (hull.size() >= 2) {
        const Point &a = p[hull[hull.size() - 2]], &b = p[hull.back()];
        if ((a.cost - b.cost) * (p[i].weight - a.weight) >
            (a.cost - p[i].cost) * (b.weight - a.weight))
          break;
        hull.pop_back();
      }
      hull.push_back(i);
    }
    for (size_t h = 1; h < hull.size(); ++h) {
      const Point &a = p[hull[h - 1]], &b = p[hull[h]];
      segments.push_back({int(k), hull[h - 1], hull[h], b.weight - a.weight, a.cost - b.cost});
    }
  }
  std::stable_sort(segments.begin(), segments.end(), [](const Segment& a, const Segment& b) {
    return a.gain * b.weight > b.gain * a.weight;
  });
  return segments;
}

// Spends what is left of the capacity: the single change that gains most, again and again; where
// none is left, the best pair of one step down and one change up.
void improve(const Classes& classes, double capacity, std::vector<int>& at) {
  double weight = sum_weight(classes, at);
  for (int round = 0; round < 1000; ++round) {
    double best = 0;
    int best_k = -1, best_to = -1;
    for (size_t k = 0; k < classes.size(); ++k) {
      const Point& now = classes[k][at[k]];
      for (size_t i = at[k] + 1; i < classes[k].size(); ++i) {
        if (weight - now.weight + classes[k][i].weight > capacity) break;
        const double gain = now.cost - classes[k][i].cost;
        if (gain > best) best = gain, best_k = int(k), best_to = int(i);
      }
    }
    if (best_k < 0) return;
    at[best_k] = best_to;
    weight = sum_weight(classes, at);
  }
}

struct Move {
  int k, to;
  double weight, cost;  // changes
};

bool swap_pair(const Classes& classes, double capacity, std::vector<int>& at) {
  std::vector<Move> up, down;
  for (size_t k = 0; k < classes.size(); ++k) {
    const Point& now = classes[k][at[k]];
    for (int i = 0; i < int(classes[k].size()); ++i) {
      if (i == at[k]) continue;
      const Move m{int(k), i, classes[k][i].weight - now.weight, classes[k][i].cost - now.cost};
      (i > at[k] ? up : down).push_back(m);
    }
  }
  // For each step down, the upward move of most gain within the room it leaves: by rising weight
  // with the best so far (and the best of another class, as both moves may not be of one class).
  std::stable_sort(up.begin(), up.end(),
                   [](const Move& a, const Move& b) { return a.weight < b.weight; });
  std::vector<int> first(up.size()), second(up.size());
  for (int i = 0; i < int(up.size()); ++i) {
    int f = i > 0 ? first[i - 1] : -1, s = i > 0 ? second[i - 1] : -1;
    const auto better = [&](int a, int b) { return b < 0 || up[a].cost < up[b].cost; };
    if (f < 0 || up[i].k == up[f].k) {
      if (better(i, f)) f = i;
    } else if (better(i, f)) {
      s = f, f = i;
    } else if (better(i, s)) {
      s = i;
    }
    first[i] = f, second[i] = s;
  }
  const double room = capacity - sum_weight(classes, at);
  double best = 0;
  Move best_down{-1, 0, 0, 0}, best_up{-1, 0, 0, 0};
  for (const Move& d : down) {
    const auto end = std::upper_bound(up.begin(), up.end(), room - d.weight,
                                      [](double r, const Move& m) { return r < m.weight; });
    if (end == up.begin()) continue;
    const size_t last = size_t(end - up.begin()) - 1;
    const int u = up[first[last]].k != d.k ? first[last] : second[last];
    if (u < 0 || up[u].k == d.k) continue;
    if (d.cost + up[u].cost < best) best = d.cost + up[u].cost, best_down = d, best_up = up[u];
  }
  if (best_down.k < 0) return false;
  auto tried = at;
  tried[best_down.k] = best_down.to;
  tried[best_up.k] = best_up.to;
  if (sum_weight(classes, tried) > capacity || !(sum_cost(classes, tried) < sum_cost(classes, at)))
    return false;
  at = std::move(tried);
  return true;
}

struct Core {
  std::vector<int> classes;              // which classes still have a choice
  std::vector<std::vector<int>> points;  // of each, which points
  double room = 0;                       // capacity without the decided classes
};

struct CoreAnswer {
  bool found = false;
  std::vector<int> at;  // per core class, index into Core::points
  double bound = 0;     // of the core's cost
};

// Weights and costs count from each class's least, and costs in thousandths of `open`, the distance
// between the solution at hand (which costs `at_hand`) and its bound: so that the solver's
// tolerances are small beside what is decided.
CoreAnswer solve_core(const Classes& classes, const Core& core, const std::vector<int>& at,
                      double at_hand, double open, double tolerance, const KnapsackLimits& limits) {
  const int n_classes = int(core.classes.size());
  double room = core.room, least_cost = 0;
  for (int c = 0; c < n_classes; ++c) {  // staircases: least weight first, least cost last
    room -= classes[core.classes[c]][core.points[c].front()].weight;
    least_cost += classes[core.classes[c]][core.points[c].back()].cost;
  }
  CoreAnswer answer{.found = false, .at = {}, .bound = at_hand};
  if (room < 0) return answer;
  const double cost_scale = 1000.0 / open;
  const double weight_scale = room > 0 ? std::exp2(20 - std::ilogb(room)) : 1;
  std::vector<int> start{0}, row;
  std::vector<double> value, objective, first;
  for (int c = 0; c < n_classes; ++c) {
    const auto& points = classes[core.classes[c]];
    for (const int i : core.points[c]) {
      row.insert(row.end(), {c, n_classes});
      value.insert(value.end(), {1.0, (points[i].weight - points[core.points[c].front()].weight) *
                                          weight_scale});
      start.push_back(int(row.size()));
      first.push_back(i == at[core.classes[c]] ? 1.0 : 0.0);
      objective.push_back((points[i].cost - points[core.points[c].back()].cost) * cost_scale);
    }
  }
  const int n = int(objective.size());
  const std::vector<double> low(n, 0.0), high(n, 1.0);
  std::vector<double> row_low(n_classes, 1.0), row_high(n_classes, 1.0);
  row_low.push_back(0);
  row_high.push_back(room * weight_scale);

  // The branch and bound itself, without the stand-alone solver around it, whose preprocessing
  // (2.10) loses solutions where many coefficients are nearly equal.
  OsiClpSolverInterface relaxation;
  relaxation.messageHandler()->setLogLevel(0);
  relaxation.loadProblem(n, n_classes + 1, start.data(), row.data(), value.data(), low.data(),
                         high.data(), objective.data(), row_low.data(), row_high.data());
  for (int i = 0; i < n; ++i) relaxation.setInteger(i);
  // A byte more or less in a tensor of a gigabyte is a matter of the ninth digit.
  relaxation.setDblParam(OsiPrimalTolerance, 1e-9);
  auto owner = std::make_unique<CbcModel>(relaxation);
  CbcModel& model = *owner;
  model.setIntegerTolerance(1e-9);
  model.setLogLevel(0);
  model.setNumberThreads(0);
  model.setRandomSeed(1);
  model.setAllowableGap(std::max(tolerance * cost_scale, 1e-9));
  model.setAllowableFractionGap(0);
  model.setMaximumNodes(int(std::min<int64_t>(limits.max_nodes, 1 << 30)));
  model.setMaximumSeconds(limits.max_seconds);
  model.setBestSolution(first.data(), n, (at_hand - least_cost) * cost_scale);
  try {
    model.branchAndBound();
  } catch (...) {
    (void)owner.release();  // where memory ran out its destructor follows a null pointer
    throw;
  }

  const double bound = model.getBestPossibleObjValue() / cost_scale + least_cost;
  answer.bound = std::isfinite(bound) ? std::clamp(bound, at_hand - open, at_hand) : at_hand - open;
  const double* x = model.bestSolution();
  if (!x) return answer;
  int column = 0;
  for (int c = 0; c < n_classes; ++c) {
    int best = 0;
    for (size_t i = 0; i < core.points[c].size(); ++i)
      if (x[column + int(i)] > x[column + best]) best = int(i);
    column += int(core.points[c].size());
    answer.at.push_back(best);
  }
  answer.found = true;
  return answer;
}

}  // namespace

std::vector<Point> lower_staircase(std::vector<Point> points) {
  std::stable_sort(points.begin(), points.end(), [](const Point& a, const Point& b) {
    return a.weight != b.weight ? a.weight < b.weight : a.cost < b.cost;
  });
  std::vector<Point> stairs;
  for (const Point& p : points)
    if (stairs.empty() || p.cost < stairs.back().cost) stairs.push_back(p);
  return stairs;
}

Picked pick_one_each(const std::vector<std::vector<Point>>& given, double capacity,
                     const KnapsackLimits& limits) {
  Classes classes;
  for (const auto& points : given) classes.push_back(lower_staircase(points));
  const auto answer = [&](const std::vector<int>& at, double bound) {
    Picked picked{.found = true, .ids = {}, .cost = sum_cost(classes, at), .bound = bound};
    picked.bound = std::min(picked.bound, picked.cost);
    for (size_t k = 0; k < classes.size(); ++k) picked.ids.push_back(classes[k][at[k]].id);
    return picked;
  };

  // The relaxation: all at the least weight, then along the hulls by falling gain per weight.
  std::vector<int> at(classes.size(), 0);
  if (sum_weight(classes, at) > capacity)
    return {.found = false, .ids = {}, .cost = 0, .bound = limits.cutoff};
  const auto segments = hull_segments(classes);
  double multiplier = 0;
  bool full = false;
  double weight = sum_weight(classes, at);
  for (const Segment& s : segments) {
    if (full) {
      // Later segments of a class follow the earlier ones only.
      if (at[s.k] == s.from && weight + s.weight <= capacity) at[s.k] = s.to, weight += s.weight;
    } else if (weight + s.weight <= capacity) {
      at[s.k] = s.to, weight += s.weight;
    } else {
      full = true;
      multiplier = s.gain / s.weight;
    }
  }
  while (sum_weight(classes, at) > capacity) {  // rounding of the running sum
    const auto k = std::find_if(at.begin(), at.end(), [](int i) { return i > 0; });
    --*k;
  }
  if (!full) return answer(at, sum_cost(classes, at));

  double relaxed = -multiplier * capacity;
  std::vector<double> least(classes.size());
  for (size_t k = 0; k < classes.size(); ++k) {
    least[k] = std::numeric_limits<double>::infinity();
    for (const Point& p : classes[k]) least[k] = std::min(least[k], p.cost + multiplier * p.weight);
    relaxed += least[k];
  }
  if (relaxed >= limits.cutoff) return {.found = false, .ids = {}, .cost = 0, .bound = relaxed};

  improve(classes, capacity, at);
  for (int round = 0; round < 200 && swap_pair(classes, capacity, at); ++round)
    improve(classes, capacity, at);

  const double cost = sum_cost(classes, at);
  // Below 1e-12 lies the rounding of the sums.
  const double tolerance = std::max(limits.gap, 1e-12) * std::abs(cost + limits.cost_offset);
  const double open = cost - relaxed;
  if (!(open > tolerance)) return answer(at, relaxed);

  Core core;
  core.room = capacity;
  std::vector<int> decided = at;
  double at_hand = 0;
  for (size_t k = 0; k < classes.size(); ++k) {
    std::vector<int> points;
    for (int i = 0; i < int(classes[k].size()); ++i) {
      const Point& p = classes[k][i];
      const double reduced = p.cost + multiplier * p.weight - least[k];
      if (reduced <= open * (1 + 1e-9) || i == at[k]) points.push_back(i);
    }
    if (points.size() == 1) {
      core.room -= classes[k][points[0]].weight;
    } else {
      at_hand += classes[k][at[k]].cost;
      core.classes.push_back(int(k));
      core.points.push_back(std::move(points));
    }
  }
  if (core.classes.empty()) return answer(at, cost);
  const CoreAnswer solved = solve_core(classes, core, at, at_hand, open, tolerance, limits);
  const double bound = std::max(relaxed, solved.bound + (cost - at_hand));
  CoreAnswer tried = solved;
  for (int attempt = 0; tried.found; ++attempt) {
    for (size_t c = 0; c < core.classes.size(); ++c)
      decided[core.classes[c]] = core.points[c][tried.at[c]];
    const double over = sum_weight(classes, decided) - capacity;
    if (over <= 0) {
      if (sum_cost(classes, decided) < cost) at = decided;
      break;
    }
    // Cbc's tolerances are not ours: what it found counts where it holds exactly. It is asked
    // again with less room; the bound stays that of the whole room.
    core.room -= std::max(2 * over, core.room * 1e-9);
    if (attempt == 3) break;
    tried = solve_core(classes, core, at, at_hand, open, tolerance, limits);
  }
  return answer(at, bound);
}

}  // namespace mt
