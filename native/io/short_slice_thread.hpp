// What every thread of a reader is: named, free of signals, and running as soon as it is woken.
#pragma once

#include <thread>
#include <utility>

#include "io/signals_blocked.hpp"

namespace flash_llm {

// Asks for short slices of a processor: from Linux 6.12 on, a thread that has them takes over
// when it wakes, and does not wait until the milliseconds of a computing thread's slice are over.
// Older kernels do not listen.
void name_and_shorten_slices();

template <typename Serve>
std::thread short_slice_thread(Serve serve) {
  const SignalsBlocked blocked;
  return std::thread([serve = std::move(serve)] {
    name_and_shorten_slices();
    serve();
  });
}

}  // namespace flash_llm
