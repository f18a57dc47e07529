#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace mt {

// A fixed team of threads. Work is handed out in indices; what an index computes may not depend
// on which thread takes it, so results are the same for any number of threads.
class ThreadPool {
 public:
  // n_threads <= 0: one per available processor.
  explicit ThreadPool(int n_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls fn(index, thread) once for every index in [0, n), thread in [0, size()). Returns when
  // all are done; the first exception thrown by fn is rethrown here. A call from inside fn runs
  // on the calling thread alone.
  void parallel_for(int64_t n, const std::function<void(int64_t index, int thread)>& fn);

 private:
  struct Team;
  std::unique_ptr<Team> team_;
};

}  // namespace mt
