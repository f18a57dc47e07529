#pragma once
#include <cstddef>
#include <cstdint>

#include "dtype/dtype.h"

namespace mt {

// How keys and values lie in the cache: the positions of one KV head in strips of 16, a strip as
// the kernels read it. d: channels of a head. "Scales" are [d/32][16] f16, those of a block of 32
// channels at the 16 positions side by side; the formats' grids are those of their GGUF namesakes.
//   F32        keys and values [16][d]
//   F16, BF16  keys [d][16], values [16][d]
//   Q8_0       keys: scales, then [d/4][16][4] codes + 128; values: scales, then [16][d] codes
//   Q4_0       keys: scales, then [d/8][16][4] bytes, channel 8g + i in the low and 8g + 4 + i in
//              the high half of byte i; values: scales, then [16][d/2] bytes, of every block of 32
//              channel i in the low and 16 + i in the high half of byte i
//   Q4_1       keys only, by channel (KIVI: Liu et al. 2024, arXiv:2402.02750): a block is the 32
//              positions of two strips, of every channel one scale and one minimum. [d] scales and
//              [d] minima in f16, then of either strip bytes as those of Q4_0 keys, codes from 0.
//              Rounded before RoPE, channels lie in another order (KeyTurns)
inline constexpr int64_t kStrip = 16;
inline constexpr int64_t kKvBlock = 32;       // channels that share a scale
inline constexpr int64_t kChannelBlock = 32;  // positions that do, of formats by channel

// F32, F16, BF16, Q8_0, Q4_0; of keys Q4_1 too.
bool is_kv_type(Dtype dtype);
bool is_key_type(Dtype dtype);
constexpr bool by_channel(Dtype dtype) {
  return dtype == Dtype::Q4_1;
}
constexpr bool has_kv_scales(Dtype dtype) {
  return dtype == Dtype::Q8_0 || dtype == Dtype::Q4_0 || by_channel(dtype);
}
// Formats with scales need whole blocks.
constexpr bool kv_type_fits(Dtype dtype, int64_t d) {
  return !has_kv_scales(dtype) || d % kKvBlock == 0;
}
int64_t kv_strip_bytes(Dtype dtype, int64_t d);  // by channel: half a block

// Rounds x[d] into position `lane` (0..15) of a strip; touches nothing of the other lanes. What is
// too large for f16 becomes its largest value; what is not finite stays so (with scales: the whole
// block becomes NaN). Formats of rows only, not those by channel.
void store_key(Dtype dtype, int64_t d, const float* x, std::byte* strip, int64_t lane);
void store_value(Dtype dtype, int64_t d, const float* x, std::byte* strip, int64_t lane);

// All of a strip in f32. y[i*16 + j]: channel i of position j.
void load_keys(Dtype dtype, int64_t d, const std::byte* strip, float* y);
// y[j*d + i]
void load_values(Dtype dtype, int64_t d, const std::byte* strip, float* y);

// Rounds a block of keys by channel (Q4_1). strips: two of F16. A channel that holds what is not
// finite becomes NaN at all of the 32 positions.
void round_key_block(int64_t d, const std::byte* strips, std::byte* block);
// Strip `half` (0, 1) of such a block. y[i*16 + j]: channel i of position j.
void load_key_block(int64_t d, const std::byte* block, int64_t half, float* y);

// RoPE of blocks that are rounded before it (KVQuant: Hooper et al. 2024, arXiv:2401.18079). Place
// i of a block holds channel[i], so that places i and d/2 + i turn as a pair; those that RoPE
// leaves as they are turn by nothing. A key at position 32 b + j is turned by b and by j: (x, y) ->
// (x cos - y sin, y cos + x sin), one after the other.
struct KeyTurns {
  const int32_t* channel = nullptr;  // [d]
  const float* blocks = nullptr;     // [b][cos, sin][d/2]
  const float* lanes = nullptr;      // [d/2][cos, sin][32]
  explicit operator bool() const { return channel != nullptr; }
};
// The same of block b whose keys are turned to their positions outside and not turned inside. Where
// one channel of a pair is not finite, both become NaN.
void round_turned_key_block(int64_t d, const std::byte* strips, const KeyTurns& turns, int64_t b,
                            std::byte* block);
void load_turned_key_block(int64_t d, const std::byte* block, int64_t half, const KeyTurns& turns,
                           int64_t b, float* y);

}  // namespace mt
