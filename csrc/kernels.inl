// All kernels of one instruction set. The including file names it (INFOPRUNE_ISA), its vectors (INFOPRUNE_LANES) and
// the largest tile of accumulators its registers hold (INFOPRUNE_ROWS x INFOPRUNE_PANELS panels of 16), and which dot
// products it has (INFOPRUNE_BF16_DOT, INFOPRUNE_INT8_DOT, INFOPRUNE_AMX).
//
// Everything is in an unnamed namespace, and no inline function of a library is used: code compiled for one set must
// never be merged with another's by the linker.
#if INFOPRUNE_LANES == 16
#include <immintrin.h>
#endif

#include "kernels.h"

namespace infoprune {
namespace {
namespace INFOPRUNE_ISA {

#include "vectors.inl"

// Rows of an item: whole tiles of rows, and few enough for an item's factors to stay in the second cache.
#if defined(INFOPRUNE_AMX)
constexpr int64_t kRowBlock = 128, kQueryBlock = 64, kWideBlock = 256;
#else
constexpr int64_t kRowBlock = 66, kQueryBlock = 66, kWideBlock = 132;
#endif

#include "tiles.inl"

#include "rows.inl"

#include "attention.inl"

constexpr int64_t kChunk = 4;  // panels of sums held at a time: they stay in the nearest cache

// Working memory, laid out piece by piece; without memory, only its size is counted.
class Scratch {
 public:
  explicit Scratch(void* memory) : base_(reinterpret_cast<uintptr_t>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    const int64_t here = bytes;
    bytes += padded(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(base_ + here);
  }
  int64_t bytes = 0;

 private:
  uintptr_t base_;
};

// Rows as factors of a product; quantised ones with each row's step.
template <class S, bool Q>
struct Factors {
  using E = Factor<S, Q>;
  E* values;
  int64_t stride;
  float* row_steps;

  Factors(Scratch& scratch, int64_t k, int64_t rows = kRowBlock)
      : values(scratch.take<E>(rows * depth<E>(k))), stride(depth<E>(k)), row_steps(scratch.take<float>(Q ? rows : 0)) {}
  E* row(int64_t i) const { return values + i * stride; }

  template <class T>
  void set_row(int64_t i, const T* from, int64_t count) const {
    if constexpr (Q) row_steps[i] = quantise_row(from, count, stride, row(i));
    else copy_row(from, count, stride, row(i));
  }
};

// LayerNorm of some rows as factors; a quantised row is kept as floats until its largest value is known.
template <class S, bool Q>
static void normalise(const S* x, int64_t rows, const Norm& norm, const Factors<S, Q>& to, float* whole) {
  for (int64_t i = 0; i < rows; ++i) {
    if constexpr (Q) {
      normalise_row(x + i * norm.width, norm, norm.width, whole);
      to.set_row(i, whole, norm.width);
    } else {
      normalise_row(x + i * norm.width, norm, to.stride, to.row(i));
    }
  }
}

// Sums of rows times `count` panels of a packed k x n matrix, from panel `first` on.
template <class S, bool Q>
static void some_columns(int64_t rows, const Factors<S, Q>& factors, const void* packed, int64_t k, int64_t n,
                         int64_t first, int64_t count, float* sums, int64_t ldc) {
  using E = Factor<S, Q>;
  const int64_t size = panel_size<E>(k);
  product(rows, factors.values, factors.stride, static_cast<const E*>(packed) + first * size, size, k, count, sums, ldc,
          false);
  if constexpr (Q) {
    const float* scale = reinterpret_cast<const float*>(column_scales(packed, k, n)) + first * kPanel;
    for (int64_t i = 0; i < rows; ++i)
      dequantise(sums + i * ldc, count * kPanel, factors.row_steps[i], scale, scale + panels(n) * kPanel);
  }
}

template <class S, bool Q>
static int64_t matrix_bytes(int64_t k, int64_t n) {
  if constexpr (Q) return quantised_size(k, n);
  else return packed_size<Elem<S>>(k, n) * static_cast<int64_t>(sizeof(Elem<S>));
}

// -- norm, q, k and v, rotation

template <class S, bool Q>
struct QkvScratch {
  Scratch scratch;
  Factors<S, Q> factors;
  float *whole, *sums;

  QkvScratch(const NormQkvRope& task, void* memory)
      : scratch(memory), factors(scratch, task.norm.width), whole(scratch.take<float>(Q ? task.norm.width : 0)),
        sums(scratch.take<float>(kRowBlock * padded(task.head_dim, kPanel))) {}
};

template <class S, bool Q>
static void qkv(const NormQkvRope& task, int64_t row, int64_t rows, void* memory) {
  const QkvScratch<S, Q> at(task, memory);
  const int64_t width = task.norm.width, d = task.head_dim, wide = padded(d, kPanel), inner = task.heads * d;
  normalise(static_cast<const S*>(task.x) + row * width, rows, task.norm, at.factors, at.whole);
  for (int64_t p = 0; p < 3 * task.heads; ++p) {
    const char* matrix = static_cast<const char*>(task.packed) + p * matrix_bytes<S, Q>(width, d);
    some_columns(rows, at.factors, matrix, width, d, 0, panels(d), at.sums, wide);
    int64_t which = p / task.heads, head = p % task.heads;
    S* out = static_cast<S*>(which == 0 ? task.q : which == 1 ? task.k : task.v) + row * inner + head * d;
    bool rotated = task.cos && which < 2;
    for (int64_t i = 0; i < rows; ++i) {
      int64_t angle = (row + i) * d;
      to_head(at.sums + i * wide, static_cast<const S*>(task.bias) + p * d, rotated ? task.cos + angle : nullptr,
              rotated ? task.sin + angle : nullptr, d, out + i * inner);
    }
  }
}

// -- one product, with what is done to its sums while they are in the nearest cache

// Calls store(i, from, some, column): row i's next `some` sums, from `column` on, lie at `from`.
template <class S, bool Q, class Store>
INLINE void each_sum(int64_t rows, const Factors<S, Q>& factors, const Linear& linear, float* sums, const Store& store) {
  for (int64_t panel = 0; panel < panels(linear.out); panel += kChunk) {
    const int64_t now = smaller(kChunk, panels(linear.out) - panel), column = panel * kPanel;
    some_columns(rows, factors, linear.packed, linear.in, linear.out, panel, now, sums, kChunk * kPanel);
    const int64_t some = smaller(now * kPanel, linear.out - column);
    for (int64_t i = 0; i < rows; ++i) store(i, sums + i * kChunk * kPanel, some, column);
  }
}

// Through the activation, but for the last columns, which are `straight`, into rows that lie `stride` apart.
template <class S, bool Q, class E>
static void activate_product(int64_t rows, const Factors<S, Q>& factors, const Linear& linear, Activation kind,
                             int64_t straight, float* sums, E* out, int64_t stride) {
  const S* bias = static_cast<const S*>(linear.bias);
  const int64_t active = linear.out - straight;
  each_sum(rows, factors, linear, sums, [&](int64_t i, const float* from, int64_t some, int64_t column) {
    const S* shift = bias ? bias + column : nullptr;
    E* to = out + i * stride + column;
    const int64_t first = column < active ? smaller(some, active - column) : 0;
    if (first) to_hidden(from, shift, first, kind, to);
    if (first < some) to_hidden(from + first, shift ? shift + first : nullptr, some - first, Activation::none, to + first);
  });
}

// Each panel of gates times the one beside it, into rows of `hidden` values that lie `stride` apart.
template <class S, bool Q, class E>
static void gate_product(int64_t rows, const Factors<S, Q>& factors, const Linear& linear, int64_t hidden, float* sums,
                         E* out, int64_t stride) {
  static_assert(kChunk % 2 == 0);
  const S* bias = static_cast<const S*>(linear.bias);
  each_sum(rows, factors, linear, sums, [&](int64_t i, const float* from, int64_t some, int64_t column) {
    for (int64_t pair = 0; pair < some; pair += 2 * kPanel) {
      const int64_t at = column + pair, value = at / 2;
      to_gated(from + pair, bias ? bias + at : nullptr, smaller(kPanel, hidden - value), out + i * stride + value);
    }
  });
}

template <class S, bool Q>
static void add_product(int64_t rows, const Factors<S, Q>& factors, const Linear& linear, const S* residual, S* out,
                        float* sums) {
  const S* bias = static_cast<const S*>(linear.bias);
  each_sum(rows, factors, linear, sums, [&](int64_t i, const float* from, int64_t some, int64_t column) {
    const int64_t at = i * linear.out + column;
    to_output(from, bias ? bias + column : nullptr, residual + at, some, out + at);
  });
}

template <class S, bool Q>
struct LinearScratch {
  Scratch scratch;
  Factors<S, Q> factors;
  float* sums;

  LinearScratch(const LinearResidual& task, void* memory) : LinearScratch(task.linear, kRowBlock, memory) {}
  LinearScratch(const LinearActivation& task, void* memory) : LinearScratch(task.linear, kWideBlock, memory) {}
  LinearScratch(const Linear& linear, int64_t rows, void* memory)
      : scratch(memory), factors(scratch, linear.in, rows), sums(scratch.take<float>(rows * kChunk * kPanel)) {}
  void set(const void* x, int64_t row, int64_t rows, int64_t k) const {
    for (int64_t i = 0; i < rows; ++i) factors.set_row(i, static_cast<const S*>(x) + (row + i) * k, k);
  }
};

template <class S, bool Q>
static void residual(const LinearResidual& task, int64_t row, int64_t rows, void* memory) {
  const LinearScratch<S, Q> at(task, memory);
  const int64_t offset = row * task.linear.out;
  at.set(task.x, row, rows, task.linear.in);
  add_product(rows, at.factors, task.linear, static_cast<const S*>(task.residual) + offset,
              static_cast<S*>(task.out) + offset, at.sums);
}

template <class S>
static void activated(const LinearActivation& task, int64_t row, int64_t rows, void* memory) {
  const LinearScratch<S, false> at(task, memory);
  const int64_t n = task.linear.out;
  at.set(task.x, row, rows, task.linear.in);
  activate_product(rows, at.factors, task.linear, task.activation, 0, at.sums, static_cast<S*>(task.out) + row * n, n);
}

// -- the FFN: norm, one or two products with what is between them kept in cache, bias, residual

template <class S, bool Q>
struct FfnScratch {
  Scratch scratch;
  Factors<S, Q> factors, hidden;
  float *whole, *sums;
  S* activated;  // what is between the products before it is quantised; else it goes to `hidden` at once

  FfnScratch(const Ffn& task, void* memory)
      : scratch(memory), factors(scratch, task.norm.width), hidden(scratch, task.second.packed ? task.second.in : 0),
        whole(scratch.take<float>(Q ? task.norm.width : 0)), sums(scratch.take<float>(kRowBlock * kChunk * kPanel)),
        activated(scratch.take<S>(Q && task.second.packed ? kRowBlock * task.second.in : 0)) {}
};

// The first product through the activation or its gates.
template <class S, bool Q, class E>
static void first_product(const Ffn& task, int64_t rows, const FfnScratch<S, Q>& at, E* out, int64_t stride) {
  if (task.activation == Activation::silu_gated)
    return gate_product(rows, at.factors, task.first, task.second.in, at.sums, out, stride);
  activate_product(rows, at.factors, task.first, task.activation, task.linear, at.sums, out, stride);
}

// The same as factors of the second.
template <class S, bool Q>
static void make_hidden(const Ffn& task, int64_t rows, const FfnScratch<S, Q>& at) {
  const int64_t m = task.second.in;
  if constexpr (Q) {
    first_product(task, rows, at, at.activated, m);
    for (int64_t i = 0; i < rows; ++i) at.hidden.set_row(i, at.activated + i * m, m);
  } else {
    first_product(task, rows, at, at.hidden.values, at.hidden.stride);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = m; j < at.hidden.stride; ++j) at.hidden.row(i)[j] = from_float<Factor<S, Q>>(0.0f);
  }
}

template <class S, bool Q>
static void ffn_rows(const Ffn& task, int64_t row, int64_t rows, void* memory) {
  const FfnScratch<S, Q> at(task, memory);
  const int64_t offset = row * task.norm.width;
  const S* x = static_cast<const S*>(task.x) + offset;
  S* out = static_cast<S*>(task.out) + offset;
  normalise(x, rows, task.norm, at.factors, at.whole);
  if (!task.second.packed) return add_product(rows, at.factors, task.first, x, out, at.sums);
  make_hidden(task, rows, at);
  add_product(rows, at.hidden, task.second, x, out, at.sums);
}

// -- by dtype, and by whether the weights are quantised

// Tiles are set up for one item and given back after it.
struct TileUse {
#if defined(INFOPRUNE_AMX)
  TileUse() { tile_begin(); }
  ~TileUse() { tile_end(); }
#else
  TileUse() {}
#endif
};

#define BY_DTYPE(call_f32, call_bf16) return dtype == Dtype::bf16 ? (call_bf16) : (call_f32)
#define BY_KIND(name, ...)                                                                        \
  return dtype == Dtype::bf16 ? (task.quantised ? name<bfloat16, true>(task, __VA_ARGS__)         \
                                                : name<bfloat16, false>(task, __VA_ARGS__))       \
                              : (task.quantised ? name<float, true>(task, __VA_ARGS__)            \
                                                : name<float, false>(task, __VA_ARGS__))

template <class S, bool Q, template <class, bool> class Layout, class Task>
static int64_t scratch_of(const Task& task) { return Layout<S, Q>(task, nullptr).scratch.bytes; }

#define SCRATCH_BY_KIND(Layout)                                                                                   \
  return dtype == Dtype::bf16                                                                                     \
             ? (task.quantised ? scratch_of<bfloat16, true, Layout>(task) : scratch_of<bfloat16, false, Layout>(task)) \
             : (task.quantised ? scratch_of<float, true, Layout>(task) : scratch_of<float, false, Layout>(task))

static int64_t packed_bytes(Dtype dtype, int64_t k, int64_t n) {
  BY_DTYPE((matrix_bytes<float, false>(k, n)), (matrix_bytes<bfloat16, false>(k, n)));
}
static void pack(Dtype dtype, const void* weight, int64_t k, int64_t n, void* packed) {
  BY_DTYPE(pack_weight(static_cast<const float*>(weight), k, k, n, static_cast<Elem<float>*>(packed)),
           pack_weight(static_cast<const bfloat16*>(weight), k, k, n, static_cast<Elem<bfloat16>*>(packed)));
}
static int64_t norm_qkv_rope_scratch(Dtype dtype, const NormQkvRope& task) { SCRATCH_BY_KIND(QkvScratch); }
static void norm_qkv_rope(Dtype dtype, const NormQkvRope& task, int64_t row, int64_t rows, void* scratch) {
  const TileUse tiles;
  BY_KIND(qkv, row, rows, scratch);
}
static int64_t linear_residual_scratch(Dtype dtype, const LinearResidual& task) { SCRATCH_BY_KIND(LinearScratch); }
static void linear_residual(Dtype dtype, const LinearResidual& task, int64_t row, int64_t rows, void* scratch) {
  const TileUse tiles;
  BY_KIND(residual, row, rows, scratch);
}
static int64_t linear_activation_scratch(Dtype dtype, const LinearActivation& task) {
  BY_DTYPE((scratch_of<float, false, LinearScratch>(task)), (scratch_of<bfloat16, false, LinearScratch>(task)));
}
static void linear_activation(Dtype dtype, const LinearActivation& task, int64_t row, int64_t rows, void* scratch) {
  const TileUse tiles;
  BY_DTYPE(activated<float>(task, row, rows, scratch), activated<bfloat16>(task, row, rows, scratch));
}
static int64_t ffn_scratch(Dtype dtype, const Ffn& task) { SCRATCH_BY_KIND(FfnScratch); }
static void ffn(Dtype dtype, const Ffn& task, int64_t row, int64_t rows, void* scratch) {
  const TileUse tiles;
  BY_KIND(ffn_rows, row, rows, scratch);
}
static int64_t packed_keys_bytes(Dtype dtype, int64_t n, int64_t head_dim) {
  BY_DTYPE(packed_keys_size<float>(n, head_dim) * 4,
           packed_keys_size<bfloat16>(n, head_dim) * static_cast<int64_t>(sizeof(Elem<bfloat16>)));
}
static void pack_keys(Dtype dtype, const Attention& task, int64_t start, int64_t n, int64_t head, void* packed) {
  BY_DTYPE(pack_keys_of<float>(task, start, n, head, packed), pack_keys_of<bfloat16>(task, start, n, head, packed));
}
static int64_t attention_scratch(Dtype dtype, const Attention& task) {
  BY_DTYPE(AttentionScratch<Elem<float>>(task.head_dim).bytes, AttentionScratch<Elem<bfloat16>>(task.head_dim).bytes);
}
static void attention(Dtype dtype, const Attention& task, int64_t start, int64_t n, int64_t head, int64_t row,
                      int64_t rows, const void* packed, void* scratch) {
  const TileUse tiles;
  BY_DTYPE(attend<float>(task, start, n, head, row, rows, packed, scratch),
           attend<bfloat16>(task, start, n, head, row, rows, packed, scratch));
}

#undef BY_DTYPE
#undef BY_KIND
#undef SCRATCH_BY_KIND

}  // namespace INFOPRUNE_ISA
}  // namespace

#define INFOPRUNE_JOIN_(a, b) a##b
#define INFOPRUNE_JOIN(a, b) INFOPRUNE_JOIN_(a, b)
#define INFOPRUNE_TEXT_(a) #a
#define INFOPRUNE_TEXT(a) INFOPRUNE_TEXT_(a)

extern const Kernels INFOPRUNE_JOIN(kernels_, INFOPRUNE_ISA) = {
    INFOPRUNE_TEXT(INFOPRUNE_ISA),
    INFOPRUNE_ISA::kRowBlock,
    INFOPRUNE_ISA::kQueryBlock,
    INFOPRUNE_ISA::kWideBlock,
    INFOPRUNE_ISA::packed_bytes,
    INFOPRUNE_ISA::pack,
    INFOPRUNE_ISA::quantised_size,
    INFOPRUNE_ISA::pack_quantised_weight,
    INFOPRUNE_ISA::norm_qkv_rope_scratch,
    INFOPRUNE_ISA::norm_qkv_rope,
    INFOPRUNE_ISA::linear_residual_scratch,
    INFOPRUNE_ISA::linear_residual,
    INFOPRUNE_ISA::linear_activation_scratch,
    INFOPRUNE_ISA::linear_activation,
    INFOPRUNE_ISA::ffn_scratch,
    INFOPRUNE_ISA::ffn,
    INFOPRUNE_ISA::packed_keys_bytes,
    INFOPRUNE_ISA::pack_keys,
    INFOPRUNE_ISA::attention_scratch,
    INFOPRUNE_ISA::attention,
};

}  // namespace infoprune
