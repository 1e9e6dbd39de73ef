// How work is shared: cut into items, each done once by whichever thread is free. `Threads` is whose threads they are:
// it has count(), and each(n, work), which calls work(0) ... work(n - 1), n <= count(), on a thread each.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "workspace.h"

namespace infoprune {

// Bytes of one thread's working memory: neighbours never share a line, nor all their cache sets.
inline int64_t apart(int64_t bytes) { return padded(bytes, 4096) + 64; }

// Every item once, on `count` threads at most; each has `each` bytes of the memory to itself.
template <class Threads, class Work>
void run_items(const Threads& threads, int64_t count, int64_t items, char* memory, int64_t each, const Work& work) {
  std::atomic<int64_t> next{0};
  threads.each(std::min(count, items), [&](int64_t thread) {
    for (int64_t item = next++; item < items; item = next++) work(item, memory + thread * each);
  });
}

// `total` rows in items of at most `most`, as many for every thread.
template <class Threads, class Work>
void run_rows(const Threads& threads, int64_t total, int64_t most, int64_t bytes, const Work& work) {
  if (!total) return;
  const int64_t count = threads.count(), rounds = (total + most * count - 1) / (most * count);
  const int64_t wanted = std::min(rounds * count, total), rows = (total + wanted - 1) / wanted;
  const int64_t each = apart(bytes);
  const Workspace workspace(count * each);
  run_items(threads, count, (total + rows - 1) / rows, workspace.data(), each, [&](int64_t item, void* scratch) {
    work(item * rows, std::min(rows, total - item * rows), scratch);
  });
}

// One head of one sequence: where its packed keys begin.
struct PackedHead {
  int64_t start, length, head, offset;
};
// A block of its queries.
struct QueryBlock {
  const PackedHead* keys;
  int64_t row, rows;
};

// Attention within the sequences that `bounds` (sequences + 1 of them, rising from 0) mark.
template <class Threads>
void run_attention(const Threads& threads, const Kernels& use, Dtype dtype, const Attention& task,
                   const int64_t* bounds, int64_t sequences) {
  std::vector<PackedHead> heads;
  int64_t bytes = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = bounds[s + 1] - bounds[s];
    for (int64_t head = 0; length && head < task.heads; ++head) {
      heads.push_back({bounds[s], length, head, bytes});
      bytes += padded(use.packed_keys_bytes(dtype, length, task.head_dim), 64);
    }
  }
  std::vector<QueryBlock> blocks;
  for (const PackedHead& head : heads) {
    const int64_t wanted = (head.length + use.query_block - 1) / use.query_block;
    const int64_t rows = (head.length + wanted - 1) / wanted;
    for (int64_t row = 0; row < head.length; row += rows)
      blocks.push_back({&head, row, std::min(rows, head.length - row)});
  }
  // The longest sequences first, so that no thread is left alone with one at the end.
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const QueryBlock& a, const QueryBlock& b) { return a.keys->length > b.keys->length; });
  const int64_t each = apart(use.attention_scratch(dtype, task)), count = threads.count();
  const Workspace workspace(bytes + count * each);
  char* const packed = workspace.data();
  run_items(threads, count, static_cast<int64_t>(heads.size()), nullptr, 0, [&](int64_t item, void*) {
    const PackedHead& head = heads[static_cast<size_t>(item)];
    use.pack_keys(dtype, task, head.start, head.length, head.head, packed + head.offset);
  });
  run_items(threads, count, static_cast<int64_t>(blocks.size()), packed + bytes, each, [&](int64_t item, void* scratch) {
    const auto& [keys, row, rows] = blocks[static_cast<size_t>(item)];
    use.attention(dtype, task, keys->start, keys->length, keys->head, row, rows, packed + keys->offset, scratch);
  });
}

}  // namespace infoprune
