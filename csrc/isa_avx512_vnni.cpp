// x86-64 with AVX-512 and its dot product of bytes (Cascade Lake, Ice Lake).
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#define INFOPRUNE_ISA avx512_vnni
#define INFOPRUNE_LANES 16
#define INFOPRUNE_ROWS 6
#define INFOPRUNE_PANELS 5
#define INFOPRUNE_INT8_DOT
#include "kernels.inl"
#endif
