#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

namespace mt {
namespace {

TEST(ThreadPool, EveryIndexOnceForAnyNumberOfThreads) {
  for (int n_threads : {1, 2, 5}) {
    ThreadPool pool(n_threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> hits(257);
      pool.parallel_for(257, [&](int64_t i, int thread) {
        EXPECT_LT(thread, n_threads);
        hits[static_cast<size_t>(i)]++;
      });
      for (auto& h : hits) ASSERT_EQ(h.load(), 1);
    }
  }
}

// Threads that come late to a job, and find it over or another begun, take nothing of what is not
// theirs.
TEST(ThreadPool, JobsInQuickSuccessionDoNotMix) {
  ThreadPool pool(6);
  std::vector<std::atomic<int>> hits(40);
  for (int job = 1; job <= 20000; ++job) {
    const int64_t n = 2 + job * 7 % 39;
    const bool fails = job % 97 == 0;
    std::atomic<int> taken{0};
    const auto fn = [&, job](int64_t i, int) {
      ASSERT_LT(i, n);
      if (job % 50 == 0 && i % 3 == 1) std::this_thread::sleep_for(std::chrono::microseconds(50));
      hits[static_cast<size_t>(i)] = job;
      taken++;
      if (fails && i == 1) throw std::runtime_error("one");
    };
    if (fails) {
      EXPECT_THROW(pool.parallel_for(n, fn), std::runtime_error);
      EXPECT_LE(taken.load(), n);
    } else {
      pool.parallel_for(n, fn);
      ASSERT_EQ(taken.load(), n);
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(hits[static_cast<size_t>(i)].load(), job);
    }
  }
}

TEST(ThreadPool, ExceptionsReachTheCaller) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.parallel_for(50,
                                 [](int64_t i, int) {
                                   if (i == 7) throw std::runtime_error("seven");
                                 }),
               std::runtime_error);
  std::atomic<int> n{0};
  pool.parallel_for(10, [&](int64_t, int) { n++; });
  EXPECT_EQ(n.load(), 10);
}

TEST(ThreadPool, NestedCallsRunInPlace) {
  ThreadPool pool(2);
  std::atomic<int> n{0};
  pool.parallel_for(8, [&](int64_t, int) { pool.parallel_for(8, [&](int64_t, int) { n++; }); });
  EXPECT_EQ(n.load(), 64);
}

}  // namespace
}  // namespace mt
