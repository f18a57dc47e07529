#pragma once
#include <cstdint>
#include <limits>
#include <vector>

namespace mt {

// The multiple-choice knapsack: one point of every class, summed weight within a capacity, least
// summed cost.
struct Point {
  double weight = 0;
  double cost = 0;
  int id = 0;  // the caller's
};

struct KnapsackLimits {
  double gap = 1e-5;                                        // relative to |cost + cost_offset|
  double cost_offset = 0;                                   // a constant part of the cost
  double cutoff = std::numeric_limits<double>::infinity();  // only a lower cost is of use
  int64_t max_nodes = 20000;
  double max_seconds = 30;
};

struct Picked {
  bool found = false;    // false: nothing fits, or nothing below the cutoff
  std::vector<int> ids;  // one a class
  double cost = 0;
  double bound = 0;  // no choice costs less (infinite: nothing fits)
};

// The points that no other beats: weight strictly rising, cost strictly falling. Of equal points
// the first stays.
std::vector<Point> lower_staircase(std::vector<Point> points);

// Every class holds at least one point, all values finite.
//
// The linear relaxation is solved exactly along the classes' convex hulls (Sinha and Zoltners
// 1979); its multiplier gives a bound, a first solution, and each point's reduced cost. Points
// whose reduced cost exceeds the distance between the two cannot be in a better solution; the few
// that remain go to Cbc.
Picked pick_one_each(const std::vector<std::vector<Point>>& classes, double capacity,
                     const KnapsackLimits& limits);

}  // namespace mt
