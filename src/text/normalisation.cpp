#include "text/normalisation.h"

#include <algorithm>

namespace mt::normalisation {
namespace {

// The last range that does not begin after `code`, or nullptr.
template <class Range>
const Range* range_before(std::span<const Range> ranges, uint32_t code) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code,
                                      [](uint32_t c, const Range& r) { return c < r.first; });
  return after == ranges.begin() ? nullptr : &*(after - 1);
}

CharKind look_up(uint32_t code) {
  const KindRange* range = range_before(kinds(), code);
  return range && code <= range->last ? range->kind : CharKind::Ordinary;
}

// Hangul syllables are decomposed by arithmetic (Unicode 15, 3.12).
constexpr uint32_t kSyllables = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr uint32_t kVowels = 21, kTails = 28, kSyllableCount = 19 * kVowels * kTails;

Few only(uint32_t code) {
  Few few;
  few.add(code);
  return few;
}

}  // namespace

CharKind kind(uint32_t code) {
  static const auto first = [] {
    std::array<CharKind, 256> table{};
    for (uint32_t c = 0; c < table.size(); ++c) table[c] = look_up(c);
    return table;
  }();
  return code < first.size() ? first[code] : look_up(code);
}

bool is_ideograph(uint32_t code) {
  // The list is BERT's; 2B920 is its own slip for 2B820, kept as models learnt with it.
  constexpr uint32_t kRanges[][2] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},
                                     {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F},
                                     {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
  if (code < kRanges[0][0]) return false;
  return std::any_of(std::begin(kRanges), std::end(kRanges),
                     [&](const auto& r) { return code >= r[0] && code <= r[1]; });
}

Few without_accents(uint32_t code) {
  if (code < 0xC0) return only(code);
  if (code >= kSyllables && code < kSyllables + kSyllableCount) {
    const uint32_t index = code - kSyllables;
    Few few = only(kLead + index / (kVowels * kTails));
    few.add(kVowel + index % (kVowels * kTails) / kTails);
    if (index % kTails != 0) few.add(kTail + index % kTails);
    return few;
  }
  if (kind(code) == CharKind::Mark) return {};
  if (const BaseRun* run = range_before(base_runs(), code); run && code - run->first < run->count)
    if (const uint32_t base = bases()[run->at + code - run->first]) return only(base);
  const auto all = parts();
  const auto it = std::lower_bound(all.begin(), all.end(), code,
                                   [](const Parts& p, uint32_t c) { return p.from < c; });
  if (it == all.end() || it->from != code) return only(code);
  Few few;
  for (const uint32_t part : it->to)
    if (part != 0) few.add(part);
  return few;
}

Few lower_case(uint32_t code) {
  if (code < 0x80) return only(code >= 'A' && code <= 'Z' ? code + 32 : code);
  if (code == 0x130) {  // I with a dot above: its small form keeps the dot as a mark
    Few few = only('i');
    few.add(0x307);
    return few;
  }
  const ShiftRange* range = range_before(lower(), code);
  if (!range || code > range->last || (code - range->first) % range->step != 0) return only(code);
  return only(static_cast<uint32_t>(static_cast<int32_t>(code) + range->distance));
}

}  // namespace mt::normalisation
