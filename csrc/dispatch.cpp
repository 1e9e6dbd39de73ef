// Which kernels this machine can run: asked of the processor once per call, never guessed from the build machine.
#include "kernels.h"

namespace infoprune {

int available_kernels(const Kernels* found[4]) {
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) found[count++] = &kernels_avx512_bf16;
  if (avx512) found[count++] = &kernels_avx512;
  if (avx2) found[count++] = &kernels_avx2;
#endif
  found[count++] = &kernels_portable;
  return count;
}

}  // namespace infoprune
