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

  // No index of a job can be taken while `next` is at kClosed of it.
  void start(int64_t n, const std::function<void(int64_t, int)>& fn) {
    {
      std::lock_guard lock(mutex);
      const uint64_t job = (next.load(std::memory_order_relaxed) | kClosed) + 1;
      next.store(job | kClosed, std::memory_order_release);
      // A thread that sees what follows finds the index it meant to take to be of another job.
      task.store(&fn, std::memory_order_release);
      count.store(static_cast<uint64_t>(n), std::memory_order_release);
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
    uint64_t n_done = 0, at = next.load(std::memory_order_acquire);
    while ((at & kClosed) < count.load(std::memory_order_acquire)) {
      if (!next.compare_exchange_weak(at, at + 1, std::memory_order_acq_rel,
                                      std::memory_order_acquire))
        continue;
      try {
        (*task.load(std::memory_order_acquire))(static_cast<int64_t>(at & kClosed), thread);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        // What nobody has taken stays undone.
        const uint64_t n = count.load(std::memory_order_relaxed);
        n_done += n - std::min(n, next.fetch_or(kClosed, std::memory_order_acq_rel) & kClosed);
      }
      ++n_done;
      at = next.load(std::memory_order_acquire);
    }
    inside_task = false;
    if (n_done > 0) done.fetch_add(n_done, std::memory_order_acq_rel);
  }

  static constexpr uint64_t kClosed = 0xffffffff;

  int n_threads;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::mutex submit;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<uint64_t> next{
      kClosed};  // the job's number, then 32 bits: the index to be taken next
  std::atomic<uint64_t> count{0}, done{0};
  std::atomic<const std::function<void(int64_t, int)>*> task{nullptr};
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
  assert(n < int64_t{Team::kClosed});
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
