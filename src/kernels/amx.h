#pragma once
#include <cstdint>

// Products of bf16 pairs on the tile unit (AMX), for the fast path's batches of tokens.
namespace mt {

// True where processor and system let this process use the tiles, and products of theirs agree with
// the plain ones. Asks the system for permission, once. False without a trial where MICROTOME_ISA
// names anything but avx512amx.
bool amx_runs();

// c[i,j] = (accumulate ? c[i,j] : 0) + sum over pairs p < k of both halves of a[i,p] and b[p,j]
// (kernels.h, gemm_pairs). a: [m,k] words, rows lda apart; b: [k,n] words, rows ldb apart, readable
// to a full 32 columns; c: [m,n] f32; n in 1..32, k a multiple of 16. Sums run in the tile unit's
// order: within f32 rounding those of gemm_pairs, not the same bits.
void amx_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda,
                    const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate);

// The same steps on tiles in plain memory, as the instructions are defined: what can be tested on
// any machine.
void plain_tiles_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda,
                            const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate);

// Whether a product of these arguments is that of plain_tiles_gemm_pairs, on a few trials: columns
// that fill the tiles and that do not, into sums that are there and that are not.
using GemmTiles = void (*)(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda,
                           const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate);
bool agrees_with_plain_tiles(GemmTiles gemm);

}  // namespace mt
