#pragma once
#include <cstdint>
#include <span>

// The tables behind text/normalisation.cpp, each ascending by character. Made by
// tools/goldens/make_normalisation.py.
namespace mt::normalisation {

enum class CharKind : uint8_t { Ordinary, Space, Dropped, Mark, Punctuation };
struct KindRange {
  uint32_t first, last;
  CharKind kind;
};
// Every `step`th character from first to last is moved by `distance`.
struct ShiftRange {
  uint32_t first, last, step;
  int32_t distance;
};
// The base letters of `count` characters from `first` stand in bases() from `at`; 0: itself.
struct BaseRun {
  uint32_t first, count, at;
};
// What is left of a character without its marks where that is not one character; 0: none.
struct Parts {
  uint32_t from, to[3];
};

std::span<const KindRange> kinds();
std::span<const ShiftRange> lower();
std::span<const BaseRun> base_runs();
std::span<const uint32_t> bases();
std::span<const Parts> parts();

}  // namespace mt::normalisation
