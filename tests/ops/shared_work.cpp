// The kernels' work shared among plain threads, for the thread sanitizer: it knows these, and not torch's. Several
// callers at once, each with three threads of its own, on every instruction set of this machine; each must leave what
// one thread alone leaves. `make sanitize` compiles and runs it.
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "items.h"

using namespace infoprune;

struct PlainThreads {
  int64_t threads;
  int64_t count() const { return threads; }
  template <class Work>
  void each(int64_t n, const Work& work) const {
    std::vector<std::thread> running;
    for (int64_t thread = 0; thread < n; ++thread) running.emplace_back([&work, thread] { work(thread); });
    for (std::thread& one : running) one.join();
  }
};

// Values of small magnitude in either dtype: bfloat16 is the upper half of a float.
struct Values {
  std::vector<char> bytes;
  Values(Dtype dtype, int64_t count, unsigned seed) : bytes(static_cast<size_t>(count * (dtype == Dtype::f32 ? 4 : 2))) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> draw(-1, 1);
    const size_t size = dtype == Dtype::f32 ? 4 : 2;
    for (size_t at = 0; at < bytes.size(); at += size) {
      const float value = draw(random);
      std::memcpy(&bytes[at], reinterpret_cast<const char*>(&value) + 4 - size, size);
    }
  }
  void* data() { return bytes.data(); }
};

constexpr int64_t kWidth = 48, kHeads = 3, kHeadDim = 24, kHidden = 70, kInner = kHeads * kHeadDim;
constexpr int64_t kBounds[] = {0, 61, 62, 62, 200}, kRows = 200;

// One block of a tower and a layer behind it: all of the kernels, one after the other. Returns what they leave.
std::vector<char> block(const PlainThreads& threads, const Kernels& use, Dtype dtype, bool int8) {
  const auto packed = [&](int64_t k, int64_t n, int64_t parts, unsigned seed) {
    const int64_t bytes = int8 ? use.quantised_bytes(k, n) : use.packed_bytes(dtype, k, n);
    std::vector<char> all(static_cast<size_t>(parts * bytes));
    for (int64_t part = 0; part < parts; ++part) {
      Values weight(dtype, k * n, seed + static_cast<unsigned>(part));
      char* to = all.data() + part * bytes;
      const std::vector<float> scale(static_cast<size_t>(n), 0.001f);
      if (int8) use.pack_quantised(reinterpret_cast<int8_t*>(weight.data()), scale.data(), k, n, to);
      else use.pack(dtype, weight.data(), k, n, to);
    }
    return all;
  };
  Values x(dtype, kRows * kWidth, 1), norm_weight(dtype, kWidth, 2), norm_bias(dtype, kWidth, 3);
  Values bias(dtype, 3 * kInner, 4), q(dtype, kRows * kInner, 5), k = q, v = q;
  Values cos(Dtype::f32, kRows * kHeadDim, 6), sin(Dtype::f32, kRows * kHeadDim, 7);
  const Norm norm{norm_weight.data(), norm_bias.data(), kWidth, 1e-6f};
  const auto heads = packed(kWidth, kHeadDim, 3 * kHeads, 8), out = packed(kInner, kWidth, 1, 30);
  const auto first = packed(kWidth, kHidden, 1, 31), second = packed(kHidden, kWidth, 1, 32);

  const NormQkvRope qkv{x.data(), norm, heads.data(), bias.data(), static_cast<float*>(cos.data()),
                        static_cast<float*>(sin.data()), q.data(), k.data(), v.data(), kHeads, kHeadDim, int8};
  run_rows(threads, kRows, use.row_block, use.norm_qkv_rope_scratch(dtype, qkv),
           [&](int64_t row, int64_t rows, void* scratch) { use.norm_qkv_rope(dtype, qkv, row, rows, scratch); });
  const Attention attention{q.data(), k.data(), v.data(), q.data(), kHeads, kHeadDim, 0.2f};
  run_attention(threads, use, dtype, attention, kBounds, 4);
  const LinearResidual projection{q.data(), {out.data(), bias.data(), kInner, kWidth}, x.data(), x.data(), int8};
  run_rows(threads, kRows, use.row_block, use.linear_residual_scratch(dtype, projection),
           [&](int64_t row, int64_t rows, void* scratch) { use.linear_residual(dtype, projection, row, rows, scratch); });
  const Ffn ffn{x.data(), norm, {first.data(), bias.data(), kWidth, kHidden}, {second.data(), nullptr, kHidden, kWidth},
                Activation::quick_gelu, 0, x.data(), int8};
  run_rows(threads, kRows, use.row_block, use.ffn_scratch(dtype, ffn),
           [&](int64_t row, int64_t rows, void* scratch) { use.ffn(dtype, ffn, row, rows, scratch); });
  std::vector<char> after = x.bytes;
  if (int8) return after;  // the layers around the blocks are not quantised
  Values wide(dtype, kRows * kHidden, 33);
  const LinearActivation layer{x.data(), {first.data(), bias.data(), kWidth, kHidden}, Activation::gelu, wide.data()};
  run_rows(threads, kRows, use.wide_block, use.linear_activation_scratch(dtype, layer),
           [&](int64_t row, int64_t rows, void* scratch) { use.linear_activation(dtype, layer, row, rows, scratch); });
  after.insert(after.end(), wide.bytes.begin(), wide.bytes.end());
  return after;
}

int main() {
  const Kernels* found[kMostKernels];
  const int count = available_kernels(found);
  int wrong = 0;
  for (int i = 0; i < count; ++i) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      for (const bool int8 : {false, true}) {
        const auto alone = block({1}, *found[i], dtype, int8);
        std::vector<std::vector<char>> together(3);
        std::vector<std::thread> callers;
        for (auto& result : together)
          callers.emplace_back([&, i] { result = block({3}, *found[i], dtype, int8); });
        for (std::thread& caller : callers) caller.join();
        for (const auto& result : together) wrong += result != alone;
        std::printf("%s, %s%s: %s\n", found[i]->name, dtype == Dtype::f32 ? "float32" : "bfloat16",
                    int8 ? ", int8 weights" : "", wrong ? "results differ" : "ok");
      }
    }
  }
  Workspace::release();
  return wrong ? 1 : 0;
}
