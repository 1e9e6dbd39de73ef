// x86-64 with AVX2 and FMA (2013 on).
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define INFOPRUNE_ISA avx2
#define INFOPRUNE_LANES 8
#define INFOPRUNE_ROWS 6
#define INFOPRUNE_PANELS 1
#include "kernels.inl"
#endif
