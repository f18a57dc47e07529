#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dtype/dtype.h"

namespace mt {

// "75MB" = 75,000,000, "75MiB" = 75 * 2^20, "1.2 GB", "800 kB", "75000000" or "75000000 B": letter
// case and the space do not matter. Throws Error that says what is accepted.
int64_t parse_size(const std::string& text);

// The formats that today's readers load and run fast, by rising bits.
std::vector<Dtype> default_types();
// Every format that can be written.
std::vector<Dtype> all_types();

// "Q4_0", "q4_k": a format that can be written. Throws Error: what is no format, what is one that
// is only read, and what is a recipe of llama.cpp's quantizer ("Q4_K_M"), which mixes formats.
Dtype parse_type(const std::string& text);

// A list such as "Q4_0,Q8_0" (these alone), "+Q2_0,-IQ4_XS" (the default ones with and without),
// "default", "all", "all,-F32". By rising bits, each once. Throws Error that names the entry:
// unknown, not writable, or nothing left.
std::vector<Dtype> parse_types(const std::string& list);

// Of `types` those whose blocks fill a row of `cols` weights.
std::vector<Dtype> types_that_fit(const std::vector<Dtype>& types, int64_t cols);

}  // namespace mt
