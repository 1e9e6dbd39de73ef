// x86-64 with AMX: products of bfloat16 and of bytes on tiles of 16 rows (Sapphire Rapids on).
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,amx-tile,amx-bf16,amx-int8")
#define INFOPRUNE_ISA amx
#define INFOPRUNE_LANES 16
#define INFOPRUNE_ROWS 6
#define INFOPRUNE_PANELS 5
#define INFOPRUNE_BF16_DOT
#define INFOPRUNE_INT8_DOT
#define INFOPRUNE_AMX
#include "kernels.inl"
#endif
