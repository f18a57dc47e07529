#include "base/threads.h"

#include <atomic>
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
      pending.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void run(int thread) {
    inside_task = true;
    try {
      for (;;) {
        int64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) break;
        (*task)(i, thread);
      }
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next.store(count, std::memory_order_relaxed);
    }
    inside_task = false;
  }

  int n_threads;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::mutex submit;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> pending{0};
  std::atomic<int64_t> next{0};
  int64_t count = 0;
  const std::function<void(int64_t, int)>* task = nullptr;
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
  std::lock_guard one_at_a_time(t.submit);
  {
    std::lock_guard lock(t.mutex);
    t.task = &fn;
    t.count = n;
    t.failure = nullptr;
    t.next.store(0, std::memory_order_relaxed);
    t.pending.store(t.n_threads - 1, std::memory_order_relaxed);
    t.generation.fetch_add(1, std::memory_order_release);
  }
  t.wake.notify_all();
  t.run(0);
  for (int spin = 0; t.pending.load(std::memory_order_acquire) > 0; ++spin) {
    if (spin < 4000)
      relax();
    else
      std::this_thread::yield();
  }
  if (t.failure) std::rethrow_exception(t.failure);
}

}  // namespace mt
