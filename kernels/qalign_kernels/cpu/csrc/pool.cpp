// The thread pool. Workers look for a new job for a moment, then they sleep. There is one job at a time; callers queue.
#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#include <sys/mman.h>
#endif

namespace qk {
namespace {

constexpr auto kLook = std::chrono::microseconds(50);  // longer than the time between two operations

struct Pool {
  // With fewer workers where the system gives no more threads.
  explicit Pool(int count) {
    try {
      for (int i = 1; i < count; i++) workers.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stopping = true;
      generation++;
    }
    wake.notify_all();
    for (auto& worker : workers) worker.join();
  }

  void run(Task task, const void* context, int64_t count) {
    this->task = task, this->context = context, this->count = count;
    next.store(0, std::memory_order_relaxed);
    busy.store(static_cast<int>(workers.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    take();
    while (busy.load(std::memory_order_acquire) > 0) std::this_thread::yield();
    if (starved.exchange(false)) throw std::bad_alloc();
  }

  void take() {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
    } catch (const std::bad_alloc&) {
      starved.store(true);
    }
  }

  void work() {
    for (uint64_t seen = 0;;) {
      const auto until = std::chrono::steady_clock::now() + kLook;
      while (generation.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < until) {
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::lock_guard<std::mutex> lock(mutex);
        // What `wake.wait` does. Its symbol is as new as GCC 12, and the library must run beside an older libstdc++.
        while (generation.load(std::memory_order_acquire) == seen)
          pthread_cond_wait(wake.native_handle(), mutex.native_handle());
      }
      seen = generation.load(std::memory_order_acquire);
      if (stopping) return;
      take();
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};
  std::atomic<bool> starved{false};  // a task found no memory
  bool stopping = false;
  Task task = nullptr;
  const void* context = nullptr;
  int64_t count = 0;
};

struct Pieces;

// One job at a time holds `turn`, and so does whoever replaces the pool.
struct State {
  std::mutex turn;
  Pool* pool = nullptr;  // never destroyed at exit: its threads end with the process
  std::mutex lending;
  std::vector<Pieces*> free;
};

State* state = new State;
std::atomic<int> wanted{0};

#if defined(__unix__) || defined(__APPLE__)
// A forked child has no workers, and perhaps a copy of a lock that a thread of its parent holds.
const int forks = pthread_atfork(nullptr, nullptr, [] { state = new State; });
#endif

struct Scratch {
  void* data = nullptr;
  int64_t bytes = 0;
};

struct Pieces {
  Scratch of[kSlots];
};

// A thread takes pieces when it first asks for memory. When it ends, or its turn does, the next thread gets them: there
// are as many as threads that computed at the same time.
struct Lease {
  Pieces* pieces = nullptr;

  ~Lease() { end(); }

  Pieces& get() {
    if (!pieces) {
      std::lock_guard<std::mutex> lock(state->lending);
      if (state->free.empty()) return *(pieces = new Pieces);
      pieces = state->free.back();
      state->free.pop_back();
    }
    return *pieces;
  }

  void end() {
    if (!pieces) return;
    std::lock_guard<std::mutex> lock(state->lending);
    state->free.push_back(pieces);
    pieces = nullptr;
  }
};

thread_local Lease lease;
thread_local bool starved = false;

}  // namespace

int threads() {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int asked = wanted;
  return asked > 0 ? asked : (cores > 0 ? cores : 1);
}

void run(Task task, const void* context, int64_t count) {
  if (count > 1 && threads() > 1) {
    std::lock_guard<std::mutex> one_job(state->turn);
    if (!state->pool) state->pool = new Pool(threads());
    return state->pool->run(task, context, count);
  }
  for (int64_t i = 0; i < count; i++) task(context, i);
}

void* scratch(int slot, int64_t bytes) {
  Scratch& s = lease.get().of[slot];
  if (s.bytes < bytes) {
    std::free(s.data);
    s = {};
    s.bytes = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    s.data = std::aligned_alloc(4096, s.bytes);
    if (!s.data) {
      s = {};
      throw std::bad_alloc();
    }
  }
  return s.data;
}

void end_turn() { lease.end(); }

void note_starved() { starved = true; }

int64_t was_starved() { return std::exchange(starved, false); }

}  // namespace qk

// Activations are allocated and freed all the time. Their pages must not go back to the system each time, to be zeroed
// anew; and large pages serve them better, because heads lie in columns.
extern "C" __attribute__((visibility("default"))) void qk_keep_memory() {
#if defined(__GLIBC__)
  constexpr int kMapped = 32 << 20, kRoom = 160 << 20, kHuge = 2 << 20;  // glibc always maps what is larger
  mallopt(M_MMAP_THRESHOLD, kMapped);
  mallopt(M_TRIM_THRESHOLD, 2 * kRoom);
  mallopt(M_TOP_PAD, kRoom);
  mallopt(M_ARENA_MAX, 1);  // else each thread that computes keeps such room of its own
  void* end = std::malloc(kMapped - kHuge);  // from the heap, with the room behind it
  const auto first = (reinterpret_cast<uintptr_t>(end) + kHuge - 1) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(first), kRoom, MADV_HUGEPAGE);
  std::free(end);
#endif
}

extern "C" __attribute__((visibility("default"))) void qk_set_threads(int count) {
  std::lock_guard<std::mutex> no_job(qk::state->turn);
  if (count == qk::wanted) return;
  delete qk::state->pool;
  qk::state->pool = nullptr;
  qk::wanted = count;
}
