#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

// The constants of the GGUF layout, shared by its reader and its writer.
namespace mt::gguf {

inline constexpr std::string_view kMagic = "GGUF";
inline constexpr uint32_t kVersion = 3;
inline constexpr std::string_view kAlignmentKey = "general.alignment";
inline constexpr uint64_t kDefaultAlignment = 32;
inline constexpr uint64_t kLargestAlignment = 1 << 24;
inline constexpr size_t kLongestKey = 65535;
inline constexpr size_t kLongestTensorName = 63;  // readers keep names in 64 bytes with a final 0
inline constexpr uint32_t kMostDims = 4;

// The fewest bytes that an entry takes in a file: they bound a count before it is believed.
inline constexpr uint64_t kLeastKeyValue = 8 + 1 + 4 + 1;
inline constexpr uint64_t kLeastTensorInfo = 8 + 1 + 4 + 8 + 4 + 8;

enum ValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

}  // namespace mt::gguf
