#pragma once
#include <array>
#include <cstdint>

#include "text/normalisation_table.h"

// What BERT's tokenizer does to single characters before it looks for words (Devlin et al. 2018;
// github.com/google-research/bert, tokenization). By character is enough: of the marks whose order
// a decomposition would settle, all but a few of musical notation are taken away.
namespace mt::normalisation {

// At most four characters, zeros behind them.
struct Few {
  std::array<uint32_t, 4> codes{};
  uint32_t count = 0;
  void add(uint32_t code) { codes[count++] = code; }
};

// Space: what parts words. Dropped: control, format and private characters, U+FFFD.
CharKind kind(uint32_t code);
// Ideographs are words of their own. Kana and Hangul are not among them.
bool is_ideograph(uint32_t code);
// Canonical decomposition without nonspacing marks: none, one or up to three characters.
Few without_accents(uint32_t code);
// Small letters, two for U+0130.
Few lower_case(uint32_t code);

}  // namespace mt::normalisation
