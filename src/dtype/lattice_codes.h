#pragma once
#include <cstddef>
#include <cstdint>

#include "dtype/dtype.h"

namespace mt {

// Eight weights that share signs; of one word of eight magnitudes or of two of four.
inline constexpr int kCells = 32;  // of a super-block

// What a super-block of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS or IQ3_S says beside its f16 scale d: a
// weight is d * (the format's unit) * (2 scale + 1) * magnitude, minus where its bit is set.
struct LatticeCodes {
  int scale[16];  // 0..15, of each sub-block
  int word[kCells][2];
  uint8_t minus[kCells];
};

// Sub-blocks of a super-block; 0: no such format.
int lattice_subs(Dtype dtype);

// block: info(dtype).block_bytes of a format with sub-blocks. Writing leaves d as it is. Where only
// seven signs are stored there must be an even number of minus signs.
void read_lattice(Dtype dtype, const std::byte* block, LatticeCodes& codes);
void write_lattice(Dtype dtype, const LatticeCodes& codes, std::byte* block);

// d times the format's unit.
float lattice_unit(Dtype dtype, const std::byte* block);

// The eight magnitudes of a cell with their signs.
void cell_levels(Dtype dtype, const LatticeCodes& codes, int cell, float* levels);

// The form v a v - 2 b v of a cell's levels v; its minimum over real numbers is near `free`.
struct CellForm {
  float a[8][8];  // symmetric, positive definite
  float b[8];
  float free[8];
};
// Looks for words and signs under which the form is lower: all words under the signs of `free`,
// then signs under that word, in turn. Returns whether the cell was changed; `levels` are its old
// ones and become its new ones.
bool lower_cell(Dtype dtype, const CellForm& form, LatticeCodes& codes, int cell, float* levels);

}  // namespace mt
