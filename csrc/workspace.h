// Working memory that is kept between calls, so that a tower in use allocates nothing.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace infoprune {

// One call's memory, given back when the call ends. There are never more of them than calls at one time, and each is as
// large as the largest call it served.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(pool().mutex);
      if (!pool().spare.empty()) {
        block_ = std::move(pool().spare.back());
        pool().spare.pop_back();
      }
    }
    if (block_.bytes < bytes) {
      block_ = Block();  // given back before the larger one is taken
      block_ = Block(bytes);
    }
  }
  ~Workspace() {
    const std::lock_guard<std::mutex> lock(pool().mutex);
    pool().spare.push_back(std::move(block_));
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  char* data() const { return block_.memory.get(); }

  // Bytes that no call uses at the moment.
  static int64_t spare_bytes() {
    const std::lock_guard<std::mutex> lock(pool().mutex);
    int64_t total = 0;
    for (const Block& block : pool().spare) total += block.bytes;
    return total;
  }
  static void release() {
    std::vector<Block> spare;
    const std::lock_guard<std::mutex> lock(pool().mutex);
    pool().spare.swap(spare);
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  struct Block {
    Block() = default;
    explicit Block(int64_t wanted) : bytes((wanted + 4095) / 4096 * 4096) {
      memory.reset(static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>(bytes))));
      if (!memory) throw std::bad_alloc();
    }
    std::unique_ptr<char, Free> memory;
    int64_t bytes = 0;
  };
  struct Pool {
    std::mutex mutex;
    std::vector<Block> spare;
  };
  // Never destroyed: threads may still be at work when the process ends. A forked child begins with one of its own: its
  // parent's may be locked by a thread that the child does not have.
  static std::atomic<Pool*>& current() {
    static std::atomic<Pool*> one{new Pool};
    static const int told = pthread_atfork(nullptr, nullptr, [] { current() = new Pool; });
    static_cast<void>(told);
    return one;
  }
  static Pool& pool() { return *current().load(); }
  Block block_;
};

}  // namespace infoprune
