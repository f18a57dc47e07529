#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "base/matrix.h"
#include "kernels/kernels.h"

// The kernels, each table beside the others: GFLOP/s of the exact product, weights decoded a
// second, bytes of weights a second through the fast dot products. "read" is the bandwidth to
// hold the last against: plain sums over a buffer larger than the caches, four streams.
namespace {

using namespace mt;

AlignedBuffer<std::byte> random_weights(int64_t bytes) {
  AlignedBuffer<std::byte> w(static_cast<size_t>(bytes));
  std::mt19937 random(1);
  // Bytes whose 16-bit pairs are f16 scales of ordinary size.
  for (size_t i = 0; i < w.size(); ++i) w[i] = std::byte(0x20 + random() % 32);
  return w;
}

void gemm(benchmark::State& state, const Kernels* table) {
  int64_t m = 512, k = 256, lda = state.range(0);
  std::vector<float> a(size_t(m * lda), 0.5f), b(size_t(k * 32), 0.25f), c(size_t(m * 32));
  for (auto _ : state) {
    table->gemm_panel(m, 32, k, a.data(), lda, b.data(), 32, c.data(), 32, true);
    benchmark::ClobberMemory();
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * double(m * 32 * k), benchmark::Counter::kIsIterationInvariantRate);
}

void gemm_pairs(benchmark::State& state, const Kernels* table, bool apart) {
  int64_t m = 512, k = 128, stride = apart ? m + 16 : k + 16;
  std::vector<uint32_t> a(size_t(apart ? k * stride : m * stride), 0x3f003f00u),
      b(size_t(k * 32), 0x3e803e80u);
  std::vector<float> c(size_t(m * 32));
  for (auto _ : state) {
    table->gemm_pairs(m, 32, k, a.data(), apart ? 1 : stride, apart ? stride : 1, b.data(), 32,
                      c.data(), 32, true);
    benchmark::ClobberMemory();
  }
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * double(m * 32 * 2 * k),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

void decode(benchmark::State& state, const Kernels* table, Dtype dtype) {
  int64_t n = 256, rows = 32, bytes = row_bytes(dtype, n);
  AlignedBuffer<std::byte> w = random_weights(rows * bytes);
  std::vector<float> y(size_t(n * rows));
  for (auto _ : state) {
    for (int64_t r = 0; r < rows; ++r)
      table->decode_row(dtype, w.data() + r * bytes, y.data() + r * n, n);
    benchmark::ClobberMemory();
  }
  state.counters["Gweights/s"] =
      benchmark::Counter(1e-9 * double(n * rows), benchmark::Counter::kIsIterationInvariantRate);
}

void dot(benchmark::State& state, const Kernels* table, Dtype dtype) {
  const int terms = int(state.range(2));
  int64_t n = 1536, bytes = row_bytes(dtype, n), rows = state.range(0) / bytes / 512 * 512;
  AlignedBuffer<std::byte> w = random_weights(rows * bytes);
  const int64_t tokens = state.range(1), q_bytes = table->quantised_bytes(n, terms);
  AlignedBuffer<std::byte> q(size_t(q_bytes * tokens));
  std::vector<float> x(size_t(n), 0.3f), y(static_cast<size_t>(rows * tokens));
  for (int64_t t = 0; t < tokens; ++t) table->quantise(x.data(), n, terms, q.data() + t * q_bytes);
  const int64_t piece = 512;
  for (auto _ : state) {
    for (int64_t r = 0; r < rows; r += piece)
      table->rows_dot(dtype, w.data() + r * bytes, bytes, piece, q.data(), q_bytes, tokens, terms,
                      n, y.data() + r, rows);
    benchmark::ClobberMemory();
  }
  state.counters["GB/s"] = benchmark::Counter(1e-9 * double(rows * bytes),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

void read(benchmark::State& state) {
  AlignedBuffer<std::byte> buffer = random_weights(state.range(0));
  const size_t words = buffer.size() / 8, quarter = words / 4;
  const uint64_t* p = reinterpret_cast<const uint64_t*>(buffer.data());
  for (auto _ : state) {
    uint64_t sum[4] = {};
    for (size_t i = 0; i < quarter; i += 8) {
      for (size_t s = 0; s < 4; ++s) {
        __builtin_prefetch(p + s * quarter + i + 128);
        sum[s] += p[s * quarter + i];  // one word a cache line
      }
    }
    benchmark::DoNotOptimize(sum);
  }
  state.counters["GB/s"] = benchmark::Counter(1e-9 * double(buffer.size()),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int64_t large = 128 << 20;
  benchmark::RegisterBenchmark("read", read)->Arg(large);
  for (const Kernels* table : available_kernels()) {
    std::string name(table->name);
    if (name == "reference") continue;
    benchmark::RegisterBenchmark(("gemm/" + name).c_str(), gemm, table)->Arg(576)->Arg(1024);
    benchmark::RegisterBenchmark(("gemm_pairs/" + name).c_str(), gemm_pairs, table, false);
    benchmark::RegisterBenchmark(("gemm_pairs_apart/" + name).c_str(), gemm_pairs, table, true);
    for (const DtypeInfo& format : all_dtypes()) {
      std::string label = std::string(format.name) + "/" + name;
      if (format.decodes)
        benchmark::RegisterBenchmark(("decode/" + label).c_str(), decode, table, format.dtype);
      if (table->has_rows_dot(format.dtype))
        benchmark::RegisterBenchmark(("dot/" + label).c_str(), dot, table, format.dtype)
            ->Args({large, 1, 1})
            ->Args({large, 1, 2})
            ->Args({large, 4, 1})
            ->Args({large, 8, 1});
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
