#include "dtype/lattice_codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"
#include "dtype/half.h"
#include "dtype/lanes.h"

namespace mt {
namespace {

constexpr Dtype kLattices[] = {Dtype::IQ2_XXS, Dtype::IQ2_XS, Dtype::IQ2_S, Dtype::IQ3_XXS,
                               Dtype::IQ3_S};
bool seven_signs(Dtype t) {
  return t == Dtype::IQ2_XXS || t == Dtype::IQ2_XS || t == Dtype::IQ3_XXS;
}

std::vector<std::byte> random_block(Dtype dtype, std::mt19937& random) {
  std::vector<std::byte> block(static_cast<size_t>(info(dtype).block_bytes));
  for (std::byte& b : block) b = static_cast<std::byte>(random() & 255);
  const uint16_t d = float_to_half(0.01f);
  std::memcpy(block.data(), &d, sizeof d);  // d is the first field of all of them
  return block;
}

TEST(LatticeCodes, SayWhatTheDecoderReadsAndPackBack) {
  std::mt19937 random(1);
  for (const Dtype dtype : kLattices) {
    SCOPED_TRACE(name(dtype));
    for (int round = 0; round < 20; ++round) {
      const auto block = random_block(dtype, random);
      float values[256], levels[8];
      decode_row(dtype, block.data(), values, 256);
      LatticeCodes codes;
      read_lattice(dtype, block.data(), codes);
      const float unit = lattice_unit(dtype, block.data());
      for (int i = 0; i < 256; ++i) {
        if (i % 8 == 0) cell_levels(dtype, codes, i / 8, levels);
        const int scale = codes.scale[i * lattice_subs(dtype) / 256];
        EXPECT_EQ(values[i], unit * static_cast<float>(2 * scale + 1) * levels[i % 8]) << i;
      }
      std::vector<std::byte> back(block.size());
      std::memcpy(back.data(), block.data(), 2);
      write_lattice(dtype, codes, back.data());
      EXPECT_EQ(back, block);
    }
  }
  EXPECT_EQ(lattice_subs(Dtype::Q4_K), 0);
  LatticeCodes codes;
  EXPECT_THROW(read_lattice(Dtype::Q4_K, nullptr, codes), Error);
}

double form_of(const CellForm& f, const float* v) {
  double sum = 0;
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) sum += double(f.a[i][j]) * double(v[i]) * double(v[j]);
    sum -= 2 * double(f.b[i]) * double(v[i]);
  }
  return sum;
}

// A form whose minimum is at `free`.
CellForm random_form(float typical, float correlation, std::mt19937& random) {
  std::normal_distribution<float> normal;
  CellForm f;
  float root[8][8];
  for (auto& row : root)
    for (float& x : row) x = correlation * normal(random);
  for (int i = 0; i < 8; ++i) {
    f.free[i] = typical * normal(random);
    for (int j = 0; j < 8; ++j) {
      f.a[i][j] = i == j ? 1.0f : 0.0f;
      for (int k = 0; k < 8; ++k) f.a[i][j] += root[i][k] * root[j][k];
    }
  }
  for (int i = 0; i < 8; ++i) {
    f.b[i] = 0;
    for (int j = 0; j < 8; ++j) f.b[i] += f.a[i][j] * f.free[j];
  }
  return f;
}

// The lowest form over all words with the best signs of each that 256 patterns have.
double lowest_form(Dtype dtype, const CellForm& f) {
  const bool pair = dtype == Dtype::IQ3_XXS || dtype == Dtype::IQ3_S;
  const int words = dtype == Dtype::IQ2_XS ? 512 : dtype == Dtype::IQ2_S ? 1024 : 256;
  double lowest = 1e30;
  if (pair) return lowest;  // too many
  LatticeCodes codes{};
  float v[8];
  for (codes.word[0][0] = 0; codes.word[0][0] < words; ++codes.word[0][0])
    for (unsigned minus = 0; minus < 256; ++minus) {
      if (seven_signs(dtype) && __builtin_parity(minus)) continue;
      codes.minus[0] = static_cast<uint8_t>(minus);
      cell_levels(dtype, codes, 0, v);
      lowest = std::min(lowest, form_of(f, v));
    }
  return lowest;
}

TEST(LatticeCodes, ACellIsLoweredNearlyAsFarAsItCanBe) {
  std::mt19937 random(2);
  for (const Dtype dtype : kLattices) {
    SCOPED_TRACE(name(dtype));
    const auto block = random_block(dtype, random);
    LatticeCodes start;
    read_lattice(dtype, block.data(), start);
    const float typical = dtype == Dtype::IQ3_S ? 5.0f : 20.0f;  // of its magnitudes
    double reached = 0, possible = 0, offset = 0;
    int changed = 0;
    for (int round = 0; round < 32; ++round) {
      const CellForm f = random_form(typical, round % 2 ? 1.0f : 0.0f, random);
      LatticeCodes codes = start;
      float levels[8], now[8];
      cell_levels(dtype, codes, round, levels);
      const double before = form_of(f, levels);
      changed += lower_cell(dtype, f, codes, round, levels);
      const double after = form_of(f, levels);
      EXPECT_LE(after, before);
      cell_levels(dtype, codes, round, now);
      EXPECT_TRUE(std::equal(now, now + 8, levels));
      if (seven_signs(dtype)) {
        EXPECT_EQ(__builtin_parity(codes.minus[round]), 0);
      }
      // A second search starts from the first's words and finds nothing better.
      EXPECT_FALSE(lower_cell(dtype, f, codes, round, levels));
      const double rest = -form_of(f, f.free);  // of the form where nothing errs
      reached += after + rest;
      possible += std::min(lowest_form(dtype, f), after) + rest;
      offset += before + rest;
      // What others are is left alone, and so are the bytes on narrower machines.
      const Isa widest = encode_isa();
      limit_encode_isa(Isa::kBaseline);
      LatticeCodes narrow = start;
      cell_levels(dtype, narrow, round, now);
      lower_cell(dtype, f, narrow, round, now);
      limit_encode_isa(widest);
      EXPECT_EQ(std::memcmp(&narrow, &codes, sizeof codes), 0);
      codes.word[round][0] = start.word[round][0];
      codes.word[round][1] = start.word[round][1];
      codes.minus[round] = start.minus[round];
      EXPECT_EQ(std::memcmp(&start, &codes, sizeof codes), 0);
    }
    EXPECT_GT(changed, 30);
    EXPECT_LT(reached, 0.2 * offset);
    EXPECT_LT(reached, 1.15 * possible);
  }
}

}  // namespace
}  // namespace mt
