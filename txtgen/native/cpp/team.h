// Threads that share the tasks of one loop after another.
//
// All workers of a job run the same code and so meet the same loops. A loop is over when its tasks are done, not when all
// workers have been there: one whose core was taken away finds the loops that it has missed finished, and catches up.
#pragma once

#include <unistd.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

// How often a waiting thread looks before it sleeps: some 50 microseconds, longer than most loops take, and short enough
// that a core which another process needs is soon left to it.
constexpr int LOOKS = 2000;

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Number>
Number wait_for_change(const std::atomic<Number>& value, Number old) {
  for (int look = 0; look < LOOKS; look++) {
    Number now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause_briefly();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

class Worker;

class Team {
 public:
  using Job = std::function<void(Worker&)>;

  // Threads do not survive a fork, so a process that was forked has a team of its own. None is ever taken apart.
  static Team& of_this_process() {
    static std::mutex guard;
    static Team* team = nullptr;
    static pid_t owner = 0;
    std::lock_guard lock(guard);
    if (owner != getpid()) team = new Team, owner = getpid();
    return *team;
  }

  // Let so many workers do a job, this thread among them; when it returns, none of them is at it any more.
  void run(int size, const Job& job);

 private:
  friend class Worker;
  void serve(int rank, uint32_t seen);

  std::mutex busy_;
  int threads_ = 0, size_ = 1;
  const Job* job_ = nullptr;
  uint32_t first_loop_ = 0;
  static constexpr uint64_t OPEN = 1u << 31, INSIDE = OPEN - 1;
  alignas(64) std::atomic<uint32_t> jobs_{0};      // how many there were: what idle threads watch
  alignas(64) std::atomic<uint64_t> door_{0};      // the number of the job, whether it may be joined, how many are at it
  alignas(64) std::atomic<uint64_t> progress_{0};  // the number of the loop, and of its next task
  alignas(64) std::atomic<int> finished_{0};       // tasks of the loop
};

class Worker {
 public:
  Worker(Team& team, uint32_t loop) : team_(team), loop_(loop) {}

  // Tasks 0 ... count - 1: whoever is free takes the next one. Returns when all are done.
  template <class Task>
  void each(int count, Task task) {
    if (count == 0) return;
    if (team_.size_ == 1) {
      for (int number = 0; number < count; number++) task(number);
      return;
    }
    const uint32_t loop = loop_++;
    for (uint64_t progress = team_.progress_.load(std::memory_order_acquire); progress >> 32 == loop;) {
      const int number = int(uint32_t(progress));
      if (number == count) {
        progress = wait_for_change(team_.progress_, progress);
      } else if (team_.progress_.compare_exchange_weak(progress, progress + 1, std::memory_order_acq_rel)) {
        task(number);
        if (team_.finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
          team_.finished_.store(0, std::memory_order_relaxed);
          team_.progress_.store(uint64_t(loop + 1) << 32, std::memory_order_release);
          team_.progress_.notify_all();
        }
        progress = team_.progress_.load(std::memory_order_acquire);
      }
    }
  }

  // Whether the next loop is over already, so that nothing need be made ready for it.
  bool late() const { return team_.size_ > 1 && team_.progress_.load(std::memory_order_acquire) >> 32 != loop_; }

 private:
  Team& team_;
  uint32_t loop_;
};

inline void Team::run(int size, const Job& job) {
  std::lock_guard lock(busy_);
  uint32_t number = jobs_.load(std::memory_order_relaxed);
  for (; threads_ < size - 1; threads_++) std::thread(&Team::serve, this, threads_ + 1, number).detach();
  job_ = &job;
  size_ = size;
  first_loop_ = uint32_t(progress_.load(std::memory_order_relaxed) >> 32);
  Worker self(*this, first_loop_);
  if (size == 1) return job(self);
  door_.store(uint64_t(++number) << 32 | OPEN, std::memory_order_release);
  jobs_.store(number, std::memory_order_release);
  jobs_.notify_all();
  job(self);
  uint64_t door = door_.fetch_and(~OPEN, std::memory_order_acq_rel) & ~OPEN;
  while (door & INSIDE) door = wait_for_change(door_, door);
}

inline void Team::serve(int rank, uint32_t seen) {
  for (;;) {
    seen = wait_for_change(jobs_, seen);
    uint64_t door = door_.load(std::memory_order_acquire);
    while (door & OPEN && !door_.compare_exchange_weak(door, door + 1, std::memory_order_acq_rel)) {
    }
    if (!(door & OPEN)) continue;
    if (rank < size_) {
      Worker self(*this, first_loop_);
      (*job_)(self);
    }
    door_.fetch_sub(1, std::memory_order_acq_rel);
    door_.notify_all();
  }
}
