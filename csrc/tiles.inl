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

// Quantised rows: bytes where there is a dot product for them (128 more than the value, as the instruction wants one
// factor unsigned), else whole numbers as floats.
#if defined(INFOPRUNE_INT8_DOT)
using Quantised = uint8_t;
constexpr int32_t kZero = 128;
#else
using Quantised = float;
constexpr int32_t kZero = 0;
#endif
// The first `count` of these whole numbers.
INLINE void store_quantised(Quantised* to, Floats whole, int64_t count) {
#if defined(INFOPRUNE_INT8_DOT)
  Bytes bytes = __builtin_convertvector(__builtin_convertvector(whole, Ints) + kZero, Bytes);
  if (count >= kLanes) __builtin_memcpy(to, &bytes, kLanes);
  else __builtin_memcpy(to, &bytes, static_cast<size_t>(count));
#else
  store_some(to, whole, smaller(kLanes, count));
#endif
}
template <class S, bool Q>
struct FactorOf {
  using type = Elem<S>;
};
template <class S>
struct FactorOf<S, true> {
  using type = Quantised;
};
template <class S, bool Q>
using Factor = typename FactorOf<S, Q>::type;

// Values of one step along K, which are multiplied at once: 4 bytes, 2 bfloat16, 1 float.
template <class E>
constexpr int64_t kStep = 4 / static_cast<int64_t>(sizeof(E));

// K is filled up to a multiple of this: tiles take 16 steps at once.
#if defined(INFOPRUNE_AMX)
template <class E>
constexpr int64_t kAlign = sizeof(E) == 4 ? 1 : 16 * kStep<E>;
#else
template <class E>
constexpr int64_t kAlign = kStep<E>;
#endif

// Length of a row of K factors.
template <class E>
INLINE int64_t depth(int64_t k) { return padded(k, kAlign<E>); }
template <class E>
INLINE int64_t panel_size(int64_t k) { return depth<E>(k) * kPanel; }
template <class E>
INLINE int64_t packed_size(int64_t k, int64_t n) { return panels(n) * panel_size<E>(k); }

// Sums of bytes are int32, which are kept where floats would be. They must not pass through a vector of floats on the
// way: the compiler then leaves each of them in memory, in every step.
template <class E>
struct SumOf {
  using type = Floats;
};
template <>
struct SumOf<uint8_t> {
  using type = Ints;
};

// C (MR rows x NP panels, float; int32 where bytes are multiplied) = or += A (MR x K, row stride lda) times NP packed
// panels.
template <class E, int MR, int NP>
static __attribute__((noinline)) void tile(const E* a, int64_t lda, const E* b, int64_t panel, int64_t count, float* c,
                                           int64_t ldc, bool accumulate) {
  using Sum = typename SumOf<E>::type;
  constexpr int kVectors = kPanel / kLanes;
  Sum sums[MR][NP * kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NP * kVectors; ++j) sums[i][j] = Sum{};
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
    } else if constexpr (sizeof(E) == 2) {
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
    } else {
#if defined(INFOPRUNE_INT8_DOT)
      __m512i columns[NP];
#pragma GCC unroll 8
      for (int j = 0; j < NP; ++j) columns[j] = _mm512_loadu_si512(b + j * panel + s * 4 * kPanel);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        int32_t four;
        __builtin_memcpy(&four, a + i * lda + 4 * s, 4);
        __m512i row = _mm512_set1_epi32(four);
#pragma GCC unroll 8
        for (int j = 0; j < NP; ++j) sums[i][j] = (Sum)_mm512_dpbusd_epi32((__m512i)sums[i][j], row, columns[j]);
      }
#endif
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NP * kVectors; ++j) {
      Sum* to = reinterpret_cast<Sum*>(c + i * ldc + j * kLanes);
      *to = accumulate ? *to + sums[i][j] : sums[i][j];
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

#if defined(INFOPRUNE_AMX)
#include "amx.inl"
#endif

// Values of K summed in one go. Float sums are cut: a chain of 1280 additions loses three times as much as five of 256.
// Tiles are cut so that two panels stay in the nearest cache while all rows are multiplied with them.
template <class E>
constexpr int64_t kChain = sizeof(E) == 4 ? 256 : kAlign<E> > kStep<E> ? 1024 / sizeof(E) : int64_t{1} << 30;

// C (rows x width panels) = or += A (rows x K, K filled up) times packed panels that lie `panel` elements apart.
template <class E>
static void product(int64_t rows, const E* a, int64_t lda, const E* b, int64_t panel, int64_t k, int64_t width,
                    float* c, int64_t ldc, bool accumulate) {
  // Five panels at once hold a head of 80; otherwise four, which leave the most rows. Tiles come in pairs.
  constexpr bool kTiles = kAlign<E> > kStep<E>;
  constexpr int64_t kMost = kTiles ? 2 : INFOPRUNE_PANELS, kUsual = kMost > 4 ? 4 : kMost;
  for (int64_t at = 0; at < width;) {
    const int64_t left = width - at, now = left == kMost ? left : smaller(left, kUsual);
    int64_t from = 0;
    do {  // once where K is 0, too: the sums are 0 then
      const int64_t some = smaller(kChain<E>, k - from);
      const E *rows_at = a + from, *panels_at = b + at * panel + from * kPanel;
      if constexpr (kTiles)
        tiled_product<E>(rows, rows_at, lda, panels_at, panel, some, now, c + at * kPanel, ldc, accumulate || from);
      else
        some_panels<E>(now, rows, rows_at, lda, panels_at, panel, depth<E>(some) / kStep<E>, c + at * kPanel, ldc,
                       accumulate || from);
      from += kChain<E>;
    } while (from < k);
    at += now;
  }
}

// weight (N x K) -> panels of 16 columns.
template <class E, class S>
static void pack_weight(const S* weight, int64_t row_stride, int64_t k, int64_t n, E* packed) {
  for (int64_t p = 0; p < panels(n); ++p) {
    for (int64_t s = 0; s < depth<E>(k) / kStep<E>; ++s) {
      for (int64_t j = 0; j < kPanel; ++j) {
        for (int64_t i = 0; i < kStep<E>; ++i) {
          int64_t column = p * kPanel + j, row = s * kStep<E> + i;
          bool inside = column < n && row < k;
          *packed++ = inside ? converted<E>(weight[column * row_stride + row]) : E{};
        }
      }
    }
  }
}

// Behind a quantised matrix lie its columns' scales, then what the rows' zero point adds to each column's sum.
INLINE int64_t quantised_size(int64_t k, int64_t n) {
  return packed_size<Quantised>(k, n) * static_cast<int64_t>(sizeof(Quantised)) + 2 * panels(n) * kPanel * 4;
}
INLINE const char* column_scales(const void* packed, int64_t k, int64_t n) {
  return static_cast<const char*>(packed) + packed_size<Quantised>(k, n) * static_cast<int64_t>(sizeof(Quantised));
}

static void pack_quantised_weight(const int8_t* weight, const float* scale, int64_t k, int64_t n, void* packed) {
  pack_weight(weight, k, k, n, static_cast<Quantised*>(packed));
  char* scales = const_cast<char*>(column_scales(packed, k, n));
  for (int64_t j = 0; j < panels(n) * kPanel; ++j) {
    int32_t total = 0;
    for (int64_t i = 0; j < n && i < k; ++i) total += weight[j * k + i];
    const float wide = j < n ? scale[j] : 0.0f;
    const int32_t offset = total * kZero;
    __builtin_memcpy(scales + j * 4, &wide, 4);
    __builtin_memcpy(scales + (panels(n) * kPanel + j) * 4, &offset, 4);
  }
}

// Sums of quantised factors -> the product's values, in place; scale and offset from the first column on.
INLINE void dequantise(float* sums, int64_t width, float row_scale, const float* scale, const float* offset) {
  for (int64_t i = 0; i < width; i += kLanes) {
    Floats total = load(sums + i);
#if defined(INFOPRUNE_INT8_DOT)
    total = __builtin_convertvector(reinterpret_cast<Ints>(total) - reinterpret_cast<Ints>(load(offset + i)), Floats);
#endif
    store(sums + i, total * (load(scale + i) * row_scale));
  }
}
