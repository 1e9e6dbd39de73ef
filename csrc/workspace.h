// Working memory that is kept between calls, so that a tower in use allocates nothing.
#pragma once

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
    const std::unique_lock<std::mutex> lock(pool().mutex, std::try_to_lock);
    if (lock && !pool().spare.empty()) {
      block_ = std::move(pool().spare.back());
      pool().spare.pop_back();
    }
    if (block_.bytes < bytes) block_ = Block(bytes);
  }
  ~Workspace() {
    // Where another thread has the pool just now (or had it when this process was forked), the memory is let go.
    const std::unique_lock<std::mutex> lock(pool().mutex, std::try_to_lock);
    if (lock) pool().spare.push_back(std::move(block_));
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
    const std::lock_guard<std::mutex> lock(pool().mutex);
    pool().spare.clear();
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
  static Pool& pool() {
    static Pool* const one = new Pool;  // never destroyed: threads may still be at work when the process ends
    return *one;
  }
  Block block_;
};

}  // namespace infoprune
