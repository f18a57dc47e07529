#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace mt {

// Weight formats, numbered as in GGUF files. (Integer types appear in some files as tensors that
// are not weights; they are carried, not decoded.)
enum class Dtype : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ2_XXS = 16,
  IQ2_XS = 17,
  IQ3_XXS = 18,
  IQ1_S = 19,
  IQ4_NL = 20,
  IQ3_S = 21,
  IQ2_S = 22,
  IQ4_XS = 23,
  I8 = 24,
  I16 = 25,
  I32 = 26,
  I64 = 27,
  F64 = 28,
  IQ1_M = 29,
  BF16 = 30,
  TQ1_0 = 34,
  TQ2_0 = 35,
  MXFP4 = 39,
  NVFP4 = 40,
  Q1_0 = 41,
  Q2_0 = 42,
};

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;  // llama.cpp's name
  int64_t block_length;   // weights in a block
  int64_t block_bytes;    // bytes of a block
  bool decodes;           // decode_row works
  bool encodes;           // encode_row works
  bool two_level;         // scales of sub-blocks are themselves quantised
  double bits_per_weight() const { return 8.0 * double(block_bytes) / double(block_length); }
};

// All formats, ascending by number.
std::span<const DtypeInfo> all_dtypes();
// Throws Error for a number that is no known format.
const DtypeInfo& info(Dtype dtype);
std::optional<Dtype> dtype_from_number(uint32_t number);
// Case-insensitive; accepts llama.cpp's names ("Q4_0", "iq4_nl", "BF16").
std::optional<Dtype> dtype_from_name(std::string_view name);
inline std::string_view name(Dtype dtype) {
  return info(dtype).name;
}

// Bytes of n weights; n must be a multiple of the block length (asserted).
int64_t row_bytes(Dtype dtype, int64_t n);

// src: row_bytes(dtype, n) bytes at any alignment -> dst: n floats. Never reads outside src and
// never fails whatever the bytes are. Throws Error for a format that does not decode.
void decode_row(Dtype dtype, const std::byte* src, float* dst, int64_t n);

// src: n weights, importance: n non-negative weights of the squared error, or nullptr for all
// equal -> dst: row_bytes(dtype, n) bytes. Searches scales (and mins) that minimise
// sum importance_i * (src_i - decoded_i)^2 block by block; deterministic; thread-safe.
// Non-finite input is treated as 0. Throws Error for a format that does not encode.
void encode_row(Dtype dtype, const float* src, const float* importance, std::byte* dst, int64_t n);

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);  // round to nearest even
float bf16_to_float(uint16_t h);
uint16_t float_to_bf16(float f);  // round to nearest even

}  // namespace mt
