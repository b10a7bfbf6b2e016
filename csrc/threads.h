// Shares work out between threads: whole results each, so that their number changes no result. No OpenMP: a
// library that is compiled on one machine and used on another should not depend on the compiler's own libraries.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace hpcm {

constexpr int64_t kWorkPerThread = 1 << 21;  // multiply-adds, about 20 µs: less is faster without another thread

// Threads that wait for work, as many as were ever requested at once. One call at a time uses them; a second call at
// the same time, from another thread of the program, does its work alone.
class Pool {
 public:
  static Pool& shared() {
    static Pool* pool = started();  // never destroyed: its threads may still run while the program destroys its objects
    return *pool;
  }

  // Calls work(n) for n below `items`, on this thread and up to threads - 1 others.
  void run(int64_t items, int64_t threads, const std::function<void(int64_t)>& work) {
    std::unique_lock<std::mutex> alone(call_, std::try_to_lock);
    if (!alone.owns_lock()) {
      for (int64_t n = 0; n < items; ++n) work(n);
      return;
    }
    const int64_t helpers = std::min(threads, items) - 1;
    {
      std::lock_guard<std::mutex> guard(state_);
      while (static_cast<int64_t>(workers_.size()) < helpers) {
        workers_.emplace_back([this, number = static_cast<int64_t>(workers_.size())] { wait(number); });
        workers_.back().detach();
      }
      work_ = &work;
      items_ = items;
      next_.store(0, std::memory_order_relaxed);
      helpers_ = wanted_ = helpers;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    take();
    std::unique_lock<std::mutex> guard(state_);
    wanted_ = 0;  // threads that are not awake by now need not begin
    guard.unlock();
    spin([this] { return busy_.load() == 0; });
    guard.lock();
    done_.wait(guard, [this] { return busy_.load() == 0; });
  }

 private:
  void take() {
    for (int64_t n; (n = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) (*work_)(n);
  }

  void wait(int64_t number) {
    uint64_t seen = 0;
    for (;;) {
      spin([&] { return round_.load() != seen; });
      std::unique_lock<std::mutex> guard(state_);
      wake_.wait(guard, [&] { return round_.load() != seen; });
      seen = round_.load();
      if (number >= helpers_ || wanted_ == 0) continue;
      busy_.fetch_add(1);
      guard.unlock();
      take();
      guard.lock();
      if (busy_.fetch_sub(1) == 1) done_.notify_one();
    }
  }

  // Operators follow each other within microseconds, and a sleeping thread takes longer than that to wake up.
  template <class Condition>
  static void spin(const Condition& met) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    while (!met() && std::chrono::steady_clock::now() < end) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  // A child of fork() has none of its parent's threads.
  static Pool* started() {
    static Pool* pool;
    pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { new (pool) Pool; });
#endif
    return pool;
  }

  std::mutex call_, state_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int64_t)>* work_ = nullptr;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> busy_{0};
  std::atomic<uint64_t> round_{0};
  int64_t items_ = 0, helpers_ = 0, wanted_ = 0;
};

// Calls body(n) for n below `items`, which take `work` multiply-adds or as much time, all together.
template <class Body>
void for_each(int64_t items, int64_t work, int64_t threads, const Body& body) {
  threads = std::max<int64_t>(1, std::min({threads, items, work / kWorkPerThread}));
  if (threads == 1) {
    for (int64_t n = 0; n < items; ++n) body(n);
  } else {
    Pool::shared().run(items, threads, std::cref(body));
  }
}

// The same for so many elements, `work` each, in runs: body(first, end).
template <class Body>
void for_each_run(int64_t elements, int64_t work, int64_t threads, const Body& body) {
  constexpr int64_t run = 1 << 14;
  for_each((elements + run - 1) / run, elements * work, threads,
           [&](int64_t n) { body(n * run, std::min(elements, (n + 1) * run)); });
}

// The same for tokens of so many channels: body(token).
template <class Body>
void for_each_token(int64_t tokens, int64_t channels, int64_t work, int64_t threads, const Body& body) {
  constexpr int64_t run = 16;
  for_each((tokens + run - 1) / run, tokens * channels * work, threads, [&](int64_t n) {
    for (int64_t t = n * run; t < std::min(tokens, (n + 1) * run); ++t) body(t);
  });
}

}  // namespace hpcm
