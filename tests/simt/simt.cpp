#include "tests/simt/simt.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

namespace context = boost::context;
using switchyard::require;

constexpr int kWarpSize = 32;
constexpr unsigned int kMaxThreads = 1024;
constexpr size_t kStackBytes = 96 * 1024;
// Shared memory begins as NaN, because no kernel may rely on zeros.
constexpr int kPoisonByte = 0xff;

// A meeting of the lanes of one mask. Two buffers suffice, because a lane can be at most one
// meeting ahead of another.
struct WarpMeeting {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  uint64_t generation = 0;
  alignas(16) std::byte slots[2][kWarpSize * kSlotBytes];
};

// An asynchronous copy of about 16 bytes that a thread has started and not yet waited for.
struct StartedCopy {
  void* shared;
  const void* global;  // null: zeros
  size_t num_bytes;
};

struct Thread {
  Index index;
  int lane = 0;
  int warp = 0;
  context::fiber fiber;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  bool ended = false;
  // Set while the thread waits; it goes on when *generation differs from `seen`.
  const uint64_t* generation = nullptr;
  uint64_t seen = 0;
  int line = 0;  // of the barrier at which it waits, for messages; 0 for a meeting of a warp
  std::vector<StartedCopy> uncommitted;
  std::vector<std::vector<StartedCopy>> copies;  // committed groups, oldest first
};

// Exactly num_bytes long, so that AddressSanitizer sees accesses past the end.
struct SharedMemory {
  static constexpr std::align_val_t kAlignment{128};

  explicit SharedMemory(size_t num_bytes)
      : size(num_bytes), data(static_cast<std::byte*>(operator new(num_bytes, kAlignment))) {}
  ~SharedMemory() { operator delete(data, kAlignment); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  void poison() { std::memset(data, kPoisonByte, size); }

  size_t size;
  std::byte* data;
};

}  // namespace
}  // namespace simt

// All variables of the .cu files that are static here (shared_memory.ld).
extern "C" {
extern std::byte simt_static_shared_begin[], simt_static_shared_end[];
}

namespace simt {
namespace {

#ifdef __SANITIZE_ADDRESS__
// AddressSanitizer has its own bytes between the variables, which it forbids memset to write.
__attribute__((no_sanitize_address)) void poison_static_shared_memory() {
  for (volatile std::byte* at = simt_static_shared_begin; at != simt_static_shared_end; ++at) {
    *at = std::byte{kPoisonByte};
  }
}
#else
void poison_static_shared_memory() {
  std::memset(simt_static_shared_begin, kPoisonByte,
              static_cast<size_t>(simt_static_shared_end - simt_static_shared_begin));
}
#endif

struct Block {
  explicit Block(size_t shared_bytes) : shared(shared_bytes) {}

  Index index;
  std::vector<Thread> threads;
  // Of every warp; a launch's blocks share them, because nobody waits at one when a block ends.
  std::vector<std::vector<std::unique_ptr<WarpMeeting>>> meetings;
  SharedMemory shared;
  int waiting = 0;  // at the barrier
  int barrier_line = 0;
  uint64_t barrier_generation = 0;
  int running = 0;  // threads that have not ended
};

// The launch in progress. One host thread runs all of it.
struct Launch {
  Extent grid, block_extent;
  const std::function<void()>* body = nullptr;
  Block* block = nullptr;
  Thread* thread = nullptr;
  context::fiber scheduler;
  std::exception_ptr error;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
};
thread_local Launch* launch = nullptr;

// AddressSanitizer must know on which stack code runs.
class StackSwitch {
 public:
#ifdef __SANITIZE_ADDRESS__
  StackSwitch(const void* stack, size_t bytes) {
    __sanitizer_start_switch_fiber(&fake_stack_, stack, bytes);
  }
  ~StackSwitch() { __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr); }

 private:
  void* fake_stack_ = nullptr;
#else
  StackSwitch(const void*, size_t) {}
  ~StackSwitch() {}
#endif
};

// Stacks are reused by later launches: to make a thousand of them costs more than most kernels.
class StackPool {
 public:
  context::stack_context allocate() {
    if (free_.empty()) return allocator_.allocate();
    const context::stack_context stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void deallocate(context::stack_context& stack) { free_.push_back(stack); }

 private:
  context::protected_fixedsize_stack allocator_{kStackBytes};
  std::vector<context::stack_context> free_;
};

StackPool& stack_pool() {
  static StackPool pool;
  return pool;
}

struct PooledStack {
  Thread* thread;

  context::stack_context allocate() {
    const context::stack_context stack = stack_pool().allocate();
    thread->stack = static_cast<std::byte*>(stack.sp) - stack.size;
    thread->stack_bytes = stack.size;
    return stack;
  }
  void deallocate(context::stack_context& stack) { stack_pool().deallocate(stack); }
};

// Switches to the scheduler until it resumes this thread.
void yield() {
  const StackSwitch to_scheduler(launch->scheduler_stack, launch->scheduler_stack_bytes);
  launch->scheduler = std::move(launch->scheduler).resume();
}

void wait_for(const uint64_t& generation, int line) {
  Thread& self = *launch->thread;
  self.generation = &generation;
  self.seen = generation;
  self.line = line;
  while (generation == self.seen) yield();
  self.generation = nullptr;
}

// Called before the last switch from a thread's stack.
void leave_thread_for_good() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(nullptr, launch->scheduler_stack, launch->scheduler_stack_bytes);
#endif
}

context::fiber start_fiber(Thread& thread) {
  return {std::allocator_arg, PooledStack{&thread}, [&thread](context::fiber&& scheduler) {
#ifdef __SANITIZE_ADDRESS__
            __sanitizer_finish_switch_fiber(nullptr, &launch->scheduler_stack,
                                            &launch->scheduler_stack_bytes);
#endif
            launch->scheduler = std::move(scheduler);
            try {
              (*launch->body)();
            } catch (...) {
              if (!launch->error) launch->error = std::current_exception();
            }
            thread.ended = true;
            Block& block = *launch->block;
            --block.running;
            // The barrier waits for one thread less.
            if (block.waiting > 0 && block.waiting == block.running) {
              block.waiting = 0;
              ++block.barrier_generation;
            }
            leave_thread_for_good();
            return std::move(launch->scheduler);
          }};
}

void resume(Thread& thread) {
  launch->thread = &thread;
  const StackSwitch to_thread(thread.stack, thread.stack_bytes);
  thread.fiber = std::move(thread.fiber).resume();
}

bool is_runnable(const Thread& thread) {
  return !thread.ended && (thread.generation == nullptr || *thread.generation != thread.seen);
}

std::string describe_waiting(const Block& block) {
  std::string text;
  int told = 0;
  for (const Thread& thread : block.threads) {
    if (thread.ended || told == 4) continue;
    ++told;
    text += thread.line == 0 ? fmt::format(" thread {} waits for its warp;", thread.index.x)
                             : fmt::format(" thread ({}, {}) waits at the barrier of line {};",
                                           thread.index.x, thread.index.y, thread.line);
  }
  return text;
}

Index delinearize(unsigned int i, Extent extent) {
  return {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y};
}

void reset_block(Block& block) {
  const unsigned int count =
      launch->block_extent.x * launch->block_extent.y * launch->block_extent.z;
  block.threads.clear();
  block.threads.resize(count);
  block.meetings.resize((count + kWarpSize - 1) / kWarpSize);
  block.running = static_cast<int>(count);
  block.waiting = 0;
  block.shared.poison();
  poison_static_shared_memory();
  for (unsigned int i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.index = delinearize(i, launch->block_extent);
    thread.lane = static_cast<int>(i % kWarpSize);
    thread.warp = static_cast<int>(i / kWarpSize);
    thread.fiber = start_fiber(thread);
  }
}

// Runs the threads in another order in every phase.
void run_block(Block& block, std::minstd_rand& random) {
  std::vector<Thread*> order;
  for (Thread& thread : block.threads) order.push_back(&thread);
  while (block.running > 0 && !launch->error) {
    std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    for (Thread* thread : order) {
      if (!is_runnable(*thread)) continue;
      resume(*thread);
      progress = true;
      if (launch->error) break;
    }
    require(progress || launch->error, "threads of block {} wait for ever:{}", block.index.x,
            describe_waiting(block));
  }
}

// After an error some threads never resume. Their stacks are never unwound, because
// AddressSanitizer cannot follow an unwinding that crosses stacks.
void abandon_waiting_threads(Block& block) {
  static auto& abandoned = *new std::vector<context::fiber>;  // never destroyed
  for (Thread& thread : block.threads) {
    if (thread.fiber) abandoned.push_back(std::move(thread.fiber));
  }
}

}  // namespace

const Index& thread_index() { return launch->thread->index; }
const Index& block_index() { return launch->block->index; }
const Extent& block_extent() { return launch->block_extent; }
const Extent& grid_extent() { return launch->grid; }
int lane() { return launch->thread->lane; }
void* dynamic_shared_memory() { return launch->block->shared.data; }

namespace {
size_t streamed = 0;
}  // namespace

void count_streamed_bytes(size_t num_bytes) { streamed += num_bytes; }
size_t streamed_bytes() { return streamed; }

void start_copy(void* shared, const void* global, size_t num_bytes) {
  for (const void* address : {static_cast<const void*>(shared), global}) {
    require(reinterpret_cast<uintptr_t>(address) % num_bytes == 0,
            "an asynchronous copy of {} bytes is not aligned to its size", num_bytes);
  }
  launch->thread->uncommitted.push_back({shared, global, num_bytes});
}

void commit_copies() {
  Thread& self = *launch->thread;
  self.copies.push_back(std::exchange(self.uncommitted, {}));
}

void wait_for_copies(int pending) {
  auto& groups = launch->thread->copies;
  for (; groups.size() > static_cast<size_t>(pending); groups.erase(groups.begin())) {
    for (const StartedCopy& copy : groups.front()) {
      if (copy.global != nullptr) {
        std::memcpy(copy.shared, copy.global, copy.num_bytes);
      } else {
        std::memset(copy.shared, 0, copy.num_bytes);
      }
    }
  }
}

void sync_block(int line) {
  Block& block = *launch->block;
  require(block.waiting == 0 || block.barrier_line == line,
          "threads of block {} meet at different barriers: lines {} and {}", block.index.x,
          block.barrier_line, line);
  block.barrier_line = line;
  if (++block.waiting == block.running) {
    block.waiting = 0;
    ++block.barrier_generation;
    return;
  }
  wait_for(block.barrier_generation, line);
}

const std::byte* meet_warp(uint32_t mask, const void* mine, size_t size) {
  const Thread& self = *launch->thread;
  require((mask >> self.lane & 1u) != 0, "lane {} calls with mask {:#x}, which does not hold it",
          self.lane, mask);
  require(size <= kSlotBytes, "{} bytes per lane are more than {}", size, kSlotBytes);
  auto& meetings = launch->block->meetings[static_cast<size_t>(self.warp)];
  auto found = std::find_if(meetings.begin(), meetings.end(),
                            [&](const auto& meeting) { return meeting->mask == mask; });
  if (found == meetings.end()) {
    meetings.push_back(std::make_unique<WarpMeeting>());
    meetings.back()->mask = mask;
    found = std::prev(meetings.end());
  }
  WarpMeeting& meeting = **found;
  std::byte* slots = meeting.slots[meeting.generation % 2];
  std::memcpy(slots + static_cast<size_t>(self.lane) * kSlotBytes, mine, size);
  meeting.arrived |= 1u << self.lane;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    wait_for(meeting.generation, 0);
  }
  return slots;
}

// A block of Hopper may have 227 KiB.
size_t most_shared_bytes() {
  const char* text = std::getenv("SWITCHYARD_EMULATED_SHARED_BYTES");
  return text ? std::strtoull(text, nullptr, 10) : 227 * 1024;
}

unsigned int most_blocks_across() {
  const char* text = std::getenv("SWITCHYARD_EMULATED_GRID");
  return text ? static_cast<unsigned int>(std::atoi(text)) : 65535;
}

void run_grid(Extent grid, Extent block_extent, size_t shared_bytes,
              const std::function<void()>& body) {
  const unsigned int threads = block_extent.x * block_extent.y * block_extent.z;
  require(threads >= 1 && threads <= kMaxThreads, "a block of {} threads cannot be launched",
          threads);
  require(grid.y <= most_blocks_across() && grid.z <= most_blocks_across(),
          "a grid of ({}, {}, {}) blocks cannot be launched", grid.x, grid.y, grid.z);
  require(shared_bytes <= most_shared_bytes(), "{} bytes of shared memory are more than {}",
          shared_bytes, most_shared_bytes());
  require(launch == nullptr, "a kernel launched a kernel");
  const DeviceMemoryAccess access;
  Launch state;
  state.grid = grid;
  state.block_extent = block_extent;
  state.body = &body;
  Block block(shared_bytes);
  launch = &state;
  state.block = &block;
  std::minstd_rand random(12345);
  const unsigned int blocks = grid.x * grid.y * grid.z;
  try {
    for (unsigned int b = 0; b < blocks && !state.error; ++b) {
      block.index = delinearize(b, grid);
      reset_block(block);
      run_block(block, random);
    }
  } catch (...) {
    state.error = std::current_exception();
  }
  abandon_waiting_threads(block);
  launch = nullptr;
  if (state.error) std::rethrow_exception(state.error);
}

}  // namespace simt
