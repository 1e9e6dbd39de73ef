// x86-64 with AVX-512 and its dot products of bfloat16 and of bytes (Cooper Lake, Zen 4).
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")
#define INFOPRUNE_ISA avx512_bf16
#define INFOPRUNE_LANES 16
#define INFOPRUNE_ROWS 6
#define INFOPRUNE_PANELS 5
#define INFOPRUNE_BF16_DOT
#define INFOPRUNE_INT8_DOT
#include "kernels.inl"
#endif
