#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// What the formats' files offer to the table in dtype.cpp.
namespace mt {

// n weights, a multiple of the block length.
using DecodeFn = void (*)(const std::byte* src, float* dst, int64_t n);
using EncodeFn = void (*)(const float* src, const float* importance, std::byte* dst, int64_t n);

// Calls decode(block, dst) for every block; blocks are copied out, src has any alignment.
template <class Block, int Length, class Decode>
inline void decode_blocks(const std::byte* src, float* dst, int64_t n, Decode decode) {
  for (int64_t i = 0; i < n; i += Length) {
    Block block;
    std::memcpy(&block, src, sizeof block);
    decode(block, dst + i);
    src += sizeof block;
  }
}

inline constexpr float kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
// e2m1, doubled so that all are integers.
inline constexpr float kE2m1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The scale of an MXFP4 block for doubled values: 2^(e-128), subnormal below e = 2.
float mxfp4_scale(uint8_t e);
// Half of an unsigned e4m3 number; 0x7f (NaN) counts as 0.
float nvfp4_scale(uint8_t bits);

void decode_f32(const std::byte* src, float* dst, int64_t n);
void decode_f64(const std::byte* src, float* dst, int64_t n);
void decode_f16(const std::byte* src, float* dst, int64_t n);
void decode_bf16(const std::byte* src, float* dst, int64_t n);
void decode_q4_0(const std::byte* src, float* dst, int64_t n);
void decode_q4_1(const std::byte* src, float* dst, int64_t n);
void decode_q5_0(const std::byte* src, float* dst, int64_t n);
void decode_q5_1(const std::byte* src, float* dst, int64_t n);
void decode_q8_0(const std::byte* src, float* dst, int64_t n);
void decode_iq4_nl(const std::byte* src, float* dst, int64_t n);
void decode_mxfp4(const std::byte* src, float* dst, int64_t n);
void decode_nvfp4(const std::byte* src, float* dst, int64_t n);
void decode_q1_0(const std::byte* src, float* dst, int64_t n);
void decode_q2_0(const std::byte* src, float* dst, int64_t n);
void decode_tq1_0(const std::byte* src, float* dst, int64_t n);
void decode_tq2_0(const std::byte* src, float* dst, int64_t n);
void decode_q2_k(const std::byte* src, float* dst, int64_t n);
void decode_q3_k(const std::byte* src, float* dst, int64_t n);
void decode_q4_k(const std::byte* src, float* dst, int64_t n);
void decode_q5_k(const std::byte* src, float* dst, int64_t n);
void decode_q6_k(const std::byte* src, float* dst, int64_t n);
void decode_iq4_xs(const std::byte* src, float* dst, int64_t n);
void decode_iq2_xxs(const std::byte* src, float* dst, int64_t n);
void decode_iq2_xs(const std::byte* src, float* dst, int64_t n);
void decode_iq2_s(const std::byte* src, float* dst, int64_t n);
void decode_iq3_xxs(const std::byte* src, float* dst, int64_t n);
void decode_iq3_s(const std::byte* src, float* dst, int64_t n);
void decode_iq1_s(const std::byte* src, float* dst, int64_t n);
void decode_iq1_m(const std::byte* src, float* dst, int64_t n);

void encode_f32(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_f16(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_bf16(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q4_0(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q4_1(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q5_0(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q5_1(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q8_0(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_iq4_nl(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_mxfp4(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q1_0(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q2_0(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_tq2_0(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q2_k(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q3_k(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q4_k(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q5_k(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_q6_k(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_iq4_xs(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_iq2_xxs(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_iq2_xs(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_iq2_s(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_iq3_xxs(const float* src, const float* importance, std::byte* dst, int64_t n);
void encode_iq3_s(const float* src, const float* importance, std::byte* dst, int64_t n);

}  // namespace mt
