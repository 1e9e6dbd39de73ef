// x86-64 with AVX-512.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define INFOPRUNE_ISA avx512
#define INFOPRUNE_LANES 16
#define INFOPRUNE_ROWS 6
#define INFOPRUNE_PANELS 5
#include "kernels.inl"
#endif
