// Which kernels this machine can run: asked of the processor once per call, never guessed from the build machine.
#include "kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace infoprune {

#if defined(__x86_64__)
// Tiles are large, so that the kernel of the operating system wants to be asked before a process uses them.
static bool tiles_granted() {
#if defined(INFOPRUNE_EMULATE_AMX)
  return true;
#elif defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

int available_kernels(const Kernels* found[kMostKernels]) {
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (bf16 && tiles_granted()) found[count++] = &kernels_amx;
  if (bf16) found[count++] = &kernels_avx512_bf16;
  if (vnni) found[count++] = &kernels_avx512_vnni;
  if (avx512) found[count++] = &kernels_avx512;
  if (avx2) found[count++] = &kernels_avx2;
#endif
  found[count++] = &kernels_portable;
  return count;
}

}  // namespace infoprune
