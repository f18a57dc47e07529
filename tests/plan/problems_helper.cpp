#include "plan/problems_helper.h"

#include <cmath>

namespace mt::plan_test {
namespace {

constexpr Dtype formats[] = {Dtype::Q1_0, Dtype::Q2_0, Dtype::Q2_K,   Dtype::Q3_K, Dtype::Q4_0,
                             Dtype::Q4_1, Dtype::Q4_K, Dtype::IQ4_NL, Dtype::Q5_0, Dtype::Q5_1,
                             Dtype::Q5_K, Dtype::Q6_K, Dtype::Q8_0,   Dtype::F16};
constexpr int n_formats = int(std::size(formats));

int64_t padded(double bytes) {
  return (int64_t(bytes) + 31) / 32 * 32;
}

Place make_place(std::mt19937& rng, const std::string& name, double n_weights, int n_options) {
  std::lognormal_distribution<double> scale(-4, 1.5), noise(0, 0.4);
  Place place{.name = name, .options = {}, .group = -1};
  const double sensitivity = scale(rng);
  for (int i = 0; i < n_options; ++i) {
    const Dtype dtype = formats[(i * n_formats) / n_options];
    const double bits = info(dtype).bits_per_weight();
    place.options.push_back({.dtype = dtype,
                             .keep = false,
                             .bytes = padded(n_weights * bits / 8),
                             .loss = sensitivity * std::exp2(-2 * bits) * 256 * noise(rng)});
  }
  return place;
}

}  // namespace

Problem random_problem(std::mt19937& rng, int n_places, int n_options) {
  Problem problem;
  problem.fixed_bytes = int64_t(rng() % 5000);
  for (int p = 0; p < n_places; ++p)
    problem.places.push_back(
        make_place(rng, "place." + std::to_string(p), double(256 * (1 + rng() % 40)), n_options));
  return problem;
}

Problem layered_problem(uint32_t seed, int n_layers) {
  std::mt19937 rng(seed);
  Problem problem;
  problem.fixed_bytes = 1'700'000;
  for (int l = 0; l < n_layers; ++l)
    for (const auto& [role, n] : {std::pair{"attn_q", 1536.0 * 1536},
                                  {"attn_k", 1536.0 * 256},
                                  {"attn_v", 1536.0 * 256},
                                  {"attn_output", 1536.0 * 1536},
                                  {"ffn_gate", 1536.0 * 8960},
                                  {"ffn_up", 1536.0 * 8960},
                                  {"ffn_down", 1536.0 * 8960}})
      problem.places.push_back(
          make_place(rng, "blk." + std::to_string(l) + "." + role + ".weight", n, 14));
  problem.places.push_back(make_place(rng, "token_embd.weight", 1536.0 * 151936, 14));
  problem.places.push_back(make_place(rng, "output.weight", 1536.0 * 151936, 14));
  return problem;
}

void add_tied_alternative(std::mt19937& rng, Problem& problem) {
  const size_t n = problem.places.size();
  const Place& embedding = problem.places[n - 2];
  Place tied{.name = embedding.name, .options = embedding.options, .group = -1};
  std::uniform_real_distribution<double> dearer(1, 4);
  for (size_t o = 0; o < tied.options.size(); ++o)
    tied.options[o].loss =
        (embedding.options[o].loss + problem.places[n - 1].options[o].loss) * dearer(rng);
  problem.places.push_back(tied);
  problem.alternatives.push_back(
      {.name = "head",
       .alternatives = {
           {.label = "apart", .places = {n - 2, n - 1}, .fixed_bytes = 64, .fixed_loss = 0},
           {.label = "one tensor", .places = {n}, .fixed_bytes = 0, .fixed_loss = 1e-4}}});
}

void every_choice(const Problem& problem,
                  const std::function<void(const std::vector<int>&, int64_t, double)>& see) {
  const size_t n = problem.places.size();
  const size_t n_layouts =
      problem.alternatives.empty() ? 1 : problem.alternatives[0].alternatives.size();
  for (size_t layout = 0; layout < n_layouts; ++layout) {
    std::vector<bool> used(n, true);
    int64_t fixed = problem.fixed_bytes;
    double fixed_loss = 0;
    if (!problem.alternatives.empty()) {
      const auto& alternatives = problem.alternatives[0].alternatives;
      for (const auto& a : alternatives)
        for (const size_t p : a.places) used[p] = false;
      for (const size_t p : alternatives[layout].places) used[p] = true;
      fixed += alternatives[layout].fixed_bytes;
      fixed_loss += alternatives[layout].fixed_loss;
    }
    std::vector<int> at(n, -1);
    const std::function<void(size_t, int64_t, double)> walk = [&](size_t p, int64_t bytes,
                                                                  double loss) {
      if (p == n) return see(at, bytes, loss);
      if (!used[p]) return walk(p + 1, bytes, loss);
      for (size_t o = 0; o < problem.places[p].options.size(); ++o) {
        at[p] = int(o);
        const Option& option = problem.places[p].options[o];
        walk(p + 1, bytes + option.bytes, loss + option.loss);
      }
      at[p] = -1;
    };
    walk(0, fixed, fixed_loss);
  }
}

}  // namespace mt::plan_test
