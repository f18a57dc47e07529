#include "plan/ask.h"

#include <gtest/gtest.h>

#include <regex>

#include "base/error.h"
#include "plan/tensor_types.h"

namespace mt {
namespace {

TEST(Ask, Sizes) {
  EXPECT_EQ(parse_size("75MB"), 75'000'000);
  EXPECT_EQ(parse_size("75 MB"), 75'000'000);
  EXPECT_EQ(parse_size(" 75mb "), 75'000'000);
  EXPECT_EQ(parse_size("75MiB"), 75 * 1048576);
  EXPECT_EQ(parse_size("1.2GB"), 1'200'000'000);
  EXPECT_EQ(parse_size("1.1 GB"), 1'100'000'000);
  EXPECT_EQ(parse_size("0.3MB"), 300'000);
  EXPECT_EQ(parse_size("0.5GiB"), 536870912);
  EXPECT_EQ(parse_size("98362432"), 98'362'432);
  EXPECT_EQ(parse_size("800k"), 800'000);
  for (const char* bad : {"", " ", "MB", "-5MB", "75MX", "75 M B", "1e6", "nan", "inf", "0", "0.1",
                          "99999999999999999999", "5000TB", "75,5MB", "0x10", "+7MB"}) {
    try {
      const int64_t size = parse_size(bad);
      ADD_FAILURE() << "'" << bad << "' gave " << size;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("75MB"), std::string::npos) << e.what();
    }
  }
}

TEST(Ask, Types) {
  using Types = std::vector<Dtype>;
  EXPECT_EQ(parse_types("Q8_0,q4_0"), (Types{Dtype::Q4_0, Dtype::Q8_0}));
  EXPECT_EQ(parse_types("default"), default_types());
  EXPECT_EQ(parse_types("all"), all_types());
  const auto has = [](const Types& types, Dtype d) {
    return std::find(types.begin(), types.end(), d) != types.end();
  };
  EXPECT_TRUE(has(default_types(), Dtype::Q4_0));
  EXPECT_FALSE(has(default_types(), Dtype::Q2_0));
  for (const Dtype d :
       {Dtype::IQ2_XXS, Dtype::IQ2_XS, Dtype::IQ2_S, Dtype::IQ3_XXS, Dtype::IQ3_S}) {
    // Written, but slower than K-quants where they run: only on demand.
    EXPECT_TRUE(has(all_types(), d) && !has(default_types(), d)) << name(d);
  }
  const Types wider = parse_types("+Q2_0, -Q4_1");
  EXPECT_TRUE(has(wider, Dtype::Q2_0) && has(wider, Dtype::Q8_0));
  EXPECT_FALSE(has(wider, Dtype::Q4_1));
  EXPECT_EQ(wider.size(), default_types().size());
  EXPECT_FALSE(has(parse_types("all,-F32"), Dtype::F32));
  EXPECT_EQ(parse_types("Q4_0,+Q4_0"), (Types{Dtype::Q4_0}));
  for (size_t i = 1; i < all_types().size(); ++i)
    EXPECT_LE(info(all_types()[i - 1]).bits_per_weight(), info(all_types()[i]).bits_per_weight());
  for (const char* bad : {"", "Q4_9", "Q4_0,,Q8_0", "I8", "IQ1_S", "Q4_0,-Q4_0", "-all", "+"})
    EXPECT_THROW(parse_types(bad), Error) << bad;
}

TEST(Ask, OnlyWhatFitsTheRow) {
  const auto types = types_that_fit(parse_types("all"), 576);
  for (const Dtype d : types) EXPECT_EQ(576 % info(d).block_length, 0) << name(d);
  EXPECT_EQ(std::count(types.begin(), types.end(), Dtype::Q4_0), 1);
  EXPECT_EQ(std::count(types.begin(), types.end(), Dtype::Q4_K), 0);
  EXPECT_EQ(types_that_fit({Dtype::Q4_K}, 1536).size(), 1u);
  EXPECT_TRUE(types_that_fit({Dtype::Q4_K}, 576).empty());
}

Plan plan_of(const std::vector<std::string>& places) {
  Plan plan;
  for (const auto& place : places)
    plan.decisions.push_back({place, {.dtype = Dtype::Q4_0}, {}, {}});
  plan.decisions.back().chosen.dtype = Dtype::Q6_K;
  return plan;
}

TEST(TensorTypes, PatternsMatchTheirTensorAlone) {
  const std::vector<std::string> places = {"blk.1.attn_q.weight", "blk.11.attn_q.weight",
                                           "blk.1.attn_qxweight", "output.weight",
                                           "odd(a|b)[0]{1}*+?^$\\.Weight"};
  const auto lines = tensor_types(plan_of(places));
  ASSERT_EQ(lines.size(), places.size());
  EXPECT_EQ(lines[0], "^blk\\.1\\.attn_q\\.weight$=q4_0");
  EXPECT_TRUE(lines[4].ends_with("=q6_k")) << lines[4];
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::regex pattern(lines[i].substr(0, lines[i].find('=')));
    for (size_t j = 0; j < places.size(); ++j)
      EXPECT_EQ(std::regex_search(places[j], pattern), i == j) << lines[i] << " " << places[j];
  }
  EXPECT_EQ(tensor_type_file(plan_of({"a.b"})), "^a\\.b$=q6_k\n");
  EXPECT_EQ(tensor_type_arguments(plan_of({"a", "it's"})),
            "--tensor-type '^a$=q4_0' --tensor-type '^it'\\''s$=q6_k'");
  EXPECT_THROW(tensor_types(plan_of({"a=b"})), Error);
  EXPECT_THROW(tensor_types(plan_of({"a b"})), Error);
  EXPECT_THROW(tensor_types(plan_of({"a\nb"})), Error);
}

TEST(ParseType, NamesFormatsAndExplainsRecipes) {
  EXPECT_EQ(parse_type("Q4_K"), Dtype::Q4_K);
  EXPECT_EQ(parse_type(" q4_k "), Dtype::Q4_K);
  EXPECT_EQ(parse_types("q4_0,bf16").size(), 2u);
  auto message = [](const std::string& text) -> std::string {
    try {
      parse_type(text);
    } catch (const Error& e) {
      return e.what();
    }
    return "was taken";
  };
  const std::pair<const char*, const char*> recipes[] = {{"Q4_K_M", "use Q4_K for"},
                                                         {"q3_k_l", "use Q3_K for"},
                                                         {"IQ2_M", "use IQ2_S for"},
                                                         {"IQ3_XS", "use IQ3_S for"},
                                                         {"Q5_K_S", "--bpw 5.8"}};
  for (const auto& [text, part] : recipes) {
    EXPECT_NE(message(text).find("recipe of llama.cpp's quantizer"), std::string::npos) << text;
    EXPECT_NE(message(text).find(part), std::string::npos) << message(text);
  }
  EXPECT_NE(message("NVFP4").find("can be read but not written"), std::string::npos);
  for (const char* text : {"Q9_9", "", "Q4_K_Q", "_M"})
    EXPECT_NE(message(text).find("is no format; writable are"), std::string::npos) << text;
  EXPECT_THROW(parse_types("Q4_K_M"), Error);
}

}  // namespace
}  // namespace mt
