// What every thread of a reader is: named, free of signals, and running as soon as it is woken.
#pragma once

#include <signal.h>

#include <thread>
#include <utility>

namespace flash_llm {

// Signals belong to the interpreter's own threads; those started while this lives get none.
class SignalsBlocked {
 public:
  SignalsBlocked();
  ~SignalsBlocked();
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// Also asks for short slices of a processor: from Linux 6.12 on, a thread that has them takes over
// when it wakes, and does not wait until the milliseconds of a computing thread's slice are over.
// Older kernels do not listen.
void name_and_hurry_this_thread();

template <typename Serve>
std::thread reader_thread(Serve serve) {
  const SignalsBlocked blocked;
  return std::thread([serve = std::move(serve)] {
    name_and_hurry_this_thread();
    serve();
  });
}

}  // namespace flash_llm
