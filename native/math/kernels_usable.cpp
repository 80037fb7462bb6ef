#include "math/kernels.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace flash_llm {
namespace {

// No containers, so that a bare program can be made of this file and the kernels.
struct Usable {
  const Kernels* best_first[8] = {};
  int count = 0;

  Usable() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    add(avx512 && __builtin_cpu_supports("avx512vnni"), kAvx512VnniKernels);
    add(avx512, kAvx512Kernels);
    add(avx2 && __builtin_cpu_supports("avxvnni"), kAvxVnniKernels);
    add(avx2, kAvx2Kernels);
#elif defined(__aarch64__)
#if defined(__linux__)
    add((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0, kNeonDotKernels);
#endif
    add(true, kNeonKernels);
#endif
    add(true, kPlainKernels);
  }
  void add(bool runs, const Kernels& kernels) {
    if (runs) {
      best_first[count++] = &kernels;
    }
  }
};

}  // namespace

const Kernels* const* usable_kernels() {
  static const Usable usable;
  return usable.best_first;
}

}  // namespace flash_llm
