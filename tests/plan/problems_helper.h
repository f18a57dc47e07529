#pragma once
#include <cstdint>
#include <functional>
#include <random>
#include <string>

#include "plan/solve.h"

namespace mt::plan_test {

// Places of a few sizes with options from 2 to 16 bits, loss falling by about 4 a bit, noisy.
// kept: the last option keeps the source's bytes at no loss.
Problem random_problem(std::mt19937& rng, int n_places, int n_options);

// The same, as a transformer of n_layers x 7 maps has it: few distinct sizes, 14 options.
Problem layered_problem(uint32_t seed, int n_layers);

// Head and embedding kept apart (the last two places), or one tensor for both (a new place).
void add_tied_alternative(std::mt19937& rng, Problem& problem);

// Calls `see` with every choice there is: options of places in use, their bytes and loss.
void every_choice(const Problem& problem,
                  const std::function<void(const std::vector<int>&, int64_t, double)>& see);

}  // namespace mt::plan_test
