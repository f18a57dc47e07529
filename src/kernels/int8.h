#pragma once
#include <cstdint>

#include "kernels/kernels.h"

// The fast path's product for batches of tokens: bytes times bytes. Weights are decoded to signed
// codes a panel at a time, once for all tokens; activations are rounded to int8 with one scale per
// 32 values, as for rows_dot. Sums of a group are whole numbers, so they are exact; groups are
// scaled and added in f32, in order.
namespace mt {

inline constexpr int64_t kInt8Tokens = 6;    // of a tile: what the registers hold
inline constexpr int64_t kInt8Outputs = 32;  // rows of the weight in a panel
inline constexpr int64_t kInt8Depth = 256;   // inputs of a panel at most

// 32 activations of each of six tokens.
struct alignas(64) Int8Block {
  uint8_t codes[kInt8Tokens][32];  // round(x / d) + 128: 1..255
  float d[kInt8Tokens];            // max |x| / 127; NaN where an x is not finite (quantise_scale)
  float sum[kInt8Tokens];          // d * (sum of the rounded)
  float unused[4];
};
// In two terms there are two blocks for 32 activations, x ~ d * (kSecondSteps * first + second),
// codes without their 128. The second has that d, the first's / kSecondSteps, and the sum of both.
static_assert(sizeof(Int8Block) == 256);

// 32 rows of a weight, up to 256 inputs: w[r, i] = scale * code + min of the group of i.
struct alignas(64) Int8Panel {
  int8_t codes[kInt8Depth / 4][kInt8Outputs][4];
  float scale[kInt8Depth / 16][kInt8Outputs];    // by groups of 32, or of 16 where by_16
  int32_t start[kInt8Depth / 16][kInt8Outputs];  // -128 * (sum of the group's codes)
  float min[kInt8Depth / 32][kInt8Outputs];      // by groups of 32; unset without has_min
  bool by_16, has_min;
  int largest;  // magnitude that a code of the format may have
};

struct Int8Kernels {
  // One tile: x: [rows, n] ldx apart, rows in 1..6 (the others become zeros), n a multiple of 32;
  // out: n / 32 times `terms` (1 or 2) blocks. The same bits in every table.
  void (*quantise)(const float* x, int64_t ldx, int64_t rows, int64_t n, int terms, Int8Block* out);
  // The panel of `rows` (1..32; zeros follow) rows, row_bytes apart; depth: a multiple of 32 and of
  // the format's block, at most 256. Codes are the format's own where a group has one scale (and
  // perhaps a minimum); those of Q2_K and of formats that int8_own_codes does not name are the
  // decoded weights rounded to 8 bits with one scale per 32. The same bits in every table.
  void (*pack)(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows, int64_t depth,
               Int8Panel& panel);
  // y[t,o] = (accumulate ? y[t,o] : 0) + sum over the panel's inputs, for tokens t < rows of the
  // tile, of `terms`, and outputs o < n; y: rows ldy apart. Both terms' sums of a group are one
  // whole number before it is scaled.
  void (*multiply)(const Int8Panel& panel, int64_t depth, const Int8Block* x, int terms,
                   int64_t rows, float* y, int64_t ldy, int64_t n, bool accumulate);
};

// What plain C++ does: the specification.
const Int8Kernels& reference_int8_kernels();
// The batched product that belongs to a table, or nullptr where its f32 or bf16 products are
// faster.
const Int8Kernels* int8_kernels(const Kernels& table);
// True for formats that the product takes: quantised ones.
bool int8_takes(Dtype dtype);
// True where a panel holds the format's own codes, so that weights are not rounded again.
bool int8_own_codes(Dtype dtype);

}  // namespace mt
