// Matrix products: a tile of accumulators in registers, and loops over tiles.

// What activations kept as S are multiplied as: pairs of bfloat16 where there is a dot product for them, else float.
template <class S>
struct ComputedAs {
  using type = float;
};
#if defined(INFOPRUNE_BF16_DOT)
template <>
struct ComputedAs<bfloat16> {
  using type = bfloat16;
};
#endif
template <class S>
using Elem = typename ComputedAs<S>::type;

// Values of one step along K: two bfloat16 are multiplied at once, one float.
template <class E>
constexpr int64_t kStep = sizeof(E) == 2 ? 2 : 1;

template <class E>
INLINE int64_t steps(int64_t k) { return (k + kStep<E> - 1) / kStep<E>; }
template <class E>
INLINE int64_t panel_size(int64_t k) { return steps<E>(k) * kStep<E> * kPanel; }
template <class E>
INLINE int64_t packed_size(int64_t k, int64_t n) { return panels(n) * panel_size<E>(k); }

// C (MR rows x NP panels, float) = or += A (MR x K, row stride lda) times NP packed panels.
template <class E, int MR, int NP>
static __attribute__((noinline)) void tile(const E* a, int64_t lda, const E* b, int64_t panel, int64_t count, float* c,
                                           int64_t ldc, bool accumulate) {
  constexpr int kVectors = kPanel / kLanes;
  Floats sums[MR][NP * kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NP * kVectors; ++j) sums[i][j] = Floats{};
  for (int64_t s = 0; s < count; ++s) {
    if constexpr (sizeof(E) == 4) {
      Floats columns[NP * kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < NP * kVectors; ++j)
        columns[j] = load(b + (j / kVectors) * panel + s * kPanel + (j % kVectors) * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < NP * kVectors; ++j) sums[i][j] += a[i * lda + s] * columns[j];
    } else {
#if defined(INFOPRUNE_BF16_DOT)
      __m512bh columns[NP];
#pragma GCC unroll 8
      for (int j = 0; j < NP; ++j) columns[j] = (__m512bh)_mm512_loadu_si512(b + j * panel + s * 2 * kPanel);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        int32_t pair;
        __builtin_memcpy(&pair, a + i * lda + 2 * s, 4);
        __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
        for (int j = 0; j < NP; ++j) sums[i][j] = (Floats)_mm512_dpbf16_ps((__m512)sums[i][j], row, columns[j]);
      }
#endif
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NP * kVectors; ++j) {
      float* to = c + i * ldc + j * kLanes;
      store(to, accumulate ? load(to) + sums[i][j] : sums[i][j]);
    }
}

template <class E, int NP, int MR>
INLINE void some_rows(int64_t rows, const E* a, int64_t lda, const E* b, int64_t panel, int64_t count, float* c,
                      int64_t ldc, bool accumulate) {
  if (rows == MR) return tile<E, MR, NP>(a, lda, b, panel, count, c, ldc, accumulate);
  if constexpr (MR > 1) some_rows<E, NP, MR - 1>(rows, a, lda, b, panel, count, c, ldc, accumulate);
}

template <class E, int NP>
static void column_of_tiles(int64_t rows, const E* a, int64_t lda, const E* b, int64_t panel, int64_t count, float* c,
                            int64_t ldc, bool accumulate) {
  constexpr int MR = NP > 4 ? INFOPRUNE_ROWS - 1 : INFOPRUNE_ROWS;
  for (int64_t row = 0; row < rows; row += MR)
    some_rows<E, NP, MR>(smaller(MR, rows - row), a + row * lda, lda, b, panel, count, c + row * ldc, ldc, accumulate);
}

template <class E, int NP = INFOPRUNE_PANELS>
INLINE void some_panels(int64_t width, int64_t rows, const E* a, int64_t lda, const E* b, int64_t panel, int64_t count,
                        float* c, int64_t ldc, bool accumulate) {
  if (width == NP) return column_of_tiles<E, NP>(rows, a, lda, b, panel, count, c, ldc, accumulate);
  if constexpr (NP > 1) some_panels<E, NP - 1>(width, rows, a, lda, b, panel, count, c, ldc, accumulate);
}

// Values of K summed in one go. Float sums are cut: a chain of 1280 additions loses three times as much as five of 256.
template <class E>
constexpr int64_t kChain = sizeof(E) == 4 ? 256 : int64_t{1} << 30;

// C (rows x width panels) = or += A (rows x K) times packed panels that lie `panel` elements apart.
template <class E>
static void product(int64_t rows, const E* a, int64_t lda, const E* b, int64_t panel, int64_t k, int64_t width,
                    float* c, int64_t ldc, bool accumulate) {
  // Five panels at once hold a head of 80; otherwise four, which leave the most rows.
  constexpr int64_t kMost = INFOPRUNE_PANELS, kUsual = kMost > 4 ? 4 : kMost;
  for (int64_t at = 0; at < width;) {
    const int64_t left = width - at, now = left == kMost ? left : smaller(left, kUsual);
    int64_t from = 0;
    do {  // once where K is 0, too: the sums are 0 then
      some_panels<E>(now, rows, a + from, lda, b + at * panel + from * kPanel, panel,
                     steps<E>(smaller(kChain<E>, k - from)), c + at * kPanel, ldc, accumulate || from);
      from += kChain<E>;
    } while (from < k);
    at += now;
  }
}

// weight (N x K) -> panels of 16 columns.
template <class S>
static void pack_weight(const S* weight, int64_t row_stride, int64_t k, int64_t n, Elem<S>* packed) {
  using E = Elem<S>;
  for (int64_t p = 0; p < panels(n); ++p) {
    for (int64_t s = 0; s < steps<E>(k); ++s) {
      for (int64_t j = 0; j < kPanel; ++j) {
        for (int64_t i = 0; i < kStep<E>; ++i) {
          int64_t column = p * kPanel + j, row = s * kStep<E> + i;
          bool inside = column < n && row < k;
          *packed++ = from_float<E>(inside ? to_float(weight[column * row_stride + row]) : 0.0f);
        }
      }
    }
  }
}
