// The threads that compute a pass together. Each has a rank from 0; all run the same code on their own part of the
// work, and wait for each other at a barrier before one reads what another wrote.

#pragma once

#include <atomic>
#include <thread>
#include <vector>

namespace {

// From `first` to before `last`.
struct Part {
  int first, last;
};
inline Part part(int total, int rank, int size) { return {total * rank / size, total * (rank + 1) / size}; }

// Workers that sleep between steps and meet at barriers within one. Rank 0 is the thread that calls `run`.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { work(i); });
  }

  ~Team() {
    job_ = nullptr;  // tells the workers to end
    start();
    for (auto& thread : threads_) thread.join();
  }

  // Calls body(rank) on every thread; returns when all are done.
  template <class F>
  void run(F&& body) {
    auto call = [](void* context, int rank) { (*static_cast<F*>(context))(rank); };
    context_ = &body;
    job_ = call;
    start();
    body(0);
    barrier();
  }

  // The last to arrive lets the others go. They spin at first, since the wait is shorter than a sleep would take.
  void barrier() {
    if (size_ == 1) return;
    int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++)
      if (spins > 4000) std::this_thread::yield();
  }

  int size() const { return size_; }

 private:
  void start() {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }

  void work(int rank) {
    for (unsigned seen = 0;;) {
      // The next step often begins at once, sooner than a sleeping thread wakes.
      for (int spins = 0; spins < 20000 && generation_.load(std::memory_order_acquire) == seen; spins++);
      generation_.wait(seen, std::memory_order_acquire);
      seen++;
      if (!job_) return;
      job_(context_, rank);
      barrier();
    }
  }

  int size_;
  // Apart, so that those who wait do not slow those who arrive.
  alignas(64) std::atomic<unsigned> generation_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
  void (*job_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> threads_;
};

}  // namespace
