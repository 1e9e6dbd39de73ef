// The binding: checks tensors, and has the work done on torch's own threads.
//
// Only PyTorch's stable ABI is used, as of the oldest version that must load the library: it serves every later one.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "items.h"
#include "kernels.h"
#include "workspace.h"

namespace infoprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::empty;
using torch::stable::get_num_threads;
using torch::stable::parallel_for;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// The sentence of an error, put together only if there is one. (STD_TORCH_CHECK would begin it with a file's name.)
template <class... Parts>
void require(bool fulfilled, const Parts&... parts) {
  if (fulfilled) return;
  std::ostringstream sentence;
  sentence << "";
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

struct Shape {
  Sizes sizes;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (size_t i = 0; i < shape.sizes.size(); ++i) out << (i ? ", " : "") << shape.sizes[i];
  return out << ']';
}

// Takes over a string argument. Operators take the handle because the ABI's own way to a std::string loses the memory
// of one with every call.
std::string text(StringHandle handle) {
  size_t length = 0;
  const char* characters = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
  std::string copy(characters, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return copy;
}

const Kernels& kernels(StringHandle isa) {
  const std::string name = text(isa);
  const Kernels* found[kMostKernels];
  const Kernels** end = found + available_kernels(found);
  const Kernels** use = std::find_if(found, end, [&](const Kernels* one) { return name == one->name; });
  require(use != end, "this machine has no instruction set '", name, "'");
  return **use;
}

// Best first, with commas between them.
std::string instruction_sets() {
  const Kernels* found[kMostKernels];
  const int count = available_kernels(found);
  std::string names = found[0]->name;
  for (int i = 1; i < count; ++i) names += std::string(",") + found[i]->name;
  return names;
}

// So many products of 255 and 127 still fit into an int32.
constexpr int64_t kMostQuantised = 65536;

Dtype dtype_of(const Tensor& x) {
  require(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
          "tensors must be float32 or bfloat16, not ", x.scalar_type());
  return x.scalar_type() == ScalarType::Float ? Dtype::f32 : Dtype::bf16;
}

// A dense tensor of these sizes in the activations' dtype; its data.
void* data(const char* name, const Tensor& x, Sizes sizes, ScalarType dtype) {
  require(x.is_cpu() && x.scalar_type() == dtype && x.sizes().equals(sizes) && x.is_contiguous(), name,
          " must be a contiguous ", dtype, " tensor of shape ", Shape{sizes}, " on the CPU, not ",
          x.is_contiguous() ? "" : "a strided ", x.scalar_type(), " of shape ", Shape{x.sizes()});
  return x.mutable_data_ptr();
}

void* optional_data(const char* name, const std::optional<Tensor>& x, Sizes sizes, ScalarType dtype) {
  return x.has_value() ? data(name, *x, sizes, dtype) : nullptr;
}

// torch's own.
struct TorchThreads {
  int64_t count() const { return get_num_threads(); }
  template <class Work>
  void each(int64_t n, const Work& work) const {
    parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) work(thread);
    });
  }
};

// weight (parts * n x k) -> one packed matrix per part, as bytes.
Tensor pack(const Tensor& weight, int64_t parts, StringHandle isa) {
  const Kernels& use = kernels(isa);
  const Dtype dtype = dtype_of(weight);
  require(weight.dim() == 2 && parts > 0 && weight.size(0) % parts == 0,
          "weight must be a matrix whose rows divide into ", parts, " parts");
  const int64_t n = weight.size(0) / parts, k = weight.size(1), bytes = use.packed_bytes(dtype, k, n);
  const char* from = static_cast<const char*>(data("weight", weight, weight.sizes(), weight.scalar_type()));
  Tensor packed = empty({parts * bytes}, ScalarType::Byte);
  char* to = static_cast<char*>(packed.data_ptr());
  for (int64_t part = 0; part < parts; ++part)
    use.pack(dtype, from + part * n * k * weight.element_size(), k, n, to + part * bytes);
  return packed;
}

// weight (parts * n x k, int8) with a scale for each of its rows -> one packed matrix per part, as bytes.
Tensor pack_int8(const Tensor& weight, const Tensor& scale, int64_t parts, StringHandle isa) {
  const Kernels& use = kernels(isa);
  require(weight.dim() == 2 && parts > 0 && weight.size(0) % parts == 0,
          "weight must be a matrix whose rows divide into ", parts, " parts");
  const int64_t n = weight.size(0) / parts, k = weight.size(1);
  require(k <= kMostQuantised, "an int8 weight may have ", kMostQuantised, " columns at most, not ", k);
  const int64_t bytes = use.quantised_bytes(k, n);
  const auto* from = static_cast<const int8_t*>(data("weight", weight, weight.sizes(), ScalarType::Char));
  const auto* scales = static_cast<const float*>(data("scale", scale, {parts * n}, ScalarType::Float));
  Tensor packed = empty({parts * bytes}, ScalarType::Byte);
  char* to = static_cast<char*>(packed.data_ptr());
  for (int64_t part = 0; part < parts; ++part)
    use.pack_quantised(from + part * n * k, scales + part * n, k, n, to + part * bytes);
  return packed;
}

// `parts` packed matrices of k x n.
const void* packed_data(const char* name, const Tensor& packed, const Kernels& use, Dtype dtype, bool int8, int64_t k,
                        int64_t n, int64_t parts = 1) {
  const int64_t bytes = int8 ? use.quantised_bytes(k, n) : use.packed_bytes(dtype, k, n);
  return data(name, packed, {parts * bytes}, ScalarType::Byte);
}

Norm norm_of(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const int64_t width = x.size(1);
  return {data("norm_weight", weight, {width}, x.scalar_type()), data("norm_bias", bias, {width}, x.scalar_type()),
          width, static_cast<float>(eps)};
}

void norm_qkv_rope(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                   const Tensor& packed, const Tensor& bias, const std::optional<Tensor>& cos,
                   const std::optional<Tensor>& sin, Tensor q, Tensor k, Tensor v, bool int8, StringHandle isa) {
  const Kernels& use = kernels(isa);
  const Dtype dtype = dtype_of(x);
  const auto kind = x.scalar_type();
  require(x.dim() == 2 && q.dim() == 3 && cos.has_value() == sin.has_value(),
          "x must have two dimensions and q three; cos and sin go together");
  const int64_t rows = x.size(0), heads = q.size(1), d = q.size(2);
  require(!cos.has_value() || d % 2 == 0, "rotary positions need an even head_dim, not ", d);
  NormQkvRope task{data("x", x, x.sizes(), kind),
                   norm_of(x, norm_weight, norm_bias, eps),
                   packed_data("packed", packed, use, dtype, int8, x.size(1), d, 3 * heads),
                   data("bias", bias, {3 * heads * d}, kind),
                   static_cast<const float*>(optional_data("cos", cos, {rows, d}, ScalarType::Float)),
                   static_cast<const float*>(optional_data("sin", sin, {rows, d}, ScalarType::Float)),
                   data("q", q, {rows, heads, d}, kind),
                   data("k", k, {rows, heads, d}, kind),
                   data("v", v, {rows, heads, d}, kind),
                   heads,
                   d,
                   int8};
  run_rows(TorchThreads(), rows, use.row_block, use.norm_qkv_rope_scratch(dtype, task),
           [&](int64_t row, int64_t count, void* scratch) { use.norm_qkv_rope(dtype, task, row, count, scratch); });
}

void attention(Tensor q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, double scale, StringHandle isa) {
  const Kernels& use = kernels(isa);
  const Dtype dtype = dtype_of(q);
  const auto kind = q.scalar_type();
  require(q.dim() == 3 && cu_seqlens.dim() == 1, "q must have three dimensions, cu_seqlens one");
  require(scale > 0, "scale must be positive, not ", scale);  // the softmax's maximum relies on it
  const int64_t heads = q.size(1), d = q.size(2), sequences = cu_seqlens.size(0) - 1;
  Attention task{data("q", q, q.sizes(), kind), data("k", k, q.sizes(), kind), data("v", v, q.sizes(), kind),
                 data("q", q, q.sizes(), kind), heads, d, static_cast<float>(scale)};
  const auto* bounds = static_cast<const int64_t*>(data("cu_seqlens", cu_seqlens, {sequences + 1}, ScalarType::Long));
  require(sequences >= 0 && bounds[0] == 0 && bounds[sequences] == q.size(0),
          "cu_seqlens must go from 0 to the number of rows");
  require(std::is_sorted(bounds, bounds + sequences + 1), "cu_seqlens must not fall");
  run_attention(TorchThreads(), use, dtype, task, bounds, sequences);
}

void linear_residual(const Tensor& x, const Tensor& packed, const Tensor& bias, Tensor residual, bool int8,
                     StringHandle isa) {
  const Kernels& use = kernels(isa);
  const Dtype dtype = dtype_of(x);
  const auto kind = x.scalar_type();
  require(x.dim() == 2 && residual.dim() == 2, "x and residual must have two dimensions");
  const int64_t rows = x.size(0), k = x.size(1), n = residual.size(1);
  void* out = data("residual", residual, {rows, n}, kind);
  LinearResidual task{data("x", x, x.sizes(), kind),
                      {packed_data("packed", packed, use, dtype, int8, k, n), data("bias", bias, {n}, kind), k, n},
                      out,
                      out,
                      int8};
  run_rows(TorchThreads(), rows, use.row_block, use.linear_residual_scratch(dtype, task),
           [&](int64_t row, int64_t count, void* scratch) { use.linear_residual(dtype, task, row, count, scratch); });
}

Activation activation_of(const std::string& name) {
  if (name == "quick_gelu") return Activation::quick_gelu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  if (name == "silu_gated") return Activation::silu_gated;
  require(name == "none", "unknown activation '", name, "'");
  return Activation::none;
}

void linear_activation(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                       StringHandle activation, Tensor out, StringHandle isa) {
  const std::string after = text(activation);
  const Kernels& use = kernels(isa);
  const Dtype dtype = dtype_of(x);
  const auto kind = x.scalar_type();
  require(x.dim() == 2 && out.dim() == 2, "x and out must have two dimensions");
  require(after != "silu_gated", "a layer alone has no gate");
  const int64_t rows = x.size(0), k = x.size(1), n = out.size(1);
  LinearActivation task{data("x", x, x.sizes(), kind),
                        {packed_data("packed", packed, use, dtype, false, k, n), optional_data("bias", bias, {n}, kind),
                         k, n},
                        activation_of(after),
                        data("out", out, {rows, n}, kind)};
  run_rows(TorchThreads(), rows, use.wide_block, use.linear_activation_scratch(dtype, task),
           [&](int64_t row, int64_t count, void* scratch) { use.linear_activation(dtype, task, row, count, scratch); });
}

void ffn(Tensor x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, const Tensor& first,
         const std::optional<Tensor>& first_bias, int64_t hidden, const std::optional<Tensor>& second,
         const std::optional<Tensor>& second_bias, StringHandle activation, int64_t linear, bool int8,
         StringHandle isa) {
  const std::string between = text(activation);
  const Kernels& use = kernels(isa);
  const Dtype dtype = dtype_of(x);
  const auto kind = x.scalar_type();
  // No width can exceed the bytes it takes, so that no size computed from it overflows.
  require(x.dim() == 2 && hidden > 0 && hidden <= first.numel(),
          "x must have two dimensions, and `first` must be as wide as `hidden` says");
  const int64_t d = x.size(1);
  require(second.has_value() || hidden == d, "a single matrix must keep the width");
  const Activation kind_between = activation_of(between);
  const bool gated = kind_between == Activation::silu_gated;
  require(linear >= 0 && linear <= hidden, "`linear` must lie between 0 and `hidden`");
  require(!gated || (second.has_value() && !linear), "a gated FFN has two matrices and no linear hidden values");
  const int64_t wide = gated ? 2 * padded(hidden, kPanel) : hidden;
  Ffn task{data("x", x, x.sizes(), kind),
           norm_of(x, norm_weight, norm_bias, eps),
           {packed_data("first", first, use, dtype, int8, d, wide),
            optional_data("first_bias", first_bias, {wide}, kind), d, wide},
           {second.has_value() ? packed_data("second", *second, use, dtype, int8, hidden, d) : nullptr,
            optional_data("second_bias", second_bias, {d}, kind), hidden, d},
           kind_between,
           linear,
           data("x", x, x.sizes(), kind),
           int8};
  run_rows(TorchThreads(), x.size(0), use.row_block, use.ffn_scratch(dtype, task),
           [&](int64_t row, int64_t count, void* scratch) { use.ffn(dtype, task, row, count, scratch); });
}

}  // namespace

// What has an underscore writes into what it is given: attention leaves its result in q, linear_activation in `out`, the
// others in the residual stream.
// int8: the packed weights came from pack_int8. linear: of the hidden values, the last so many have no activation.
// Of a gated FFN the rows that `first` was packed from, and its bias, are 16 of the gate and 16 of what it multiplies in
// turn, filled up with zeros; `hidden` counts neither these nor the gates.
STABLE_TORCH_LIBRARY(infoprune_cpu, m) {
  m.def("instruction_sets() -> str");
  m.def("workspace_bytes() -> int");
  m.def("release_workspace() -> ()");
  m.def("pack(Tensor weight, int parts, str isa) -> Tensor");
  m.def("pack_int8(Tensor weight, Tensor scale, int parts, str isa) -> Tensor");
  m.def(
      "norm_qkv_rope_(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor packed, Tensor bias, "
      "Tensor? cos, Tensor? sin, Tensor(a!) q, Tensor(b!) k, Tensor(c!) v, bool int8, str isa) -> ()");
  m.def("attention_(Tensor(a!) q, Tensor k, Tensor v, Tensor cu_seqlens, float scale, str isa) -> ()");
  m.def("linear_residual_(Tensor x, Tensor packed, Tensor bias, Tensor(a!) residual, bool int8, str isa) -> ()");
  m.def(
      "linear_activation_(Tensor x, Tensor packed, Tensor? bias, str activation, Tensor(a!) out, str isa) -> ()");
  m.def(
      "ffn_(Tensor(a!) x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor first, Tensor? first_bias, "
      "int hidden, Tensor? second, Tensor? second_bias, str activation, int linear, bool int8, str isa) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(infoprune_cpu, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(instruction_sets));
  m.impl("workspace_bytes", TORCH_BOX(Workspace::spare_bytes));
  m.impl("release_workspace", TORCH_BOX(Workspace::release));
}

STABLE_TORCH_LIBRARY_IMPL(infoprune_cpu, CPU, m) {
  m.impl("pack", TORCH_BOX(pack));
  m.impl("pack_int8", TORCH_BOX(pack_int8));
  m.impl("norm_qkv_rope_", TORCH_BOX(norm_qkv_rope));
  m.impl("attention_", TORCH_BOX(attention));
  m.impl("linear_residual_", TORCH_BOX(linear_residual));
  m.impl("linear_activation_", TORCH_BOX(linear_activation));
  m.impl("ffn_", TORCH_BOX(ffn));
}

}  // namespace infoprune
