// All kernels of one instruction set. The including file names it (INFOPRUNE_ISA), its vectors (INFOPRUNE_LANES) and
// the largest tile of accumulators its registers hold (INFOPRUNE_ROWS x INFOPRUNE_PANELS panels of 16).
//
// Everything is in an unnamed namespace, and no inline function of a library is used: code compiled for one set must
// never be merged with another's by the linker.
#if defined(INFOPRUNE_BF16_DOT)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace infoprune {
namespace {
namespace INFOPRUNE_ISA {

#include "vectors.inl"

#include "tiles.inl"

#include "rows.inl"

#include "attention.inl"

constexpr int64_t kChunk = 4;  // panels of sums held at a time: they stay in the nearest cache

template <class E>
INLINE int64_t factors_bytes(int64_t k) { return padded(kRowBlock * steps<E>(k) * kStep<E> * static_cast<int64_t>(sizeof(E)), 64); }

// -- norm, q, k and v, rotation

template <class S>
static int64_t qkv_scratch(const NormQkvRope& task) {
  return factors_bytes<Elem<S>>(task.norm.width) + kRowBlock * padded(task.head_dim, kPanel) * 4;
}

template <class S>
static void qkv(const NormQkvRope& task, int64_t row, int64_t rows, void* scratch) {
  using E = Elem<S>;
  const int64_t width = task.norm.width, stride = steps<E>(width) * kStep<E>, d = task.head_dim;
  const int64_t wide = padded(d, kPanel), inner = task.heads * d;
  E* factors = static_cast<E*>(scratch);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + factors_bytes<E>(width));
  const S* x = static_cast<const S*>(task.x) + row * width;
  for (int64_t i = 0; i < rows; ++i) normalise_row(x + i * width, task.norm, stride, factors + i * stride);
  for (int64_t p = 0; p < 3 * task.heads; ++p) {
    const E* matrix = static_cast<const E*>(task.packed) + p * packed_size<E>(width, d);
    product(rows, factors, stride, matrix, panel_size<E>(width), width, panels(d), sums, wide, false);
    int64_t which = p / task.heads, head = p % task.heads;
    S* out = static_cast<S*>(which == 0 ? task.q : which == 1 ? task.k : task.v) + row * inner + head * d;
    bool rotated = task.cos && which < 2;
    for (int64_t i = 0; i < rows; ++i) {
      int64_t angle = (row + i) * d;
      to_head(sums + i * wide, static_cast<const S*>(task.bias) + p * d, rotated ? task.cos + angle : nullptr,
              rotated ? task.sin + angle : nullptr, d, out + i * inner);
    }
  }
}

// -- a product, its bias and the residual

template <class S>
static void add_product(int64_t rows, const Elem<S>* factors, int64_t stride, const Linear& linear, const S* residual,
                        S* out, float* sums) {
  using E = Elem<S>;
  const int64_t size = panel_size<E>(linear.in);
  const S* bias = static_cast<const S*>(linear.bias);
  for (int64_t panel = 0; panel < panels(linear.out); panel += kChunk) {
    int64_t now = smaller(kChunk, panels(linear.out) - panel), column = panel * kPanel;
    product(rows, factors, stride, static_cast<const E*>(linear.packed) + panel * size, size, linear.in, now, sums,
            kChunk * kPanel, false);
    int64_t some = smaller(now * kPanel, linear.out - column);
    for (int64_t i = 0; i < rows; ++i) {
      int64_t at = i * linear.out + column;
      to_output(sums + i * kChunk * kPanel, bias ? bias + column : nullptr, residual + at, some, out + at);
    }
  }
}

template <class S>
static int64_t residual_scratch(const LinearResidual& task) {
  return factors_bytes<Elem<S>>(task.linear.in) + kRowBlock * kChunk * kPanel * 4;
}

template <class S>
static void residual(const LinearResidual& task, int64_t row, int64_t rows, void* scratch) {
  using E = Elem<S>;
  const int64_t k = task.linear.in, stride = steps<E>(k) * kStep<E>, at = row * task.linear.out;
  E* factors = static_cast<E*>(scratch);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + factors_bytes<E>(k));
  for (int64_t i = 0; i < rows; ++i)
    copy_row(static_cast<const S*>(task.x) + (row + i) * k, k, stride, factors + i * stride);
  add_product(rows, factors, stride, task.linear, static_cast<const S*>(task.residual) + at,
              static_cast<S*>(task.out) + at, sums);
}

// -- the FFN: norm, one or two products with what is between them kept in cache, bias, residual

template <class S>
static int64_t ffn_bytes(const Ffn& task) {
  int64_t hidden = task.second.packed ? factors_bytes<Elem<S>>(task.first.out) : 0;
  return factors_bytes<Elem<S>>(task.norm.width) + hidden + kRowBlock * kChunk * kPanel * 4;
}

template <class S>
static void ffn_rows(const Ffn& task, int64_t row, int64_t rows, void* scratch) {
  using E = Elem<S>;
  const int64_t d = task.norm.width, stride = steps<E>(d) * kStep<E>, at = row * d;
  char* memory = static_cast<char*>(scratch);
  E* factors = reinterpret_cast<E*>(memory);
  memory += factors_bytes<E>(d);
  const S* x = static_cast<const S*>(task.x) + at;
  S* out = static_cast<S*>(task.out) + at;
  for (int64_t i = 0; i < rows; ++i) normalise_row(x + i * d, task.norm, stride, factors + i * stride);
  if (!task.second.packed)
    return add_product(rows, factors, stride, task.first, x, out, reinterpret_cast<float*>(memory));
  const int64_t m = task.first.out, hidden_stride = steps<E>(m) * kStep<E>, size = panel_size<E>(d);
  E* hidden = reinterpret_cast<E*>(memory);
  float* sums = reinterpret_cast<float*>(memory + factors_bytes<E>(m));
  const S* bias = static_cast<const S*>(task.first.bias);
  for (int64_t panel = 0; panel < panels(m); panel += kChunk) {
    int64_t now = smaller(kChunk, panels(m) - panel), column = panel * kPanel;
    product(rows, factors, stride, static_cast<const E*>(task.first.packed) + panel * size, size, d, now, sums,
            kChunk * kPanel, false);
    int64_t some = smaller(now * kPanel, m - column);
    for (int64_t i = 0; i < rows; ++i)
      to_hidden(sums + i * kChunk * kPanel, bias ? bias + column : nullptr, some, task.activation,
                hidden + i * hidden_stride + column);
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = m; j < hidden_stride; ++j) hidden[i * hidden_stride + j] = from_float<E>(0.0f);
  add_product(rows, hidden, hidden_stride, task.second, x, out, sums);
}

// -- by dtype

#define BY_DTYPE(call_f32, call_bf16) return dtype == Dtype::bf16 ? (call_bf16) : (call_f32)

static int64_t packed_bytes(Dtype dtype, int64_t k, int64_t n) {
  BY_DTYPE(packed_size<Elem<float>>(k, n) * 4,
           packed_size<Elem<bfloat16>>(k, n) * static_cast<int64_t>(sizeof(Elem<bfloat16>)));
}
static void pack(Dtype dtype, const void* weight, int64_t k, int64_t n, void* packed) {
  BY_DTYPE(pack_weight(static_cast<const float*>(weight), k, k, n, static_cast<Elem<float>*>(packed)),
           pack_weight(static_cast<const bfloat16*>(weight), k, k, n, static_cast<Elem<bfloat16>*>(packed)));
}
static int64_t norm_qkv_rope_scratch(Dtype dtype, const NormQkvRope& task) {
  BY_DTYPE(qkv_scratch<float>(task), qkv_scratch<bfloat16>(task));
}
static void norm_qkv_rope(Dtype dtype, const NormQkvRope& task, int64_t row, int64_t rows, void* scratch) {
  BY_DTYPE(qkv<float>(task, row, rows, scratch), qkv<bfloat16>(task, row, rows, scratch));
}
static int64_t linear_residual_scratch(Dtype dtype, const LinearResidual& task) {
  BY_DTYPE(residual_scratch<float>(task), residual_scratch<bfloat16>(task));
}
static void linear_residual(Dtype dtype, const LinearResidual& task, int64_t row, int64_t rows, void* scratch) {
  BY_DTYPE(residual<float>(task, row, rows, scratch), residual<bfloat16>(task, row, rows, scratch));
}
static int64_t ffn_scratch(Dtype dtype, const Ffn& task) { BY_DTYPE(ffn_bytes<float>(task), ffn_bytes<bfloat16>(task)); }
static void ffn(Dtype dtype, const Ffn& task, int64_t row, int64_t rows, void* scratch) {
  BY_DTYPE(ffn_rows<float>(task, row, rows, scratch), ffn_rows<bfloat16>(task, row, rows, scratch));
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
  BY_DTYPE(attend<float>(task, start, n, head, row, rows, packed, scratch),
           attend<bfloat16>(task, start, n, head, row, rows, packed, scratch));
}

#undef BY_DTYPE

}  // namespace INFOPRUNE_ISA
}  // namespace

#define INFOPRUNE_JOIN_(a, b) a##b
#define INFOPRUNE_JOIN(a, b) INFOPRUNE_JOIN_(a, b)
#define INFOPRUNE_TEXT_(a) #a
#define INFOPRUNE_TEXT(a) INFOPRUNE_TEXT_(a)

extern const Kernels INFOPRUNE_JOIN(kernels_, INFOPRUNE_ISA) = {
    INFOPRUNE_TEXT(INFOPRUNE_ISA),
    INFOPRUNE_ISA::packed_bytes,
    INFOPRUNE_ISA::pack,
    INFOPRUNE_ISA::norm_qkv_rope_scratch,
    INFOPRUNE_ISA::norm_qkv_rope,
    INFOPRUNE_ISA::linear_residual_scratch,
    INFOPRUNE_ISA::linear_residual,
    INFOPRUNE_ISA::ffn_scratch,
    INFOPRUNE_ISA::ffn,
    INFOPRUNE_ISA::packed_keys_bytes,
    INFOPRUNE_ISA::pack_keys,
    INFOPRUNE_ISA::attention_scratch,
    INFOPRUNE_ISA::attention,
};

}  // namespace infoprune
