#pragma once
#include <cstdint>

// Block layouts of the GGUF weight formats, as they lie in files (little-endian, unpadded).
namespace mt::block {

#pragma pack(push, 1)
struct Q4_0 {
  uint16_t d;
  uint8_t qs[16];  // low nibbles: weights 0..15, high nibbles: 16..31; so in all 32-blocks
};
struct Q4_1 {
  uint16_t d, m;
  uint8_t qs[16];
};
struct Q5_0 {
  uint16_t d;
  uint32_t qh;  // bit i: fifth bit of weight i
  uint8_t qs[16];
};
struct Q5_1 {
  uint16_t d, m;
  uint32_t qh;
  uint8_t qs[16];
};
struct Q8_0 {
  uint16_t d;
  int8_t qs[32];
};
struct Q2_K {
  uint8_t scales[16];  // low nibble: scale, high nibble: min, of 16 weights
  uint8_t qs[64];      // 32 bytes hold 128 weights: weight 32*s + i in bits 2s of byte i
  uint16_t d, dmin;
};
struct Q3_K {
  uint8_t hmask[32];  // bit g of byte i: high bit of weight 32*g + i; clear means minus 4
  uint8_t qs[64];
  uint8_t scales[12];  // 16 six-bit scales: low nibbles in 0..7, high pairs in 8..11
  uint16_t d;
};
struct Q4_K {
  uint16_t d, dmin;
  uint8_t scales[12];  // 8 six-bit scales and mins
  uint8_t qs[128];     // 32 bytes hold 64 weights: low nibbles first
};
struct Q5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];  // bit g of byte i: fifth bit of weight 32*g + i
  uint8_t qs[128];
};
struct Q6_K {
  uint8_t ql[128];  // 64 bytes hold 128 weights: low nibbles 0..63, high nibbles 64..127
  uint8_t qh[64];   // 32 bytes hold 128 weights: weight 32*s + i in bits 2s of byte i
  int8_t scales[16];
  uint16_t d;
};
using IQ4_NL = Q4_0;
struct IQ4_XS {
  uint16_t d;
  uint16_t scales_h;    // two high bits of 8 scales
  uint8_t scales_l[4];  // low nibbles
  uint8_t qs[128];      // 8 times a 32-block's nibbles
};
struct MXFP4 {
  uint8_t e;  // scale 2^(e-128), for the doubled e2m1 values
  uint8_t qs[16];
};
struct NVFP4 {
  uint8_t d[4];    // unsigned e4m3, one for 16 weights
  uint8_t qs[32];  // 8 bytes for 16 weights, low nibbles first
};
struct Q1_0 {
  uint16_t d;
  uint8_t qs[16];
};
struct Q2_0 {
  uint16_t d;
  uint8_t qs[16];
};
struct TQ1_0 {
  uint8_t qs[48];  // five base-3 digits a byte, as a fraction of 256
  uint8_t qh[4];   // four digits a byte
  uint16_t d;
};
struct TQ2_0 {
  uint8_t qs[64];
  uint16_t d;
};
struct IQ2_XXS {
  uint16_t d;
  uint32_t qs[8][2];  // four grid indices; 4 x 7 sign bits and a 4-bit scale
};
struct IQ2_XS {
  uint16_t d;
  uint16_t qs[32];  // 9-bit grid index, 7 sign bits
  uint8_t scales[8];
};
struct IQ2_S {
  uint16_t d;
  uint8_t qs[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};
struct IQ3_XXS {
  uint16_t d;
  uint8_t qs[64];
  uint32_t signs[8];  // 4 x 7 sign bits and a 4-bit scale
};
struct IQ3_S {
  uint16_t d;
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};
struct IQ1_S {
  uint16_t d;
  uint8_t qs[32];
  uint16_t qh[8];  // 4 x 3 index bits, 3-bit scale, sign of the shift
};
struct IQ1_M {
  uint8_t qs[32];
  uint8_t qh[16];      // per 16 weights: 2 x (3 index bits, sign of the shift)
  uint16_t scales[4];  // 4 x 3-bit scales each; the top nibbles together are the f16 d
};
#pragma pack(pop)

static_assert(sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 && sizeof(Q5_0) == 22);
static_assert(sizeof(Q5_1) == 24 && sizeof(Q8_0) == 34);
static_assert(sizeof(Q2_K) == 84 && sizeof(Q3_K) == 110 && sizeof(Q4_K) == 144);
static_assert(sizeof(Q5_K) == 176 && sizeof(Q6_K) == 210 && sizeof(IQ4_XS) == 136);
static_assert(sizeof(MXFP4) == 17 && sizeof(NVFP4) == 36);
static_assert(sizeof(Q1_0) == 18 && sizeof(Q2_0) == 18);
static_assert(sizeof(TQ1_0) == 54 && sizeof(TQ2_0) == 66);
static_assert(sizeof(IQ2_XXS) == 66 && sizeof(IQ2_XS) == 74 && sizeof(IQ2_S) == 82);
static_assert(sizeof(IQ3_XXS) == 98 && sizeof(IQ3_S) == 110);
static_assert(sizeof(IQ1_S) == 50 && sizeof(IQ1_M) == 56);

}  // namespace mt::block
