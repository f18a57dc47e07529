#include <gtest/gtest.h>

#include "base/error.h"
#include "bench/machine_speed.h"
#include "bench/model_speed.h"
#include "bench/other_program.h"
#include "kernels/peak.h"
#include "run/tiny.h"

namespace mt {
namespace {

TEST(Bench, CountsWhatATokenReads) {
  const Model model = open_tiny("tiny_llama");
  const TokenCost cost = token_cost(model, {.keys = Dtype::F16, .values = Dtype::F32});
  int64_t maps = 0, products = 0, kv = 0;
  for (const LinearMap* map : linear_maps(model)) {
    if (map == &model.embedding && model.head) continue;
    maps += map->weight.bytes();
    products += map->weight.rows * map->weight.cols;
  }
  for (const Step& step : model.steps)
    for (const Site& site : step.sites)
      if (const auto* a = std::get_if<Attention>(&site.what)) kv += 6 * a->n_kv_heads * a->d_head;
  EXPECT_EQ(cost.weight_products + cost.head_products, products);
  EXPECT_EQ(cost.kv_bytes_a_position, kv);
  // All maps once, the norms and at most one row of an embedding that is apart.
  EXPECT_GE(cost.weight_bytes, maps);
  EXPECT_LE(cost.weight_bytes, maps + 4 * model.d_model * (2 * model.n_layers + 2));
}

TEST(Bench, RunsAtADepthAndGoesBack) {
  ThreadPool pool(2);
  const Runtime rt{select_kernels(), pool};
  const Model model = open_tiny("tiny_qwen2");
  SpeedBench bench(model, Path::fast, 40, default_kv_types(Path::fast));
  EXPECT_GT(bench.run(rt, {Phase::prompt, 24, 0}), 0);
  EXPECT_GT(bench.run(rt, {Phase::decode, 8, 32}), 0);
  EXPECT_GT(bench.run(rt, {Phase::prompt, 8, 32}), 0);
  EXPECT_GT(bench.run(rt, {Phase::decode, 3, 0}), 0);
}

TEST(Bench, SpreadIsTheMedianAndTheEnds) {
  EXPECT_EQ(spread_of({3, 1, 2}).median, 2);
  EXPECT_EQ(spread_of({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(spread_of({4, 1, 2}).low, 1);
  EXPECT_EQ(spread_of({4, 1, 2}).high, 4);
}

TEST(Bench, UnitsDoWhatTheySay) {
  for (const Peak& peak : available_peaks()) {
    EXPECT_EQ(peak.run(20), 2 * peak.run(10)) << peak.name;
    EXPECT_GE(peak.run(1), 64) << peak.name;
  }
  ThreadPool pool(1);
  const MachineSpeed speed = measure_machine(pool, MemoryToRead(1 << 20), 1);
  EXPECT_EQ(speed.threads, 1);
  EXPECT_GT(speed.read_bytes, 1e8);
  for (const UnitSpeed& unit : speed.units) EXPECT_GT(unit.operations, 1e8) << unit.name;
  EXPECT_EQ(speed.fastest("no such unit"), 0);
}

TEST(Bench, FillsTheOtherCommand) {
  const std::string command = "peer -t {threads} -p {prompt} -n {decode} -d {depth} -d {depth}";
  EXPECT_EQ(fill_command(command, {Phase::prompt, 512, 0}, 2), "peer -t 2 -p 512 -n 0 -d 0 -d 0");
  EXPECT_EQ(fill_command(command, {Phase::decode, 128, 64}, 1),
            "peer -t 1 -p 0 -n 128 -d 64 -d 64");
  EXPECT_NO_THROW(check_command(command));
  EXPECT_THROW(check_command("peer {tokens}"), Error);
  EXPECT_NO_THROW(check_command("echo '[{\"avg_ts\": 5}]' ${home} | awk '{print $1}'"));
}

TEST(Bench, ReadsTheOtherRate) {
  EXPECT_EQ(tokens_a_second("[ {\"avg_ts\": 3.5}, {\"avg_ts\": 4.25} ]"), 4.25);
  EXPECT_EQ(tokens_a_second("loading\n[{\"n\": 1, \"avg_ts\": 2}]\ndone"), 2);
  EXPECT_EQ(tokens_a_second("[broken"), 0);
  EXPECT_EQ(tokens_a_second("] then ["), 0);
  EXPECT_EQ(tokens_a_second("3 tokens/s"), 0);
  const OtherRun rate = run_other("echo '[{\"avg_ts\": 12.5}]'", {Phase::decode, 8, 0}, 1);
  EXPECT_EQ(rate.tokens_a_second, 12.5);
  EXPECT_FALSE(rate.whole_process);
  for (const char* no_rate : {"\"fast\"", "0", "-3", "null"})
    EXPECT_THROW(tokens_a_second(std::string("[{\"avg_ts\": ") + no_rate + "}]"), Error) << no_rate;
  EXPECT_TRUE(run_other("true", {Phase::decode, 8, 0}, 1).whole_process);
  EXPECT_THROW(run_other("exit 3", {Phase::decode, 8, 0}, 1), Error);
}

}  // namespace
}  // namespace mt
