#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <thread>

#include "base/error.h"
#include "base/machine.h"
#include "base/progress.h"
#include "bench/machine_speed.h"
#include "bench/model_speed.h"
#include "bench/other_program.h"
#include "cli/command.h"
#include "cli/kv_options.h"
#include "model/open.h"

namespace mt::cli {
namespace {

struct Options {
  std::string model, against, path = "fast";
  int64_t prompt = 512, decode = 128, runs = 5;
  std::vector<int64_t> depths = {0, 4096};
  std::vector<int> threads;
  KvOptions kv;
};

// One row of the result: a task on so many threads, run several times.
struct Row {
  SpeedTask task;
  int threads = 0;
  size_t cache = 0;            // number of its KvTypes
  std::vector<double> rates;   // tokens a second, run by run
  std::vector<double> firsts;  // those of the first of several caches, the same run
  std::vector<double> reads;   // bytes a second read from memory beside each run (decode)
  std::vector<double> others;  // the other program's, the run after ours
  bool whole_process = false;  // those are tokens over its whole run

  Spread rate() const { return spread_of(rates); }
  Spread ratio_to(const std::vector<double>& to) const {
    std::vector<double> ratios(rates.size());
    for (size_t i = 0; i < rates.size(); ++i) ratios[i] = rates[i] / to[i];
    return spread_of(std::move(ratios));
  }
};

struct Result {
  std::vector<MachineSpeed> machines;  // by threads
  std::vector<Row> rows;
  std::vector<KvTypes> caches;
  std::vector<TokenCost> costs;  // by cache
  int64_t anonymous_peak = 0, resident_peak = 0;
  Path path = Path::fast;
  const char* unit() const { return path == Path::fast ? "int8" : "f32"; }  // of products
  const MachineSpeed& machine(int threads) const {
    return *std::find_if(machines.begin(), machines.end(),
                         [&](const MachineSpeed& m) { return m.threads == threads; });
  }
};

const char* phase_name(Phase phase) {
  return phase == Phase::prompt ? "prompt" : "decode";
}

// Bytes that one token of a task has to read, and operations that it needs; averages over the
// task. A prompt reads the weights once a batch, which is not the bound there.
double bytes_a_token(const TokenCost& cost, const SpeedTask& task) {
  const double positions = double(task.depth) + double(task.tokens - 1) / 2 + 1;
  return double(cost.weight_bytes) + positions * double(cost.kv_bytes_a_position);
}
double operations_a_token(const TokenCost& cost, const SpeedTask& task) {
  const double head = task.phase == Phase::decode ? 1.0 : 1.0 / double(task.tokens);
  return 2 * (double(cost.weight_products) + head * double(cost.head_products));
}

// The share of the bound that holds: of memory where tokens come one by one, run by run beside
// what could be read just before and after; of the fastest integer unit in a prompt (of f32 on the
// exact path; attention's products are not counted).
Spread share_of_bound(const Result& result, const Row& row) {
  std::vector<double> shares;
  for (size_t i = 0; i < row.rates.size(); ++i) {
    const TokenCost& cost = result.costs[row.cache];
    const double peak = result.machine(row.threads).fastest(result.unit());
    if (row.task.phase == Phase::decode)
      shares.push_back(row.rates[i] * bytes_a_token(cost, row.task) / row.reads[i]);
    else
      shares.push_back(peak > 0 ? row.rates[i] * operations_a_token(cost, row.task) / peak : 0);
  }
  return spread_of(std::move(shares));
}

std::vector<Row> rows_of(const Options& o, const std::vector<int>& threads, size_t n_caches) {
  std::vector<Row> rows;
  for (int64_t depth : o.depths)
    for (int n : threads)
      for (Phase phase : {Phase::prompt, Phase::decode}) {
        const int64_t tokens = phase == Phase::prompt ? o.prompt : o.decode;
        for (size_t cache = 0; tokens > 0 && cache < n_caches; ++cache) {
          Row row;
          row.task = {phase, tokens, depth};
          row.threads = n;
          row.cache = cache;
          rows.push_back(row);
        }
      }
  return rows;
}

int64_t resident_peak() {
  rusage usage{};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? int64_t{usage.ru_maxrss} * 1024 : 0;
}

constexpr int kReadPasses = 3;
constexpr int64_t kWarmTokens = 16;

// Progress counts tokens of prompts; one alone takes about as long as so many of them.
constexpr uint64_t kDecodeSteps = 10;
uint64_t steps_of(int64_t tokens) {
  return tokens == 1 ? kDecodeSteps : static_cast<uint64_t>(tokens);
}
uint64_t steps_of(const SpeedTask& task) {
  return static_cast<uint64_t>(task.tokens) * (task.phase == Phase::decode ? kDecodeSteps : 1);
}
uint64_t total_steps(const Options& o, const std::vector<Row>& rows) {
  uint64_t total = 0;
  std::map<size_t, int64_t> filled;
  for (const Row& row : rows) {
    SpeedTask warm = row.task;
    warm.tokens = std::min(warm.tokens, kWarmTokens);
    total += steps_of(warm);
    total += static_cast<uint64_t>(o.runs) * (o.against.empty() ? 1 : 2) * steps_of(row.task);
    int64_t& depth = filled[row.cache];
    total += static_cast<uint64_t>(std::max<int64_t>(0, row.task.depth - depth));
    depth = row.task.depth;
  }
  return total;
}

Result measure(const Options& o, const Model& model) {
  const int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<int> threads = o.threads.empty() ? std::vector<int>{processors} : o.threads;
  std::sort(threads.begin(), threads.end());
  threads.erase(std::unique(threads.begin(), threads.end()), threads.end());
  Result result;
  const Path path = result.path = o.path == "exact" ? Path::exact : Path::fast;
  result.caches = kv_type_list(o.kv, path);
  const size_t n_caches = result.caches.size();
  result.rows = rows_of(o, threads, n_caches);
  const MemoryToRead memory(int64_t{256} << 20);
  MemoryWatch watch;
  const int64_t deepest = *std::max_element(o.depths.begin(), o.depths.end());
  std::vector<std::unique_ptr<SpeedBench>> benches;
  for (const KvTypes& types : result.caches) {
    benches.push_back(
        std::make_unique<SpeedBench>(model, path, deepest + std::max(o.prompt, o.decode), types));
    result.costs.push_back(token_cost(model, types));
  }
  Progress progress("measuring", total_steps(o, result.rows));
  const auto step = [&](int64_t tokens) { progress.advance(steps_of(tokens)); };
  // Depth by depth, so that a cache is filled once; within it the threads in turn, and the caches
  // run by run: what else the machine does meets all of them.
  for (size_t at = 0; at < result.rows.size(); at += n_caches) {
    const std::span<Row> rows(&result.rows[at], n_caches);
    ThreadPool pool(rows[0].threads);
    const Runtime rt{select_kernels(), pool};
    for (Row& row : rows) {  // warm: a short run that is not counted
      SpeedTask warm = row.task;
      warm.tokens = std::min(warm.tokens, kWarmTokens);
      benches[row.cache]->run(rt, warm, step);
    }
    for (int64_t i = 0; i < o.runs; ++i)
      for (Row& row : rows) {
        // What neighbours leave of the memory changes within seconds.
        const bool reads = row.task.phase == Phase::decode;
        const double before = reads ? memory.speed(pool, kReadPasses) : 0;
        row.rates.push_back(double(row.task.tokens) / benches[row.cache]->run(rt, row.task, step));
        if (reads) row.reads.push_back(std::max(before, memory.speed(pool, kReadPasses)));
        if (n_caches > 1) row.firsts.push_back(rows[0].rates.back());
        if (!o.against.empty()) {
          const OtherRun other = run_other(o.against, row.task, row.threads);
          row.others.push_back(other.tokens_a_second);
          row.whole_process |= other.whole_process;
          progress.advance(steps_of(row.task));
        }
      }
  }
  result.anonymous_peak = watch.peak_bytes() - memory.bytes();
  result.resident_peak = resident_peak() - memory.bytes();
  for (int n : threads) {
    ThreadPool pool(n);
    result.machines.push_back(measure_machine(pool, memory, 7));
    for (const Row& row : result.rows)
      for (double read : row.threads == n ? row.reads : std::vector<double>())
        result.machines.back().read_bytes = std::max(result.machines.back().read_bytes, read);
  }
  return result;
}

Json to_json(const Spread& s) {
  return {{"median", s.median}, {"low", s.low}, {"high", s.high}};
}

Json to_json(const Options& o, const Model& model, const Result& r) {
  Json machines = Json::array(), rows = Json::array(), caches = Json::array();
  for (const MachineSpeed& m : r.machines) {
    Json units = Json::object();
    for (const UnitSpeed& unit : m.units) units[unit.name] = unit.operations;
    machines.push_back({{"threads", m.threads},
                        {"read_bytes_per_second", m.read_bytes},
                        {"operations_per_second", std::move(units)}});
  }
  for (size_t i = 0; i < r.caches.size(); ++i)
    caches.push_back({{"cache", kv_name(r.caches[i])},
                      {"kv_bytes_per_position", r.costs[i].kv_bytes_a_position}});
  for (const Row& row : r.rows) {
    Json one = {{"phase", phase_name(row.task.phase)},
                {"tokens", row.task.tokens},
                {"depth", row.task.depth},
                {"threads", row.threads},
                {"cache", kv_name(r.caches[row.cache])},
                {"tokens_per_second", to_json(row.rate())},
                {"runs", row.rates},
                {"bytes_per_token", bytes_a_token(r.costs[row.cache], row.task)},
                {"operations_per_token", operations_a_token(r.costs[row.cache], row.task)},
                {"bound", row.task.phase == Phase::decode ? "memory" : r.unit()},
                {"share_of_bound", to_json(share_of_bound(r, row))}};
    if (!row.reads.empty()) one["read_bytes_per_second"] = row.reads;
    if (!row.firsts.empty()) one["ratio_to_first_cache"] = to_json(row.ratio_to(row.firsts));
    if (!row.others.empty()) {
      one["against"] = {{"tokens_per_second", to_json(spread_of(row.others))},
                        {"runs", row.others},
                        {"whole_process", row.whole_process},
                        {"ratio", to_json(row.ratio_to(row.others))}};
    }
    rows.push_back(std::move(one));
  }
  Json out = {{"model", model.file->path},
              {"cpu", cpu_name()},
              {"kernels", select_kernels().name},
              {"path", o.path},
              {"weight_bytes_per_token", r.costs[0].weight_bytes},
              {"caches", std::move(caches)},
              {"machine", std::move(machines)},
              {"results", std::move(rows)},
              {"peak_anonymous_bytes", r.anonymous_peak},
              {"peak_resident_bytes", r.resident_peak}};
  if (!o.against.empty()) out["against"] = o.against;
  return out;
}

std::string rate_text(const Spread& s) {
  return fmt::format("{:.1f}", s.median);
}
std::string spread_text(const Spread& s) {
  return fmt::format("{:.1f}–{:.1f}", s.low, s.high);
}

void show(Context& context, const Options& o, const Result& r) {
  const bool several = r.caches.size() > 1;
  std::string positions;
  for (size_t i = 0; i < r.caches.size(); ++i)
    positions += fmt::format("{}{} ({})", i > 0 ? ", " : "",
                             human_bytes(r.costs[i].kv_bytes_a_position), kv_name(r.caches[i]));
  context.print(
      folded(context,
             fmt::format("{}, kernels {}; a token reads {} of weights and of each position of "
                         "the context {}; memory at most {} (mapped weights counted), {} without",
                         cpu_name(), select_kernels().name, human_bytes(r.costs[0].weight_bytes),
                         positions, human_bytes(r.resident_peak), human_bytes(r.anonymous_peak))));
  context.print("\n");
  using Align = Table::Align;
  Table machine({{"machine", Align::left}, {"threads", Align::right}, {"reached", Align::right}});
  for (const MachineSpeed& m : r.machines) {
    machine.row(
        {"memory read", std::to_string(m.threads), fmt::format("{:.1f} GB/s", m.read_bytes / 1e9)});
    for (const UnitSpeed& unit : m.units)
      machine.row({unit.name, std::to_string(m.threads),
                   fmt::format("{:.0f} Gop/s", unit.operations / 1e9)});
  }
  const int width = context.out.is_terminal ? context.out.width() : 0;
  context.print(machine.text(width, context.out.colour) + "\n");
  std::vector<Table::Column> columns = {{"task", Align::left},     {"depth", Align::right},
                                        {"threads", Align::right}, {"tokens/s", Align::right},
                                        {"spread", Align::right},  {"of bound", Align::right}};
  if (several) {
    columns.insert(columns.begin() + 1, {"cache", Align::left});
    columns.push_back({fmt::format("to {}", kv_name(r.caches[0])), Align::right});
    columns.push_back({"spread", Align::right});
  }
  if (!o.against.empty()) {
    columns.push_back({"other", Align::right});
    columns.push_back({"ratio", Align::right});
    columns.push_back({"spread", Align::right});
  }
  Table table(columns);
  bool whole_process = false;
  for (const Row& row : r.rows) {
    std::vector<std::string> cells = {
        fmt::format("{} {}", phase_name(row.task.phase), row.task.tokens),
        std::to_string(row.task.depth),
        std::to_string(row.threads),
        rate_text(row.rate()),
        spread_text(row.rate()),
        fmt::format("{:.0f} % {}", 100 * share_of_bound(r, row).median,
                    row.task.phase == Phase::decode ? "memory" : r.unit())};
    auto show_ratio = [&](const Spread& ratio) {
      cells.push_back(fmt::format("{:.2f}", ratio.median));
      cells.push_back(fmt::format("{:.2f}–{:.2f}", ratio.low, ratio.high));
    };
    if (several) {
      cells.insert(cells.begin() + 1, kv_name(r.caches[row.cache]));
      show_ratio(row.ratio_to(row.firsts));
    }
    if (!row.others.empty()) {
      cells.push_back(rate_text(spread_of(row.others)) + (row.whole_process ? "*" : ""));
      show_ratio(row.ratio_to(row.others));
      whole_process |= row.whole_process;
    }
    table.row(std::move(cells));
  }
  context.print(table.text(width, context.out.colour));
  if (std::any_of(r.rows.begin(), r.rows.end(), [&](const Row& row) {
        return row.task.phase == Phase::decode && share_of_bound(r, row).median > 1;
      }))
    context.note(
        "above 100 %: the weights stay in the processor's caches, and the bound is main memory's");
  if (whole_process)
    context.note("* the other program printed no rate: its tokens are divided by its whole run");
}

int run(Context& context, Options o) {
  if (o.threads.empty() && context.threads > 0)
    o.threads = {context.threads};  // said before `bench`
  if (o.prompt == 0 && o.decode == 0)
    throw Error("--prompt 0 and --decode 0 leave nothing to measure");
  if (!o.against.empty()) check_command(o.against);
  const Model model = open_model(o.model);
  warn_beyond_training(
      context, model.context_length,
      *std::max_element(o.depths.begin(), o.depths.end()) + std::max(o.prompt, o.decode));
  const Result result = measure(o, model);
  if (context.json)
    context.print_json(to_json(o, model, result));
  else
    show(context, o, result);
  return exit_done;
}

Run add(CLI::App& app) {
  auto o = std::make_shared<Options>();
  declare_model(app, o->model);
  app.add_option("-p,--prompt", o->prompt, "Tokens of the prompt, run as batches of 512; 0: none")
      ->check(within(int64_t{0}, int64_t{1} << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("-n,--decode", o->decode, "Tokens run one after another; 0: none")
      ->check(within(int64_t{0}, int64_t{1} << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("-d,--depth", o->depths, "Positions that the context already holds; a list")
      ->check(within(int64_t{0}, int64_t{1} << 20))
      ->delimiter(',')
      ->type_name("N,...")
      ->capture_default_str();
  app.add_option("-t,--threads", o->threads,
                 "Threads that compute; a list (default: all processors)")
      ->check(within(1, 1024))
      ->delimiter(',')
      ->type_name("N,...");
  app.add_option("-r,--runs", o->runs, "Runs of each; the median is shown")
      ->check(within(int64_t{1}, int64_t{1000}))
      ->type_name("N")
      ->capture_default_str();
  declare_kv_types(app, o->kv, true);
  app.add_option("--path", o->path, "fast: quantised kernels; exact: f32 in a fixed order")
      ->check(CLI::IsMember({"fast", "exact"}))
      ->capture_default_str();
  app.add_option("--against", o->against,
                 "A shell command that does the same work, run after each run of ours; {threads}, "
                 "{prompt}, {decode} and {depth} are filled in. Its rate is the member avg_ts of "
                 "the JSON that it prints, else its tokens over its whole run")
      ->check([](const std::string& command) {
        return std::string(
            command.find_first_not_of(" \t\n") == std::string::npos ? "the command is empty" : "");
      })
      ->type_name("COMMAND");
  return [o](Context& context) { return run(context, *o); };
}

}  // namespace

const Command bench_command = {
    .name = "bench",
    .summary = "Measure speed: prompt and decode, beside what the machine could reach",
    .examples =
        "microtome bench model.gguf\n"
        "microtome bench model.gguf --threads 1,2 --depth 0 --runs 9\n"
        "microtome bench model.gguf --depth 4096 --cache-type-k f32,f16,q8_0 --cache-type-v "
        "f32,f16,q8_0\n"
        "microtome bench model.gguf --json\n"
        "microtome bench model.gguf --against 'llama-bench -m model.gguf -t {threads} -p {prompt} "
        "-n {decode} -d {depth} -r 1 -o json'",
    .add = add};

}  // namespace mt::cli
