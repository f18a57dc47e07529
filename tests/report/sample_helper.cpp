#include "report/sample_helper.h"

#include <cmath>
#include <random>

namespace mt::report_test {
namespace {

Estimate around(double value, double spread) {
  return {value, value - spread, value + spread};
}

}  // namespace

Report sample_report(int n_layers) {
  std::mt19937 rng(7);
  const auto uniform = [&] { return double(rng() >> 8) / double(1 << 24); };
  Report r;
  r.source = "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  r.output = "out/smollm2-75MB.gguf";
  r.source_sha256 = std::string(32, 'b') + std::string(32, '1');
  r.output_sha256 = std::string(32, '4') + std::string(32, 'e');
  r.goal = "--size 75000000";
  r.source_bytes = 98'362'432;
  r.output_bytes = 74'998'720;
  r.n_weights = 134'479'872;
  r.source_bits = 5.74;
  r.output_bits = 4.347218;
  r.predicted_kl = 0.04127;
  r.optimality_gap = 3.2e-6;
  r.seconds = 214.6;
  r.peak_memory_bytes = 1'312'000'000;
  r.cpu = "AMD EPYC (Zen 5), 2 threads, AVX-512";
  r.version = "0.1.0";
  r.notes = {"The head and the embedding are one tensor in the source and stay one.",
             "Q4_K, Q5_K and Q6_K fit only ffn_down: rows of 576 weights are no multiple of 256."};
  Comparison c;
  c.corpus = "sampled from the model (held out)";
  c.corpus_sha256 = std::string(64, 'c');
  c.n_ctx = 512;
  c.n_windows = 64;
  c.n_tokens = 16'384;
  c.path = "exact";
  c.base_perplexity = around(17.92, 0.41);
  c.perplexity = around(18.71, 0.44);
  c.kl_mean = around(0.0447, 0.0019);
  c.kl_median = around(0.0203, 0.0008);
  c.kl_p90 = around(0.104, 0.006);
  c.kl_p99 = around(0.371, 0.04);
  c.kl_p999 = around(1.02, 0.2);
  c.kl_max = {3.71, 2.9, 4.4};
  c.same_top = around(0.9012, 0.0044);
  c.dp_mean = around(-0.0021, 0.0009);
  c.dp_rms = around(0.0512, 0.0012);
  r.comparisons.push_back(c);
  const char* formats[] = {"Q2_0", "Q3_K", "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"};
  const double bits[] = {2.25, 3.4375, 4.5, 4.5, 5, 5.5, 6, 8.5};
  const auto add = [&](std::string place, int64_t layer, std::string role, int64_t n,
                       double weight) {
    const int f = int(uniform() * 8);
    PlaceReport p;
    p.place = std::move(place);
    p.layer = layer;
    p.role = std::move(role);
    p.from = layer < 0 ? "Q8_0" : "Q4_1";
    p.to = formats[f];
    p.n_weights = n;
    p.bytes_from = n * 5 / 8;
    p.bytes_to = int64_t(double(n) * bits[f] / 8);
    p.predicted_kl = weight * std::exp2(-2 * bits[f]) * (0.3 + uniform());
    if (uniform() < 0.3) p.measured_kl = p.predicted_kl * (0.7 + 0.8 * uniform());
    r.places.push_back(p);
  };
  add("token_embd.weight", -1, "token_embd", 28'311'552, 6);
  for (int l = 0; l < n_layers; ++l) {
    const std::string blk = "blk." + std::to_string(l) + ".";
    const double depth = 0.4 + (l == 0 || l == n_layers - 1 ? 1.5 : 0.1 * l / n_layers);
    add(blk + "attn_q.weight", l, "attn_q", 331'776, 0.2 * depth);
    add(blk + "attn_k.weight", l, "attn_k", 110'592, 0.2 * depth);
    add(blk + "attn_v.weight", l, "attn_v", 110'592, 0.5 * depth);
    add(blk + "attn_output.weight", l, "attn_output", 331'776, 0.4 * depth);
    add(blk + "ffn_gate.weight", l, "ffn_gate", 884'736, 0.8 * depth);
    add(blk + "ffn_up.weight", l, "ffn_up", 884'736, 0.9 * depth);
    add(blk + "ffn_down.weight", l, "ffn_down", 884'736, 1.3 * depth);
  }
  for (int i = 0; i < 24; ++i) {
    const double b = 2.5 + 0.27 * i;
    r.frontier.push_back(
        {int64_t(b / 8 * 134'479'872) + 1'700'000, b, 0.55 * std::exp2(-1.95 * (b - 2.5))});
  }
  return r;
}

Report hostile_report() {
  const std::string bad =
      "</script><script>window.hacked=1;document.title='x'</script><img src=x onerror=alert(1)>"
      "<!--]]>&lt;\"'`${1}{{style}}\x01\x1b[31m\xff\xfe\xe2\x80\xa8\xe2\x80\xae e\xcc\x81 模型";
  Report r = sample_report(2);
  r.source = r.output = r.source_sha256 = r.output_sha256 = r.goal = r.cpu = r.version = bad;
  r.notes = {bad, bad};
  for (auto& c : r.comparisons) c.corpus = c.corpus_sha256 = c.path = bad;
  for (auto& p : r.places) {
    p.place = bad + p.place;
    p.from = p.to = bad;
    p.role = bad + p.role;
  }
  r.comparisons[0].kl_max = {INFINITY, NAN, INFINITY};
  return r;
}

}  // namespace mt::report_test
