// What every instruction set offers, in plain C++: no framework header is included by a kernel.
//
// A kernel works on one item (some rows, or one query block); items.h shares items among threads. Matrices are row
// major. Weights come packed: columns in panels of 16, each panel K x 16 (or K/2 x 16 x 2 where pairs of bfloat16 are
// multiplied at once, K/4 x 16 x 4 for bytes), zero-filled at the edges.
#pragma once

#include <cstdint>

namespace infoprune {

constexpr int64_t kPanel = 16;       // columns of a packed panel
constexpr int64_t kKeyBlock = 256;   // keys whose scores are held at a time
constexpr int kMostKernels = 6;      // instruction sets there can be

enum class Dtype : int32_t { f32, bf16 };
enum class Activation : int32_t { none, quick_gelu, gelu, gelu_tanh, silu, silu_gated };

// Static: each instruction set has its own copies. Inline functions of one name would be merged by the linker, and code
// compiled for one set would run in another's place.
static constexpr int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
static constexpr int64_t padded(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A packed K x N matrix with its bias (N values in the activations' dtype, or null). Where it is quantised, its scales
// are packed with it, and the rows it is multiplied with are quantised as they come.
struct Linear {
  const void* packed;
  const void* bias;
  int64_t in, out;
};

// LayerNorm over rows of `width`; weight and bias in the activations' dtype.
struct Norm {
  const void* weight;
  const void* bias;
  int64_t width;
  float eps;
};

// x (T x d) -> q, k, v (each T x heads x head_dim). qkv holds 3 * heads matrices of head_dim columns each. cos and sin
// (T x head_dim, float32) or null.
struct NormQkvRope {
  const void* x;
  Norm norm;
  const void* packed;  // 3 * heads packed matrices, one after the other
  const void* bias;    // 3 * heads * head_dim
  const float* cos;
  const float* sin;
  void* q;
  void* k;
  void* v;
  int64_t heads, head_dim;
  bool quantised;
};

// residual + linear(x); out may be residual.
struct LinearResidual {
  const void* x;
  Linear linear;
  const void* residual;
  void* out;
  bool quantised;
};

// activation(linear(x)), for the layers before and after the blocks.
struct LinearActivation {
  const void* x;
  Linear linear;
  Activation activation;
  void* out;
};

// x + second(activation(first(norm(x)))); without a second matrix, x + first(norm(x)). out may be x.
//
// silu_gated: the first matrix has two columns for each of the second's rows, a panel of gates and the panel of what
// they multiply in turn, both filled up; and so is its bias.
struct Ffn {
  const void* x;
  Norm norm;
  Linear first, second;  // second.packed null: only the first
  Activation activation;
  int64_t linear;  // of the hidden values, the last so many have no activation
  void* out;
  bool quantised;  // both matrices
};

// q, k, v (each T x heads x head_dim) -> out, laid out alike; out may be q. One item: a block of queries of one head of
// one sequence, against its keys and values as `pack_keys` left them.
struct Attention {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  int64_t heads, head_dim;
  float scale;
};

struct Kernels {
  const char* name;
  int64_t row_block;    // most rows of one item of the row operators
  int64_t query_block;  // and of one attention item
  int64_t wide_block;   // and of linear_activation, whose weights are too large for any cache
  // Bytes of one packed K x N matrix.
  int64_t (*packed_bytes)(Dtype, int64_t k, int64_t n);
  // weight: N x K as torch keeps it.
  void (*pack)(Dtype, const void* weight, int64_t k, int64_t n, void* packed);
  // The same for int8 weights with a scale for each of the N columns.
  int64_t (*quantised_bytes)(int64_t k, int64_t n);
  void (*pack_quantised)(const int8_t* weight, const float* scale, int64_t k, int64_t n, void* packed);

  int64_t (*norm_qkv_rope_scratch)(Dtype, const NormQkvRope&);
  void (*norm_qkv_rope)(Dtype, const NormQkvRope&, int64_t row, int64_t rows, void* scratch);
  int64_t (*linear_residual_scratch)(Dtype, const LinearResidual&);
  void (*linear_residual)(Dtype, const LinearResidual&, int64_t row, int64_t rows, void* scratch);
  int64_t (*linear_activation_scratch)(Dtype, const LinearActivation&);
  void (*linear_activation)(Dtype, const LinearActivation&, int64_t row, int64_t rows, void* scratch);
  int64_t (*ffn_scratch)(Dtype, const Ffn&);
  void (*ffn)(Dtype, const Ffn&, int64_t row, int64_t rows, void* scratch);

  // Bytes of the packed keys and values of one head of a sequence of n rows.
  int64_t (*packed_keys_bytes)(Dtype, int64_t n, int64_t head_dim);
  void (*pack_keys)(Dtype, const Attention&, int64_t start, int64_t n, int64_t head, void* packed);
  int64_t (*attention_scratch)(Dtype, const Attention&);
  void (*attention)(Dtype, const Attention&, int64_t start, int64_t n, int64_t head, int64_t row, int64_t rows,
                    const void* packed, void* scratch);
};

// Those this machine can run, best first; returns how many.
int available_kernels(const Kernels* found[kMostKernels]);

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_vnni;
extern const Kernels kernels_avx512_bf16;
extern const Kernels kernels_amx;
#endif

}  // namespace infoprune
