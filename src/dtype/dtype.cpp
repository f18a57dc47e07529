#include "dtype/dtype.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <type_traits>

#include "base/error.h"
#include "dtype/codec.h"

namespace mt {
namespace {

struct Format {
  DtypeInfo info;
  DecodeFn decode;
  EncodeFn encode;
};

// nullptr where there is no such function. (Told by type: g++ 12 under UBSan does not take the
// comparison of a function's address with nullptr for a constant.)
template <class Decode, class Encode>
constexpr Format format(Dtype dtype, std::string_view name, int64_t length, int64_t bytes,
                        Decode decode, Encode encode, bool two_level) {
  return {{dtype, name, length, bytes, !std::is_null_pointer_v<Decode>,
           !std::is_null_pointer_v<Encode>, two_level},
          decode,
          encode};
}

constexpr bool kOneLevel = false, kTwoLevel = true;
constexpr Format kFormats[] = {
    format(Dtype::F32, "F32", 1, 4, decode_f32, encode_f32, kOneLevel),
    format(Dtype::F16, "F16", 1, 2, decode_f16, encode_f16, kOneLevel),
    format(Dtype::Q4_0, "Q4_0", 32, 18, decode_q4_0, encode_q4_0, kOneLevel),
    format(Dtype::Q4_1, "Q4_1", 32, 20, decode_q4_1, encode_q4_1, kOneLevel),
    format(Dtype::Q5_0, "Q5_0", 32, 22, decode_q5_0, encode_q5_0, kOneLevel),
    format(Dtype::Q5_1, "Q5_1", 32, 24, decode_q5_1, encode_q5_1, kOneLevel),
    format(Dtype::Q8_0, "Q8_0", 32, 34, decode_q8_0, encode_q8_0, kOneLevel),
    format(Dtype::Q2_K, "Q2_K", 256, 84, decode_q2_k, encode_q2_k, kTwoLevel),
    format(Dtype::Q3_K, "Q3_K", 256, 110, decode_q3_k, encode_q3_k, kTwoLevel),
    format(Dtype::Q4_K, "Q4_K", 256, 144, decode_q4_k, encode_q4_k, kTwoLevel),
    format(Dtype::Q5_K, "Q5_K", 256, 176, decode_q5_k, encode_q5_k, kTwoLevel),
    format(Dtype::Q6_K, "Q6_K", 256, 210, decode_q6_k, encode_q6_k, kTwoLevel),
    format(Dtype::IQ2_XXS, "IQ2_XXS", 256, 66, decode_iq2_xxs, encode_iq2_xxs, kTwoLevel),
    format(Dtype::IQ2_XS, "IQ2_XS", 256, 74, decode_iq2_xs, encode_iq2_xs, kTwoLevel),
    format(Dtype::IQ3_XXS, "IQ3_XXS", 256, 98, decode_iq3_xxs, encode_iq3_xxs, kTwoLevel),
    format(Dtype::IQ1_S, "IQ1_S", 256, 50, decode_iq1_s, nullptr, kTwoLevel),
    format(Dtype::IQ4_NL, "IQ4_NL", 32, 18, decode_iq4_nl, encode_iq4_nl, kOneLevel),
    format(Dtype::IQ3_S, "IQ3_S", 256, 110, decode_iq3_s, encode_iq3_s, kTwoLevel),
    format(Dtype::IQ2_S, "IQ2_S", 256, 82, decode_iq2_s, encode_iq2_s, kTwoLevel),
    format(Dtype::IQ4_XS, "IQ4_XS", 256, 136, decode_iq4_xs, encode_iq4_xs, kTwoLevel),
    format(Dtype::I8, "I8", 1, 1, nullptr, nullptr, kOneLevel),
    format(Dtype::I16, "I16", 1, 2, nullptr, nullptr, kOneLevel),
    format(Dtype::I32, "I32", 1, 4, nullptr, nullptr, kOneLevel),
    format(Dtype::I64, "I64", 1, 8, nullptr, nullptr, kOneLevel),
    format(Dtype::F64, "F64", 1, 8, decode_f64, nullptr, kOneLevel),
    format(Dtype::IQ1_M, "IQ1_M", 256, 56, decode_iq1_m, nullptr, kTwoLevel),
    format(Dtype::BF16, "BF16", 1, 2, decode_bf16, encode_bf16, kOneLevel),
    format(Dtype::TQ1_0, "TQ1_0", 256, 54, decode_tq1_0, nullptr, kOneLevel),
    format(Dtype::TQ2_0, "TQ2_0", 256, 66, decode_tq2_0, encode_tq2_0, kOneLevel),
    format(Dtype::MXFP4, "MXFP4", 32, 17, decode_mxfp4, encode_mxfp4, kOneLevel),
    format(Dtype::NVFP4, "NVFP4", 64, 36, decode_nvfp4, nullptr, kOneLevel),
    format(Dtype::Q1_0, "Q1_0", 128, 18, decode_q1_0, encode_q1_0, kOneLevel),
    format(Dtype::Q2_0, "Q2_0", 64, 18, decode_q2_0, encode_q2_0, kOneLevel),
};
constexpr size_t kCount = std::size(kFormats);
constexpr uint32_t kNumbers = 43;

constexpr auto kInfos = [] {
  std::array<DtypeInfo, kCount> infos{};
  for (size_t i = 0; i < kCount; ++i) infos[i] = kFormats[i].info;
  return infos;
}();

constexpr auto kIndexOfNumber = [] {
  std::array<int8_t, kNumbers> index{};
  for (auto& i : index) i = -1;
  for (size_t i = 0; i < kCount; ++i) {
    index[static_cast<uint32_t>(kFormats[i].info.dtype)] = static_cast<int8_t>(i);
  }
  return index;
}();

const Format& find(Dtype dtype) {
  const auto number = static_cast<uint32_t>(dtype);
  if (number >= kNumbers || kIndexOfNumber[number] < 0) {
    throw_error("dtype: number {} is no known weight format", number);
  }
  return kFormats[kIndexOfNumber[number]];
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

}  // namespace

std::span<const DtypeInfo> all_dtypes() {
  return kInfos;
}

const DtypeInfo& info(Dtype dtype) {
  return kInfos[static_cast<size_t>(&find(dtype) - kFormats)];
}

std::optional<Dtype> dtype_from_number(uint32_t number) {
  if (number >= kNumbers || kIndexOfNumber[number] < 0) return std::nullopt;
  return static_cast<Dtype>(number);
}

std::optional<Dtype> dtype_from_name(std::string_view name) {
  for (const Format& f : kFormats) {
    if (std::ranges::equal(f.info.name, name, {}, lower, lower)) return f.info.dtype;
  }
  return std::nullopt;
}

int64_t row_bytes(Dtype dtype, int64_t n) {
  const DtypeInfo& i = info(dtype);
  assert(n >= 0 && n % i.block_length == 0);
  return n / i.block_length * i.block_bytes;
}

void decode_row(Dtype dtype, const std::byte* src, float* dst, int64_t n) {
  const Format& f = find(dtype);
  if (f.decode == nullptr) throw_error("dtype: {} holds no weights to decode", f.info.name);
  assert(n >= 0 && n % f.info.block_length == 0);
  f.decode(src, dst, n);
}

void encode_row(Dtype dtype, const float* src, const float* importance, std::byte* dst, int64_t n) {
  const Format& f = find(dtype);
  if (f.encode == nullptr) throw_error("dtype: {} cannot be written, only read", f.info.name);
  assert(n >= 0 && n % f.info.block_length == 0);
  f.encode(src, importance, dst, n);
}

}  // namespace mt
