#include "base/threads.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mt {
namespace {
thread_local bool inside_task = false;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}
}  // namespace

// A job ends when its last index is done, not when every thread has seen it: where others use the
// processors too, threads that get none hold up nothing but an index they have taken.
struct ThreadPool::Team {
  explicit Team(int n) : n_threads(n) {
    try {
      for (int t = 1; t < n; ++t) workers.emplace_back([this, t] { work(t); });
    } catch (const std::system_error&) {
      n_threads = static_cast<int>(workers.size()) + 1;  // as many as the system gives
    }
  }
  ~Team() {
    {
      std::lock_guard lock(mutex);
      stop = true;
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    for (auto& w : workers) w.join();
  }

  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      // Spin a little (steps of a token loop follow each other closely), then sleep.
      for (int spin = 0; spin < 4000 && generation.load(std::memory_order_acquire) == seen; ++spin)
        relax();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop) return;
      run(thread);
    }
  }

  void start(int64_t n, const std::function<void(int64_t, int)>& fn) {
    {
      std::lock_guard lock(mutex);
      const uint64_t job = (next.load(std::memory_order_relaxed) / kJob + 1) * kJob;
      task.store(&fn, std::memory_order_release);
      count.store(job + static_cast<uint64_t>(n), std::memory_order_release);
      done.store(0, std::memory_order_release);
      failure = nullptr;
      next.store(job, std::memory_order_release);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
  }

  // Takes indices of the job that is there until none is left.
  void run(int thread) {
    inside_task = true;
    uint64_t n_done = 0;
    for (;;) {
      const uint64_t at = next.fetch_add(1, std::memory_order_acq_rel);
      // No job ends while an index of it is taken and not done. Where the numbers differ, `at` was
      // beyond the end of a job that is over.
      const uint64_t end = count.load(std::memory_order_acquire);
      if (at / kJob != end / kJob || at >= end) break;
      try {
        (*task.load(std::memory_order_acquire))(static_cast<int64_t>(at % kJob), thread);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        // What nobody has taken stays undone.
        n_done += end - std::min(end, next.fetch_or(kClosed, std::memory_order_acq_rel));
      }
      ++n_done;
    }
    inside_task = false;
    if (n_done > 0) done.fetch_add(n_done, std::memory_order_acq_rel);
  }

  // Indices lie in 32 bits below the job's number; the highest of them is set where no more are to
  // be taken.
  static constexpr uint64_t kJob = uint64_t{1} << 32, kClosed = kJob / 2;

  int n_threads;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::mutex submit;
  std::condition_variable wake;
  alignas(64) std::atomic<uint64_t> next{kClosed};
  alignas(64) std::atomic<uint64_t> done{0};
  alignas(64) std::atomic<uint64_t> count{0};  // of the job's number, as `next`
  std::atomic<const std::function<void(int64_t, int)>*> task{nullptr};
  std::atomic<uint64_t> generation{0};
  std::exception_ptr failure;
  bool stop = false;
};

ThreadPool::ThreadPool(int n_threads) {
  int n = n_threads > 0 ? n_threads : static_cast<int>(std::thread::hardware_concurrency());
  team_ = std::make_unique<Team>(n < 1 ? 1 : n);
}
ThreadPool::~ThreadPool() = default;

int ThreadPool::size() const {
  return team_->n_threads;
}

void ThreadPool::parallel_for(int64_t n, const std::function<void(int64_t, int)>& fn) {
  if (n <= 0) return;
  if (inside_task || team_->n_threads == 1 || n == 1) {
    for (int64_t i = 0; i < n; ++i) fn(i, 0);
    return;
  }
  Team& t = *team_;
  assert(n < static_cast<int64_t>(Team::kClosed));
  std::lock_guard one_at_a_time(t.submit);
  t.start(n, fn);
  t.run(0);
  for (int spin = 0; t.done.load(std::memory_order_acquire) < static_cast<uint64_t>(n); ++spin) {
    if (spin < 4000)
      relax();
    else
      std::this_thread::yield();
  }
  if (t.failure) std::rethrow_exception(t.failure);
}

}  // namespace mt
