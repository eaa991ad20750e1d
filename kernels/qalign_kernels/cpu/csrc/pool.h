// parallel(count, f) calls f once with each index below the count, on all threads of the pool.
#pragma once

#include <cstdint>

namespace qk {

using Task = void (*)(const void* context, int64_t index);

void run(Task task, const void* context, int64_t count);
int threads();

template <class F>
void parallel(int64_t count, const F& f) {
  run([](const void* context, int64_t index) { (*static_cast<const F*>(context))(index); }, &f, count);
}

// Memory that a thread keeps from call to call until its turn ends, one piece for each slot. Fresh pages cost more than most operations.
constexpr int kSlots = 12;
void* scratch(int slot, int64_t bytes);

// The calling thread computes no more for now: its scratch memory may be another thread's.
void end_turn();

// Whether a call of this thread found no memory, and gave no result, since this was last asked.
int64_t was_starved();
void note_starved();

}  // namespace qk
