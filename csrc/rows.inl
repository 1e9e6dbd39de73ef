// What happens to rows before and after a product: conversion, LayerNorm, quantisation, bias, rotation, activation,
// residual.

// A row vector by vector: work(i, some) with some = kLanes, and once more for what is left. With the width known, loads
// and stores of whole vectors ask nothing.
template <class Work>
INLINE void by_vectors(int64_t count, const Work& work) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) work(i, kLanes);
  if (i < count) work(i, count - i);
}
#define EACH_VECTOR [&](int64_t i, int64_t some) __attribute__((always_inline))

// Row of `count` values as factors of a product, filled with zeros up to `stride`.
template <class S, class E>
INLINE void copy_row(const S* from, int64_t count, int64_t stride, E* to) {
  by_vectors(count, EACH_VECTOR { store_some(to + i, load_some(from + i, some), some); });
  for (int64_t i = count; i < stride; ++i) to[i] = from_float<E>(0.0f);
}

// Sum of term(x) over a row, in four sums at a time: one would wait for itself.
template <class S, class Term>
INLINE float sum_of(const S* x, int64_t count, const Term& term) {
  Floats sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) sums[j] += term(load(x + i + j * kLanes));
  for (; i + kLanes <= count; i += kLanes) sums[0] += term(load(x + i));
  float rest = 0;
  for (; i < count; ++i) rest += term(splat(to_float(x[i])))[0];
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

template <class S, class E>
static void normalise_row(const S* x, const Norm& norm, int64_t stride, E* to) {
  const S *weight = static_cast<const S*>(norm.weight), *bias = static_cast<const S*>(norm.bias);
  const float mean = sum_of(x, norm.width, [](Floats v) { return v; }) / norm.width;
  const float variance = sum_of(x, norm.width, [&](Floats v) { return (v - mean) * (v - mean); }) / norm.width;
  const float scale = 1.0f / __builtin_sqrtf(variance + norm.eps);
  by_vectors(norm.width, EACH_VECTOR {
    Floats y = (load_some(x + i, some) - mean) * scale;
    store_some(to + i, y * load_some(weight + i, some) + load_some(bias + i, some), some);
  });
  for (int64_t i = norm.width; i < stride; ++i) to[i] = from_float<E>(0.0f);
}

// Row of `count` values in 255 steps, symmetric about 0, filled up to `stride`; returns the length of a step. A row with
// NaN or infinity in it has a step of NaN, so that everything made from it is NaN.
template <class S>
static float quantise_row(const S* from, int64_t count, int64_t stride, Quantised* to) {
  Floats peaks{}, poison{};
  by_vectors(count, EACH_VECTOR {
    Floats x = load_some(from + i, some);
    peaks = larger(magnitude(x), peaks);
    poison += x - x;
  });
  const float peak = maximum(peaks), bad = sum(poison);
  // A row so small that this overflows counts as zeros.
  float inverse = 127.0f / peak;
  if (bad != 0.0f || inverse > 3.4e38f) inverse = 0.0f;
  const int64_t real = inverse == 0.0f ? 0 : count;
  by_vectors(real, EACH_VECTOR {
    store_quantised(to + i, (load_some(from + i, some) * inverse + kMagic) - kMagic, some);
  });
  for (int64_t i = real; i < stride; ++i) to[i] = static_cast<Quantised>(kZero);
  return peak / 127.0f + bad;
}

// x times the normal distribution's integral up to x. What is beyond |x| is a polynomial in t = 1 / (1 + 0.39 z) times
// e^-z^2, z = |x| / sqrt 2: the form of Abramowitz and Stegun's 7.1.26 with six terms fitted anew, 8e-9 from exact.
INLINE Floats gelu(Floats x) {
  const Floats z = magnitude(x) * 0.70710678118654752f, t = 1.0f / (1.0f + 0.39f * z);
  Floats p = splat(-2.275371279e-1f);
  p = p * t + 8.866643811e-1f;
  p = p * t - 6.354002971e-1f;
  p = p * t + 6.495594136e-1f;
  p = p * t + 9.138840853e-2f;
  p = p * t + 2.353252200e-1f;
  const Floats beyond = 0.5f * p * t * exp2<float>(z * z * -1.4426950408889634f);
  return x * (x < 0.0f ? beyond : 1.0f - beyond);
}

INLINE Floats activate(Floats x, Activation kind) {
  switch (kind) {
    case Activation::quick_gelu: return x * sigmoid(x * 1.702f);
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
    default: return x;
  }
}

// Sums of a product become factors of the next one: plus bias, through the activation.
template <class S, class E>
static void to_hidden(const float* sums, const S* bias, int64_t count, Activation kind, E* to) {
  by_vectors(count, EACH_VECTOR {
    Floats x = load_some(sums + i, some);
    if (bias) x += load_some(bias + i, some);
    store_some(to + i, activate(x, kind), some);
  });
}

// The same where half of the sums are gates: a panel of them, then a panel of what they multiply.
template <class S, class E>
static void to_gated(const float* sums, const S* bias, int64_t count, E* to) {
  by_vectors(count, EACH_VECTOR {
    Floats gate = load_some(sums + i, some), other = load_some(sums + kPanel + i, some);
    if (bias) gate += load_some(bias + i, some), other += load_some(bias + kPanel + i, some);
    store_some(to + i, activate(gate, Activation::silu) * other, some);
  });
}

// sums + bias + residual, as the result.
template <class S>
static void to_output(const float* sums, const S* bias, const S* residual, int64_t count, S* out) {
  by_vectors(count, EACH_VECTOR {
    Floats x = load_some(sums + i, some);
    if (bias) x += load_some(bias + i, some);
    store_some(out + i, x + load_some(residual + i, some), some);
  });
}

// One head's q, k or v of one row: plus bias, rotated by halves where cos and sin are given.
template <class S>
static void to_head(const float* sums, const S* bias, const float* cos, const float* sin, int64_t head_dim, S* out) {
  const auto value = [&](int64_t i, int64_t some) __attribute__((always_inline)) {
    return load_some(sums + i, some) + load_some(bias + i, some);
  };
  if (!cos) return by_vectors(head_dim, EACH_VECTOR { store_some(out + i, value(i, some), some); });
  const int64_t half = head_dim / 2;
  by_vectors(half, EACH_VECTOR {
    Floats first = value(i, some), second = value(half + i, some);
    Floats low = first * load_some(cos + i, some) - second * load_some(sin + i, some);
    Floats high = second * load_some(cos + half + i, some) + first * load_some(sin + half + i, some);
    store_some(out + i, low, some);
    store_some(out + half + i, high, some);
  });
}
