// Vectors of the instruction set that includes this file: INFOPRUNE_LANES floats. GNU vector extensions let one source
// serve every set; only the dot products of bfloat16 and of bytes, and tiles, need intrinsics.

typedef float Floats __attribute__((vector_size(4 * INFOPRUNE_LANES), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * INFOPRUNE_LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * INFOPRUNE_LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * INFOPRUNE_LANES), aligned(2)));
typedef uint8_t Bytes __attribute__((vector_size(INFOPRUNE_LANES), aligned(1)));

constexpr int64_t kLanes = INFOPRUNE_LANES;

struct bfloat16 {
  uint16_t bits;
};

#define INLINE static inline __attribute__((always_inline))

INLINE Floats splat(float value) { return value - Floats{}; }
INLINE Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
INLINE void store(float* to, Floats value) { *reinterpret_cast<Floats*>(to) = value; }
INLINE Floats load(const bfloat16* from) {
  Words words = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words);
  return reinterpret_cast<Floats>(words << 16);
}

// Round to nearest even; NaN stays NaN.
INLINE void store(bfloat16* to, Floats value) {
#if defined(INFOPRUNE_BF16_DOT)
  __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
  __builtin_memcpy(to, &halves, sizeof(halves));
#else
  Words bits = reinterpret_cast<Words>(value);
  Words nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words quiet = (bits >> 16) | 0x40;
  Words ordered = reinterpret_cast<Words>(value == value);
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector((nearest & ordered) | (quiet & ~ordered), Halves);
#endif
}

INLINE float to_float(float value) { return value; }
INLINE float to_float(bfloat16 value) {
  uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
}

INLINE bfloat16 rounded(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <class To>
INLINE To from_float(float value) {
  if constexpr (sizeof(To) == 4) return value;
  else return rounded(value);
}
// A weight as a factor: bytes stay what they are.
template <class To, class From>
INLINE To converted(From value) {
  if constexpr (sizeof(To) == 1) return static_cast<To>(value);
  else if constexpr (sizeof(From) == 1) return static_cast<To>(value);
  else return from_float<To>(to_float(value));
}

// The first `count` (at most kLanes) values, zero beyond.
#if INFOPRUNE_LANES == 16
INLINE __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
INLINE Floats load_some(const float* from, int64_t count) {
  return count == kLanes ? load(from) : (Floats)_mm512_maskz_loadu_ps(first(count), from);
}
INLINE Floats load_some(const bfloat16* from, int64_t count) {
  if (count == kLanes) return load(from);
  __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), from));
  return (Floats)_mm512_slli_epi32(words, 16);
}
INLINE void store_some(float* to, Floats value, int64_t count) {
  if (count == kLanes) return store(to, value);
  _mm512_mask_storeu_ps(to, first(count), (__m512)value);
}
INLINE void store_some(bfloat16* to, Floats value, int64_t count) {
  if (count == kLanes) return store(to, value);
  Halves halves;
  store(reinterpret_cast<bfloat16*>(&halves), value);
  _mm256_mask_storeu_epi16(to, first(count), (__m256i)halves);
}
#else
template <class T>
INLINE Floats load_some(const T* from, int64_t count) {
  if (count == kLanes) return load(from);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(from[i]);
  return load(lanes);
}
template <class T>
INLINE void store_some(T* to, Floats value, int64_t count) {
  if (count == kLanes) return store(to, value);
  T lanes[kLanes];
  store(lanes, value);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}
#endif

INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats magnitude(Floats a) {
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(a) & 0x7fffffff);
}
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Every lane's partner `apart` lanes away.
INLINE Floats partners(Floats v, int apart) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i ^ apart;
  return __builtin_shuffle(v, lane);
}
INLINE float sum(Floats v) {
#pragma GCC unroll 4
  for (int apart = kLanes / 2; apart; apart /= 2) v += partners(v, apart);
  return v[0];
}
INLINE float maximum(Floats v) {
#pragma GCC unroll 4
  for (int apart = kLanes / 2; apart; apart /= 2) v = larger(v, partners(v, apart));
  return v[0];
}

constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, halves to the even one

// 2^f on [-1/2, 1/2] by the polynomial with the least relative error: 2e-9, or 7e-5 where the result becomes a bfloat16
// (whose rounding costs 2e-3).
template <class To>
INLINE Floats exp2_of_fraction(Floats f) {
  if constexpr (sizeof(To) == 2) {
    Floats p = splat(5.517166802e-2f);
    p = p * f + 2.426111221e-1f;
    p = p * f + 6.932609857e-1f;
    return p * f + 9.999280735e-1f;
  } else {
    Floats p = splat(1.534581191e-4f);
    p = p * f + 1.339993122e-3f;
    p = p * f + 9.618488957e-3f;
    p = p * f + 5.550328777e-2f;
    p = p * f + 2.402264689e-1f;
    p = p * f + 6.931472057e-1f;
    return p * f + 1.0f;
  }
}

// 2^x for x <= 127; To is what the result will be kept as. NaN stays NaN. Below -126 it is as good as nothing beside a
// softmax's 1: 2^-126, or where the machine scales by powers of two what is right.
template <class To>
INLINE Floats exp2(Floats x) {
#if INFOPRUNE_LANES == 16
  Floats f = (Floats)_mm512_reduce_ps((__m512)x, 0);
  return (Floats)_mm512_scalef_ps((__m512)exp2_of_fraction<To>(f), (__m512)(x - f));
#else
  x = x < -126.0f ? splat(-126.0f) : x;
  Floats whole = (x + kMagic) - kMagic;
  Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return exp2_of_fraction<To>(x - whole) * reinterpret_cast<Floats>(power);
#endif
}

// 1 / (1 + e^-x).
INLINE Floats sigmoid(Floats x) {
  const Floats y = x * -1.4426950408889634f;
  const Floats s = 1.0f / (1.0f + exp2<float>(y > 126.0f ? splat(126.0f) : y));
  return y > 126.0f ? splat(0.0f) : s;  // times -infinity that is NaN, as it is for PyTorch
}
