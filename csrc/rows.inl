// What happens to rows before and after a product: conversion, LayerNorm, quantisation, bias, rotation, activation,
// residual.

// Row of `count` values as factors of a product, filled with zeros up to `stride`.
template <class S, class E>
INLINE void copy_row(const S* from, int64_t count, int64_t stride, E* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    int64_t some = smaller(kLanes, count - i);
    store_some(to + i, load_some(from + i, some), some);
  }
  for (int64_t i = count; i < stride; ++i) to[i] = from_float<E>(0.0f);
}

template <class S, class E>
static void normalise_row(const S* x, const Norm& norm, int64_t stride, E* to) {
  const S *weight = static_cast<const S*>(norm.weight), *bias = static_cast<const S*>(norm.bias);
  int64_t whole = norm.width / kLanes * kLanes, rest = norm.width - whole;
  Floats total{};
  for (int64_t i = 0; i < whole; i += kLanes) total += load(x + i);
  if (rest) total += load_some(x + whole, rest);
  float mean = sum(total) / norm.width;
  Floats squares{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    Floats d = load(x + i) - mean;
    squares += d * d;
  }
  float variance = sum(squares);
  for (int64_t i = whole; i < norm.width; ++i) {
    float d = to_float(x[i]) - mean;
    variance += d * d;
  }
  float scale = 1.0f / __builtin_sqrtf(variance / norm.width + norm.eps);
  for (int64_t i = 0; i < norm.width; i += kLanes) {
    int64_t some = smaller(kLanes, norm.width - i);
    Floats y = (load_some(x + i, some) - mean) * scale;
    store_some(to + i, y * load_some(weight + i, some) + load_some(bias + i, some), some);
  }
  for (int64_t i = norm.width; i < stride; ++i) to[i] = from_float<E>(0.0f);
}

// Row of `count` values in 255 steps, symmetric about 0, filled up to `stride`; returns the length of a step. A row with
// NaN or infinity in it has a step of NaN, so that everything made from it is NaN.
template <class S>
static float quantise_row(const S* from, int64_t count, int64_t stride, Quantised* to) {
  Floats peaks{}, poison{};
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats x = load_some(from + i, smaller(kLanes, count - i));
    peaks = larger(magnitude(x), peaks);
    poison += x - x;
  }
  const float peak = maximum(peaks), bad = sum(poison);
  // A row so small that this overflows counts as zeros.
  float inverse = 127.0f / peak;
  if (bad != 0.0f || inverse > 3.4e38f) inverse = 0.0f;
  int64_t i = 0;
  if (inverse != 0.0f) {
    for (; i < count; i += kLanes) {
      Floats whole = (load_some(from + i, smaller(kLanes, count - i)) * inverse + kMagic) - kMagic;
      store_quantised(to + i, whole, smaller(kLanes, stride - i));
    }
  }
  for (; i < stride; ++i) to[i] = static_cast<Quantised>(kZero);
  return peak / 127.0f + bad;
}

// Lane by lane from the C library: exact, and slow only beside the products of a tower that uses the exact GELU.
INLINE Floats erf(Floats x) {
  Floats y;
  for (int i = 0; i < kLanes; ++i) y[i] = __builtin_erff(x[i]);
  return y;
}

INLINE Floats activate(Floats x, Activation kind) {
  switch (kind) {
    case Activation::quick_gelu: return x * sigmoid(x * 1.702f);
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
    case Activation::gelu_tanh: return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
    default: return x;
  }
}

// Sums of a product become factors of the next one: plus bias, through the activation.
template <class S, class E>
static void to_hidden(const float* sums, const S* bias, int64_t count, Activation kind, E* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    int64_t some = smaller(kLanes, count - i);
    Floats x = load_some(sums + i, some);
    if (bias) x += load_some(bias + i, some);
    store_some(to + i, activate(x, kind), some);
  }
}

// sums + bias + residual, as the result.
template <class S>
static void to_output(const float* sums, const S* bias, const S* residual, int64_t count, S* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    int64_t some = smaller(kLanes, count - i);
    Floats x = load_some(sums + i, some);
    if (bias) x += load_some(bias + i, some);
    store_some(out + i, x + load_some(residual + i, some), some);
  }
}

// One head's q, k or v of one row: plus bias, rotated by halves where cos and sin are given.
template <class S>
static void to_head(float* sums, const S* bias, const float* cos, const float* sin, int64_t head_dim, S* out) {
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    int64_t some = smaller(kLanes, head_dim - i);
    store_some(sums + i, load_some(sums + i, some) + load_some(bias + i, some), some);
  }
  if (!cos) return copy_row(sums, head_dim, head_dim, out);
  int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    int64_t some = smaller(kLanes, half - i);
    Floats first = load_some(sums + i, some), second = load_some(sums + half + i, some);
    Floats low = first * load_some(cos + i, some) - second * load_some(sin + i, some);
    Floats high = second * load_some(cos + half + i, some) + first * load_some(sin + half + i, some);
    store_some(out + i, low, some);
    store_some(out + half + i, high, some);
  }
}
