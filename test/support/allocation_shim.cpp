// Preloaded in front of libstdc++: counts what C++ allocates in a thread, and fails as told.
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {
thread_local long until_failure = 0;
thread_local std::size_t allocated = 0;
}  // namespace

// The n-th allocation of this thread from now on fails; 0: none.
extern "C" void fail_allocation(long n) { until_failure = n; }
// How many allocations are left before that one; 0 once it has failed.
extern "C" long allocations_left() { return until_failure; }
// Bytes that this thread has asked for so far.
extern "C" std::size_t bytes_allocated() { return allocated; }

void* operator new(std::size_t bytes) {
  if (until_failure > 0 && --until_failure == 0) {
    throw std::bad_alloc();
  }
  allocated += bytes;
  if (void* memory = std::malloc(bytes)) {
    return memory;
  }
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
