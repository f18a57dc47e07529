#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <ctime>

#include "base/error.h"
#include "base/machine.h"
#include "base/random.h"
#include "cut/encode.h"
#include "cut/refine.h"
#include "model/open.h"

// The time of a refinement step: refine_bench MODEL [TYPE [TOKENS [STEPS [bf16]]]]. Every map of
// the model is rounded to TYPE (Q4_0), then refined on windows of random tokens, with the products
// of each path. CPU seconds are those of all threads; the first step, which warms caches and
// memory, is not counted.
int main(int argc, char** argv) {
  using namespace mt;
  if (argc < 2) {
    fmt::print("refine_bench MODEL [TYPE [TOKENS [STEPS [bf16]]]]\n");
    return 2;
  }
  keep_freed_memory();
  try {
    const Model model = open_model(argv[1]);
    const std::string wanted = argc > 2 ? argv[2] : "Q4_0";
    const int64_t n = argc > 3 ? std::atoll(argv[3]) : 512;
    const int64_t steps = argc > 4 ? std::atoll(argv[4]) : 4;
    const DtypeInfo* type = nullptr;
    for (const DtypeInfo& f : all_dtypes())
      if (f.name == wanted && f.encodes) type = &f;
    if (!type) throw_error("no format to write is called '{}'", wanted);
    ThreadPool pool;
    const Runtime rt{select_kernels(), pool};
    Model cut = model;
    for (LinearMap* map : linear_maps(cut))
      if (map->weight.cols % type->block_length == 0)
        map->weight =
            encode_weight(rt, map->weight, type->dtype, row_weights(nullptr, map->name, Role::map));
    std::vector<std::vector<int32_t>> windows(static_cast<size_t>(steps + 1));
    for (size_t w = 0; w < windows.size(); ++w)
      for (int64_t t = 0; t < n; ++t)
        windows[w].push_back(static_cast<int32_t>(random_bits(1, w, static_cast<uint64_t>(t)) %
                                                  static_cast<uint64_t>(model.n_vocab)));
    fmt::print("{} as {}, {} tokens a step, {} threads, {}\n", argv[1], wanted, n, pool.size(),
               rt.kernels.name);
    for (Path path : {Path::bf16, Path::exact}) {
      if (argc > 5 && path == Path::exact) continue;
      using Clock = std::chrono::steady_clock;
      Clock::time_point begin;
      std::clock_t cpu = 0;
      RefineSettings settings;
      settings.steps = steps + 1;
      settings.path = path;
      settings.after_step = [&](int64_t done, double) {
        if (done != 1) return;
        begin = Clock::now();
        cpu = std::clock();
      };
      refine(rt, model, cut, windows, settings);
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      fmt::print("{:6} {:8.3f} s a step, {:8.3f} CPU s\n", path == Path::exact ? "exact" : "bf16",
                 seconds / double(steps),
                 double(std::clock() - cpu) / CLOCKS_PER_SEC / double(steps));
    }
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
  return 0;
}
