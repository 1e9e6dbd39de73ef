// Any CPU: 128-bit vectors, which every 64-bit machine has.
#define INFOPRUNE_ISA portable
#define INFOPRUNE_LANES 4
#define INFOPRUNE_ROWS 2
#define INFOPRUNE_PANELS 1
#include "kernels.inl"
