// Attention within one sequence and head: scores of a block of queries against kKeyBlock keys at a time, softmax with
// a running maximum (so that no row of scores is ever held whole), and the weighted sum of values.

// Keys as the columns of one packed matrix (head_dim x n), values as the rows of another (n x head_dim).
template <class S>
INLINE int64_t value_rows(int64_t n) { return padded(n, kAlign<Elem<S>> > kPanel ? kAlign<Elem<S>> : kPanel); }

template <class S>
static int64_t packed_keys_size(int64_t n, int64_t head_dim) {
  return packed_size<Elem<S>>(head_dim, n) + packed_size<Elem<S>>(value_rows<S>(n), head_dim);
}

// 16 keys (rows of K, `count` of them real) -> one panel: step by step along the head, a step of every key in turn.
template <class S>
static void pack_key_panel(const S* k, int64_t stride, int64_t count, int64_t d, Elem<S>* to) {
  using E = Elem<S>;
  if (sizeof(E) == sizeof(S) && count == kPanel && d % kStep<E> == 0) {
    // A step is 4 bytes whether it is one float or two bfloat16.
    for (int64_t s = 0; s < d / kStep<E>; ++s)
      for (int64_t j = 0; j < kPanel; ++j)
        __builtin_memcpy(to + (s * kPanel + j) * kStep<E>, k + j * stride + s * kStep<E>, 4);
    for (int64_t i = d * kPanel; i < panel_size<E>(d); ++i) to[i] = E{};
    return;
  }
  pack_weight(k, stride, d, count, to);
}

// The rows of one step (one row, or a pair of them) -> 16 columns of one panel.
template <class S>
INLINE void pack_value_step(const S* v, int64_t stride, int64_t rows, int64_t columns, Elem<S>* to) {
  using E = Elem<S>;
  for (int64_t j = 0; j < kPanel; ++j)
    for (int64_t i = 0; i < kStep<E>; ++i)
      to[j * kStep<E> + i] = from_float<E>(i < rows && j < columns ? to_float(v[i * stride + j]) : 0.0f);
}

template <class S>
static void pack_keys_of(const Attention& task, int64_t start, int64_t n, int64_t head, void* packed) {
  using E = Elem<S>;
  const int64_t stride = task.heads * task.head_dim, d = task.head_dim, offset = start * stride + head * d;
  const S *k = static_cast<const S*>(task.k) + offset, *v = static_cast<const S*>(task.v) + offset;
  E* keys = static_cast<E*>(packed);
  for (int64_t p = 0; p < panels(n); ++p)
    pack_key_panel(k + p * kPanel * stride, stride, smaller(kPanel, n - p * kPanel), d, keys + p * panel_size<E>(d));
  E* values = keys + packed_size<E>(d, n);
  const int64_t rows = value_rows<S>(n), panel = panel_size<E>(rows);
  for (int64_t row = 0; row < rows; row += kStep<E>) {
    const int64_t real = smaller(kStep<E>, n - row);  // none or fewer in the rows that only fill up
    for (int64_t p = 0; p < panels(d); ++p) {
      const int64_t columns = smaller(kPanel, d - p * kPanel);
      const S* from = v + row * stride + p * kPanel;
      E* to = values + p * panel + row * kPanel;
      if (real == kStep<E> && columns == kPanel) {
        if constexpr (sizeof(E) == 2) {
          for (int64_t j = 0; j < kPanel; ++j) {
            to[2 * j] = from[j];
            to[2 * j + 1] = from[stride + j];
          }
        } else {
          copy_row(from, kPanel, kPanel, to);
        }
      } else {
        pack_value_step(from, stride, real, columns, to);
      }
    }
  }
}

// Offsets of a query block's working memory.
template <class E>
struct AttentionScratch {
  int64_t query_stride, out_stride, scores, sums, queries, weights, maxima, totals, bytes;

  explicit AttentionScratch(int64_t head_dim) {
    query_stride = depth<E>(head_dim);
    out_stride = padded(head_dim, kPanel);
    int64_t at = 0;
    auto place = [&at](int64_t size) {
      int64_t here = at;
      at += padded(size, 64);
      return here;
    };
    scores = place(kQueryBlock * kKeyBlock * 4);
    sums = place(kQueryBlock * out_stride * 4);
    queries = place(kQueryBlock * query_stride * static_cast<int64_t>(sizeof(E)));
    weights = place(kQueryBlock * kKeyBlock * static_cast<int64_t>(sizeof(E)));
    maxima = place(kQueryBlock * 4);
    totals = place(kQueryBlock * kLanes * 4);
    bytes = at;
  }
};

// Softmax weights of one row against `count` keys, beyond them zeros up to `width`; returns by how much what was summed
// before must be scaled down. `totals` are sums of weights, lane by lane.
template <class E>
INLINE float soften(const float* scores, int64_t count, int64_t width, float scale, float& most, float* totals, E* to) {
  int64_t whole = count / kLanes * kLanes;
  Floats peaks = splat(-__builtin_inff());
  for (int64_t i = 0; i < whole; i += kLanes) peaks = larger(load(scores + i), peaks);
  float peak = maximum(peaks);
  for (int64_t i = whole; i < count; ++i) peak = scores[i] > peak ? scores[i] : peak;
  peak = peak * scale > most ? peak * scale : most;
  // Where all scores so far are -inf, -inf - peak must not be NaN; what is summed now is scaled to 0 by the next peak.
  const float before = most;
  most = peak;
  if (peak == -__builtin_inff()) peak = 0;
  Floats sums{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    Floats weight = exp2<E>(load(scores + i) * scale - peak);
    sums += weight;
    store(to + i, weight);
  }
  if (whole < count) {
    Floats weight = exp2<E>(load_some(scores + whole, count - whole) * scale - peak);
    for (int64_t i = 0; i < kLanes; ++i) weight[i] = whole + i < count ? weight[i] : 0.0f;
    sums += weight;
    store_some(to + whole, weight, count - whole);
  }
  for (int64_t i = count; i < width; ++i) to[i] = from_float<E>(0.0f);
  float shrink = before == most ? 1.0f : before == -__builtin_inff() ? 0.0f : exp2<float>(splat(before - peak))[0];
  store(totals, load(totals) * shrink + sums);
  return shrink;
}

template <class S>
static void attend(const Attention& task, int64_t start, int64_t n, int64_t head, int64_t row, int64_t rows,
                   const void* packed, void* memory) {
  using E = Elem<S>;
  const int64_t d = task.head_dim, stride = task.heads * d;
  const AttentionScratch<E> at(d);
  char* base = static_cast<char*>(memory);
  float *scores = reinterpret_cast<float*>(base + at.scores), *sums = reinterpret_cast<float*>(base + at.sums);
  float *maxima = reinterpret_cast<float*>(base + at.maxima), *totals = reinterpret_cast<float*>(base + at.totals);
  E *queries = reinterpret_cast<E*>(base + at.queries), *weights = reinterpret_cast<E*>(base + at.weights);
  const E* keys = static_cast<const E*>(packed);
  const E* values = keys + packed_size<E>(d, n);
  const int64_t key_panel = panel_size<E>(d), value_panel = panel_size<E>(value_rows<S>(n));
  const float scale = task.scale * 1.4426950408889634f;
  const int64_t first = (start + row) * stride + head * d;
  for (int64_t i = 0; i < rows; ++i) {
    copy_row(static_cast<const S*>(task.q) + first + i * stride, d, at.query_stride, queries + i * at.query_stride);
    maxima[i] = -__builtin_inff();
    store(totals + i * kLanes, Floats{});
  }
  for (int64_t key = 0; key < n; key += kKeyBlock) {
    int64_t count = smaller(kKeyBlock, n - key), width = value_rows<S>(count);
    product(rows, queries, at.query_stride, keys + key / kPanel * key_panel, key_panel, d, panels(count), scores,
            kKeyBlock, false);
    for (int64_t i = 0; i < rows; ++i) {
      float shrink = soften(scores + i * kKeyBlock, count, width, scale, maxima[i], totals + i * kLanes,
                            weights + i * kKeyBlock);
      if (key && shrink != 1.0f)
        for (int64_t j = 0; j < at.out_stride; j += kLanes)
          store(sums + i * at.out_stride + j, load(sums + i * at.out_stride + j) * shrink);
    }
    product(rows, weights, kKeyBlock, values + key * kPanel, value_panel, width, at.out_stride / kPanel, sums,
            at.out_stride, key > 0);
  }
  S* out = static_cast<S*>(task.out) + first;
  for (int64_t i = 0; i < rows; ++i) {
    float total = sum(load(totals + i * kLanes));
    float part = maxima[i] == -__builtin_inff() ? __builtin_nanf("") : 1.0f / total;  // 0 / 0
    for (int64_t j = 0; j < d; j += kLanes) {
      int64_t some = smaller(kLanes, d - j);
      store_some(out + i * stride + j, load(sums + i * at.out_stride + j) * part, some);
    }
  }
}
