#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "dtype/blocks.h"
#include "dtype/grids.h"
#include "dtype/half.h"
#include "kernels/int8.h"
#include "kernels/int8_codes.h"
#include "kernels/tables.h"
#include "kernels/unpack.h"

namespace mt {
namespace {

float half_at(const uint8_t* p) {
  return half_to_float(load_as<uint16_t>(p));
}

// Sixteen bytes of two nibbles: the low ones are the first sixteen codes.
template <class Code>
void nibbles(const uint8_t* qs, Code&& code) {
  for (int i = 0; i < 16; ++i) {
    code(i, qs[i] & 15);
    code(i + 16, qs[i] >> 4);
  }
}

void small_block(Dtype t, const uint8_t* p, int8_t* codes, float& scale, float& min) {
  scale = half_at(p);
  min = 0.0f;
  auto put = [&](int i, int v) { codes[i] = static_cast<int8_t>(v); };
  auto fifth = [](uint32_t bits, int i) { return static_cast<int>(bits >> i & 1) << 4; };
  if (t == Dtype::Q8_0) {
    std::memcpy(codes, p + 2, 32);
  } else if (t == Dtype::Q4_0) {
    nibbles(p + 2, [&](int i, int v) { put(i, v - 8); });
  } else if (t == Dtype::IQ4_NL) {
    nibbles(p + 2, [&](int i, int v) { put(i, iq4_values[v]); });
  } else if (t == Dtype::Q5_0) {
    const auto bits = load_as<uint32_t>(p + 2);
    nibbles(p + 6, [&](int i, int v) { put(i, (v | fifth(bits, i)) - 16); });
  } else if (t == Dtype::Q4_1) {
    min = half_at(p + 2);
    nibbles(p + 4, [&](int i, int v) { put(i, v); });
  } else {  // Q5_1
    min = half_at(p + 2);
    const auto bits = load_as<uint32_t>(p + 4);
    nibbles(p + 8, [&](int i, int v) { put(i, v | fifth(bits, i)); });
  }
}

void k4_block(bool five, const uint8_t* p, Int8Row& row) {
  uint64_t scales, mins;
  unpack_k4_scales(p + 4, scales, mins);
  const float d = half_at(p), dmin = half_at(p + 2);
  const uint8_t* fifth = p + 16;
  const uint8_t* qs = p + (five ? 48 : 16);
  for (int sub = 0; sub < 8; ++sub) {
    row.scale[sub] = d * static_cast<float>(scales >> 8 * sub & 255);
    row.min[sub] = -(dmin * static_cast<float>(mins >> 8 * sub & 255));
    for (int i = 0; i < 32; ++i) {
      int code = qs[sub / 2 * 32 + i] >> 4 * (sub % 2) & 15;
      if (five) code |= (fifth[i] >> sub & 1) << 4;
      row.codes[32 * sub + i] = static_cast<int8_t>(code);
    }
  }
}

// Sub-scale times code fits a byte of the other sign: -32 * -4 is the one product of 128.
void q3_k_block(const uint8_t* p, Int8Row& row) {
  uint64_t scales[2];
  unpack_k3_scales(p + 96, scales[0], scales[1]);
  const float d = half_at(p + 108);
  for (int g = 0; g < 8; ++g) {
    row.scale[g] = -d;
    for (int i = 0; i < 32; ++i) {
      const int sub = 2 * g + i / 16;
      const int scale = static_cast<int>(scales[sub / 8] >> 8 * (sub % 8) & 255) - 32;
      const int low = p[32 + 32 * (g / 4) + i] >> 2 * (g % 4) & 3;
      const int code = low - ((p[i] >> g & 1) != 0 ? 0 : 4);
      row.codes[32 * g + i] = static_cast<int8_t>(-scale * code);
    }
  }
}

void q6_k_block(const uint8_t* p, Int8Row& row) {
  const float d = half_at(p + 208);
  for (int sub = 0; sub < 16; ++sub)
    row.scale[sub] = d * static_cast<float>(static_cast<int8_t>(p[192 + sub]));
  for (int g = 0; g < 8; ++g)
    for (int i = 0; i < 32; ++i) {
      const int low = p[64 * (g / 4) + 32 * (g % 2) + i] >> 4 * (g % 4 / 2) & 15;
      const int high = p[128 + 32 * (g / 4) + i] >> 2 * (g % 4) & 3;
      row.codes[32 * g + i] = static_cast<int8_t>((low | high << 4) - 32);
    }
}

void iq4_xs_block(const uint8_t* p, Int8Row& row) {
  const float d = half_at(p);
  const auto high = load_as<uint16_t>(p + 2);
  const auto low = load_as<uint32_t>(p + 4);
  for (int sub = 0; sub < 8; ++sub) {
    const int scale = (static_cast<int>(low >> 4 * sub & 15) | (high >> 2 * sub & 3) << 4) - 32;
    row.scale[sub] = d * static_cast<float>(scale);
    nibbles(p + 8 + 16 * sub, [&](int i, int v) { row.codes[32 * sub + i] = iq4_values[v]; });
  }
}

// Magnitudes with their signs; scales as the format's decoder makes them (dtype/lattice.cpp).
void lattice_block(Dtype t, const std::byte* bytes, Int8Row& row) {
  auto eight = [&](int g, uint16_t word, int signs) {
    for (int i = 0; i < 8; ++i) {
      const int code = static_cast<int>(kIq2Magnitudes[word >> 2 * i & 3]);
      row.codes[8 * g + i] = static_cast<int8_t>((signs >> i & 1) != 0 ? -code : code);
    }
  };
  auto four = [&](int g, const float(&magnitudes)[8], uint16_t word, int signs) {
    for (int i = 0; i < 4; ++i) {
      const int code = static_cast<int>(magnitudes[word >> 4 * i & 7]);
      row.codes[4 * g + i] = static_cast<int8_t>((signs >> i & 1) != 0 ? -code : code);
    }
  };
  auto nibble = [](const uint8_t* scales, int i) { return scales[i / 2] >> 4 * (i % 2) & 15; };
  auto scale = [](uint16_t d, int s, float by) {
    return half_to_float(d) * (0.5f + static_cast<float>(s)) * by;
  };
  if (t == Dtype::IQ2_XXS) {
    const auto b = load_as<block::IQ2_XXS>(reinterpret_cast<const uint8_t*>(bytes));
    for (int g = 0; g < 32; ++g) {
      const uint32_t rest = b.qs[g / 4][1];
      row.scale[g / 4] = scale(b.d, static_cast<int>(rest >> 28), 0.25f);
      eight(g, kGridIq2Xxs[b.qs[g / 4][0] >> 8 * (g % 4) & 255],
            eight_signs(rest >> 7 * (g % 4) & 127));
    }
  } else if (t == Dtype::IQ2_XS) {
    const auto b = load_as<block::IQ2_XS>(reinterpret_cast<const uint8_t*>(bytes));
    for (int g = 0; g < 32; ++g) {
      row.scale[g / 2] = scale(b.d, nibble(b.scales, g / 2), 0.25f);
      eight(g, kGridIq2Xs[b.qs[g] & 511], eight_signs(b.qs[g] >> 9));
    }
  } else if (t == Dtype::IQ2_S) {
    const auto b = load_as<block::IQ2_S>(reinterpret_cast<const uint8_t*>(bytes));
    for (int g = 0; g < 32; ++g) {
      row.scale[g / 2] = scale(b.d, nibble(b.scales, g / 2), 0.25f);
      eight(g, kGridIq2S[b.qs[g] | (b.qh[g / 4] >> 2 * (g % 4) & 3) << 8], b.signs[g]);
    }
  } else if (t == Dtype::IQ3_XXS) {
    const auto b = load_as<block::IQ3_XXS>(reinterpret_cast<const uint8_t*>(bytes));
    for (int g = 0; g < 64; ++g) {
      const uint32_t rest = b.signs[g / 8];
      row.scale[g / 8] = scale(b.d, static_cast<int>(rest >> 28), 0.5f);
      four(g, kIq3XxsMagnitudes, kGridIq3Xxs[b.qs[g]],
           eight_signs(rest >> 7 * (g / 2 % 4) & 127) >> 4 * (g % 2));
    }
  } else {
    static constexpr float odd[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    const auto b = load_as<block::IQ3_S>(reinterpret_cast<const uint8_t*>(bytes));
    for (int g = 0; g < 64; ++g) {
      row.scale[g / 8] = half_to_float(b.d) * static_cast<float>(1 + 2 * nibble(b.scales, g / 8));
      four(g, odd, kGridIq3S[b.qs[g] | (b.qh[g / 8] >> g % 8 & 1) << 8],
           b.signs[g / 2] >> 4 * (g % 2));
    }
  }
}

}  // namespace

void int8_rounded_row(const float* x, int64_t depth, Int8Row& row) {
  for (int64_t g = 0; g < depth / 32; ++g) {
    uint32_t largest = 0;
    for (int i = 0; i < 32; ++i)
      largest = std::max(largest, std::bit_cast<uint32_t>(x[32 * g + i]) & 0x7fffffffu);
    float inverse;
    quantise_scale(largest, row.scale[g], inverse);
    for (int i = 0; i < 32; ++i)
      row.codes[32 * g + i] = inverse == 0.0f
                                  ? int8_t{0}
                                  : static_cast<int8_t>(std::nearbyint(x[32 * g + i] * inverse));
  }
}

void int8_plain_row(Dtype t, const std::byte* bytes, int64_t depth, Int8Row& row) {
  const auto* p = reinterpret_cast<const uint8_t*>(bytes);
  if (!int8_own_codes(t)) {
    float x[kInt8Depth];
    mt::decode_row(t, bytes, x, depth);
    int8_rounded_row(x, depth, row);
  } else if (info(t).block_length == 32) {
    for (int64_t g = 0; g < depth / 32; ++g)
      small_block(t, p + g * info(t).block_bytes, row.codes + 32 * g, row.scale[g], row.min[g]);
  } else if (is_lattice(t)) {
    lattice_block(t, bytes, row);
  } else if (t == Dtype::Q3_K) {
    q3_k_block(p, row);
  } else if (t == Dtype::Q6_K) {
    q6_k_block(p, row);
  } else if (t == Dtype::IQ4_XS) {
    iq4_xs_block(p, row);
  } else {
    k4_block(t == Dtype::Q5_K, p, row);
  }
}

void int8_clear_rows(int64_t rows, int64_t depth, Int8Panel& panel) {
  for (int64_t w = 0; w < depth / 4; ++w)
    std::memset(panel.codes[w][rows], 0, static_cast<size_t>(kInt8Outputs - rows) * 4);
  const int64_t groups = depth / (panel.by_16 ? 16 : 32);
  for (int64_t g = 0; g < groups; ++g) std::fill(panel.scale[g] + rows, panel.scale[g + 1], 0.0f);
  for (int64_t g = 0; panel.has_min && g < depth / 32; ++g)
    std::fill(panel.min[g] + rows, panel.min[g + 1], 0.0f);
}

namespace {

void pack(Dtype t, const std::byte* w, int64_t row_bytes, int64_t rows, int64_t depth,
          Int8Panel& panel) {
  int8_describe(t, panel);
  const int64_t group = panel.by_16 ? 16 : 32;
  Int8Row row;
  for (int64_t r = 0; r < rows; ++r) {
    int8_plain_row(t, w + r * row_bytes, depth, row);
    for (int64_t i = 0; i < depth; ++i) panel.codes[i / 4][r][i % 4] = row.codes[i];
    for (int64_t g = 0; g < depth / group; ++g) panel.scale[g][r] = row.scale[g];
    for (int64_t g = 0; panel.has_min && g < depth / 32; ++g) panel.min[g][r] = row.min[g];
  }
  int8_clear_rows(rows, depth, panel);
  for (int64_t g = 0; g < depth / group; ++g)
    for (int64_t r = 0; r < kInt8Outputs; ++r) {
      int32_t sum = 0;
      for (int64_t i = g * group; i < (g + 1) * group; ++i) sum += panel.codes[i / 4][r][i % 4];
      panel.start[g][r] = -128 * sum;
    }
}

void quantise(const float* x, int64_t ldx, int64_t rows, int64_t n, int terms, Int8Block* out) {
  for (int64_t b = 0; b < n / 32; ++b, out += terms)
    for (int64_t t = 0; t < kInt8Tokens; ++t) {
      uint32_t largest = 0;
      for (int i = 0; t < rows && i < 32; ++i)
        largest = std::max(largest, std::bit_cast<uint32_t>(x[t * ldx + 32 * b + i]) & 0x7fffffffu);
      float d, inverse;
      quantise_scale(largest, d, inverse);
      float rest[32];  // in steps
      for (int i = 0; i < 32; ++i) rest[i] = inverse == 0 ? 0 : x[t * ldx + 32 * b + i] * inverse;
      int total = 0;
      for (int term = 0; term < terms; ++term) {
        if (term == 1) d /= float{kSecondSteps}, total *= kSecondSteps;
        for (int i = 0; i < 32; ++i) {
          const float whole = std::nearbyint(rest[i]);
          rest[i] = (rest[i] - whole) * float{kSecondSteps};
          out[term].codes[t][i] = static_cast<uint8_t>(static_cast<int>(whole) + 128);
          total += static_cast<int>(whole);
        }
        out[term].d[t] = d;
        out[term].sum[t] = d * static_cast<float>(total);
      }
    }
}

void multiply(const Int8Panel& panel, int64_t depth, const Int8Block* x, int terms, int64_t rows,
              float* y, int64_t ldy, int64_t n, bool accumulate) {
  const int64_t group = panel.by_16 ? 16 : 32;
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t o = 0; o < n; ++o) {
      double sum = accumulate ? double(y[t * ldy + o]) : 0.0;
      for (int64_t g = 0; g < depth / group; ++g) {
        const Int8Block* blocks = x + g * group / 32 * terms;
        int32_t dot = 0;
        for (int term = 0; term < terms; ++term) {
          dot = dot * kSecondSteps + panel.start[g][o];
          for (int64_t i = g * group; i < (g + 1) * group; ++i)
            dot += panel.codes[i / 4][o][i % 4] * blocks[term].codes[t][i % 32];
        }
        sum += double(panel.scale[g][o]) * double(blocks[terms - 1].d[t]) * dot;
      }
      for (int64_t b = 0; panel.has_min && b < depth / 32; ++b)
        sum += double(panel.min[b][o]) * double(x[(b + 1) * terms - 1].sum[t]);
      y[t * ldy + o] = static_cast<float>(sum);
    }
}

}  // namespace

bool int8_own_codes(Dtype t) {
  return t == Dtype::Q4_0 || t == Dtype::Q4_1 || t == Dtype::Q5_0 || t == Dtype::Q5_1 ||
         t == Dtype::Q8_0 || t == Dtype::IQ4_NL || t == Dtype::IQ4_XS || t == Dtype::Q3_K ||
         t == Dtype::Q4_K || t == Dtype::Q5_K || t == Dtype::Q6_K || is_lattice(t);
}

bool int8_takes(Dtype t) {
  const DtypeInfo& format = info(t);
  return format.decodes && format.block_length % 32 == 0 && kInt8Depth % format.block_length == 0;
}

const Int8Kernels& reference_int8_kernels() {
  static const Int8Kernels table = {.quantise = quantise, .pack = pack, .multiply = multiply};
  return table;
}

const Int8Kernels* int8_kernels([[maybe_unused]] const Kernels& table) {
#ifdef __x86_64__
  if (table.name == "avx2" || table.name == "avx512f") return &avx2_int8_kernels();
  if (table.name.starts_with("avx512")) return &avx512_int8_kernels();
#endif
  return nullptr;
}

}  // namespace mt
