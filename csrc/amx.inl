// Products on AMX tiles: 16 rows of 64 bytes each. A panel is a column of tiles as it is: 16 steps of 16 columns.
//
// Two tiles of rows times two panels fill four tiles of sums with two tiles of factors loaded for each side: the most
// reuse that eight tiles allow. All rows of a tile are always taken, so that A and C must have room for a multiple of
// 16 rows; what lies in the rows beyond is multiplied and never looked at.
//
// Our own kernel, not at::native's brgemm: the binding's stable ABI does not reach that one, and here the sums meet
// bias, rotation or residual while they are still in the nearest cache.

#if defined(INFOPRUNE_EMULATE_AMX)
// The same operations in plain C++, so that all that is around them is tested on machines without AMX.
static thread_local uint8_t tile_registers[8][16][64];

INLINE void tile_begin() {}
INLINE void tile_end() {}
static void tile_clear(int t) { __builtin_memset(tile_registers[t], 0, sizeof(tile_registers[t])); }
static void tile_load(int t, const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i) __builtin_memcpy(tile_registers[t][i], static_cast<const char*>(from) + i * stride, 64);
}
static void tile_store(int t, void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) __builtin_memcpy(static_cast<char*>(to) + i * stride, tile_registers[t][i], 64);
}
template <class E>
static void tile_multiply(int sums, int rows, int columns) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      if constexpr (sizeof(E) == 2) {
        float total = reinterpret_cast<float*>(tile_registers[sums][i])[j];
        for (int k = 0; k < 32; ++k)
          total += to_float(reinterpret_cast<bfloat16*>(tile_registers[rows][i])[k]) *
                   to_float(reinterpret_cast<bfloat16*>(tile_registers[columns][k / 2])[2 * j + k % 2]);
        reinterpret_cast<float*>(tile_registers[sums][i])[j] = total;
      } else {
        int32_t total = reinterpret_cast<int32_t*>(tile_registers[sums][i])[j];
        for (int k = 0; k < 64; ++k)
          total += tile_registers[rows][i][k] * static_cast<int8_t>(tile_registers[columns][k / 4][4 * j + k % 4]);
        reinterpret_cast<int32_t*>(tile_registers[sums][i])[j] = total;
      }
    }
  }
}
#define TILE_MULTIPLY(E, sums, rows, columns) tile_multiply<E>(sums, rows, columns)
#else
struct alignas(64) TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
constexpr TileShapes kTileShapes = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Configuration, loads and stores are written out, because GCC 12's own say too little of what they touch: of the
// configuration only 8 bytes are told to be read, so that the rest is never written, and of a loaded tile nothing.
INLINE void tile_begin() { __asm__ volatile("ldtilecfg %0" : : "m"(kTileShapes)); }
INLINE void tile_end() { _tile_release(); }
// Macros, because tiles are named by literals.
#define tile_clear(t) _tile_zero(t)
#define tile_load(t, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define tile_store(t, to, stride) \
  __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define TILE_MULTIPLY(E, sums, rows, columns)              \
  do {                                                     \
    if constexpr (sizeof(E) == 2) _tile_dpbf16ps(sums, rows, columns); \
    else _tile_dpbusd(sums, rows, columns);                \
  } while (0)
#endif

// Up to 32 rows (MT tiles) times NP panels.
template <class E, int MT, int NP>
static void tile_pair(const E* a, int64_t lda, const E* b, int64_t panel, int64_t k, float* c, int64_t ldc,
                      bool accumulate) {
  const int64_t row_bytes = lda * static_cast<int64_t>(sizeof(E)), sum_bytes = ldc * 4;
  if (accumulate) {
    tile_load(0, c, sum_bytes);
    if constexpr (NP > 1) tile_load(1, c + kPanel, sum_bytes);
    if constexpr (MT > 1) tile_load(2, c + 16 * ldc, sum_bytes);
    if constexpr (MT > 1 && NP > 1) tile_load(3, c + 16 * ldc + kPanel, sum_bytes);
  } else {
    tile_clear(0);
    tile_clear(1);
    tile_clear(2);
    tile_clear(3);
  }
  for (int64_t s = 0; s < k; s += kAlign<E>) {
    tile_load(4, a + s, row_bytes);
    if constexpr (MT > 1) tile_load(5, a + 16 * lda + s, row_bytes);
    tile_load(6, b + s * kPanel, 64);
    if constexpr (NP > 1) tile_load(7, b + panel + s * kPanel, 64);
    TILE_MULTIPLY(E, 0, 4, 6);
    if constexpr (NP > 1) TILE_MULTIPLY(E, 1, 4, 7);
    if constexpr (MT > 1) TILE_MULTIPLY(E, 2, 5, 6);
    if constexpr (MT > 1 && NP > 1) TILE_MULTIPLY(E, 3, 5, 7);
  }
  tile_store(0, c, sum_bytes);
  if constexpr (NP > 1) tile_store(1, c + kPanel, sum_bytes);
  if constexpr (MT > 1) tile_store(2, c + 16 * ldc, sum_bytes);
  if constexpr (MT > 1 && NP > 1) tile_store(3, c + 16 * ldc + kPanel, sum_bytes);
}

// C (rows x one or two panels) = or += A times packed panels.
template <class E>
static void tiled_product(int64_t rows, const E* a, int64_t lda, const E* b, int64_t panel, int64_t k, int64_t width,
                          float* c, int64_t ldc, bool accumulate) {
  for (int64_t row = 0; row < rows; row += 32) {
    const E* from = a + row * lda;
    float* to = c + row * ldc;
    const bool two_tiles = rows - row > 16, two_panels = width > 1;
    if (two_tiles && two_panels) tile_pair<E, 2, 2>(from, lda, b, panel, k, to, ldc, accumulate);
    else if (two_tiles) tile_pair<E, 2, 1>(from, lda, b, panel, k, to, ldc, accumulate);
    else if (two_panels) tile_pair<E, 1, 2>(from, lda, b, panel, k, to, ldc, accumulate);
    else tile_pair<E, 1, 1>(from, lda, b, panel, k, to, ldc, accumulate);
  }
}
