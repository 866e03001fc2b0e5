#include "simt/interpreter.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <csetjmp>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

namespace megalodon::simt {
namespace {

constexpr std::size_t kStackBytes = std::size_t{1} << 18;  // only touched pages take memory
constexpr int kMaxThreads = 1024;

enum class Waits { nothing, block, warp, condition, finished };

struct Copy {
  void* to;
  std::array<unsigned char, 16> bytes;
  int group;
};

// One thread of a block. Its fiber outlives the block and serves a thread of the next. A context starts it;
// from then on jumps switch, which spare the system calls that switching contexts makes.
struct Fiber {
  ucontext_t context;
  std::jmp_buf point;
  bool started = false;
  void* stack = nullptr;
  int thread = 0;
  Waits waits = Waits::finished;
  const char* meeting = nullptr;  // what a lane waits for that waits for its warp
  Deposit deposit;
  std::deque<Copy> copies;
  int groups = 0;  // of copies, that are complete
  const std::function<bool()>* condition = nullptr;

  Fiber() {
    stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
  }
  ~Fiber() { munmap(stack, kStackBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
};

class Machine {
 public:
  void launch(Grid grid, int threads, std::int64_t shared_bytes, const std::function<void()>& kernel) {
    if (grid.x < 1 || grid.y < 1 || grid.x > INT32_MAX || grid.y > 65535 || threads < kWarp ||
        threads > kMaxThreads || threads % kWarp != 0 || shared_bytes > 227 * 1024) {
      throw std::runtime_error("simt: no GPU can launch this shape");
    }
    grid_ = grid;
    kernel_ = &kernel;
    shared_.resize(static_cast<std::size_t>(shared_bytes));
    while (fibers_.size() < static_cast<std::size_t>(threads)) fibers_.push_back(std::make_unique<Fiber>());
    threads_ = threads;
    deposits_.resize(static_cast<std::size_t>(threads));
    std::vector<std::int64_t> blocks(static_cast<std::size_t>(grid.x * grid.y));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random_);
    for (const std::int64_t block : blocks) run_block({block % grid.x, block / grid.x});
  }

  void wait(Waits what) {
    running_->waits = what;
    if (_setjmp(running_->point) == 0) std::longjmp(scheduler_, 1);
  }

  const Deposit* meet(const char* what, const Deposit& mine) {
    running_->meeting = what;
    running_->deposit = mine;
    wait(Waits::warp);
    return &deposits_[static_cast<std::size_t>(running_->thread / kWarp * kWarp)];
  }

  Fiber& running() { return *running_; }
  Grid grid() const { return grid_; }
  Grid block() const { return block_; }
  int threads() const { return threads_; }
  std::vector<unsigned char>& shared() { return shared_; }

 private:
  void run_block(Grid block) {
    block_ = block;
    std::fill(shared_.begin(), shared_.end(), 0xFF);
    std::vector<Fiber*> ready;
    for (int i = 0; i < threads_; ++i) {
      Fiber& fiber = *fibers_[static_cast<std::size_t>(i)];
      fiber.thread = i;
      fiber.waits = Waits::nothing;
      fiber.copies.clear();
      ready.push_back(&fiber);
    }
    while (!ready.empty()) {
      std::shuffle(ready.begin(), ready.end(), random_);
      for (Fiber* fiber : ready) {
        running_ = fiber;
        if (_setjmp(scheduler_) == 0) resume(*fiber);
        if (error_) abandon();
      }
      ready = released();
    }
  }

  static void resume(Fiber& fiber) {
    if (fiber.started) std::longjmp(fiber.point, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Machine::enter, 0);
    setcontext(&fiber.context);
  }

  // Forgets the threads that still wait somewhere inside the kernel.
  [[noreturn]] void abandon() {
    for (const auto& fiber : fibers_) fiber->started &= fiber->waits == Waits::finished;
    std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Whoever goes on now that everybody waits or has finished; nobody once all have finished.
  std::vector<Fiber*> released() {
    std::vector<Fiber*> ready;
    int finished = 0, at_barrier = 0, in_vain = 0;
    for (int first = 0; first < threads_; first += kWarp) {
      const auto lane = [&](int i) -> Fiber& { return *fibers_[static_cast<std::size_t>(first + i)]; };
      const char* meeting = nullptr;
      int met = 0, elsewhere = 0;  // who waits for a condition may come to the meeting yet
      for (int i = 0; i < kWarp; ++i) {
        if (lane(i).waits == Waits::warp && meeting == nullptr) meeting = lane(i).meeting;
        met += lane(i).waits == Waits::warp && lane(i).meeting == meeting;
        finished += lane(i).waits == Waits::finished;
        at_barrier += lane(i).waits == Waits::block;
        if (lane(i).waits != Waits::condition) continue;
        ++elsewhere;
        if ((*lane(i).condition)()) {
          release(lane(i), ready);
        } else {
          ++in_vain;
        }
      }
      if (met != 0 && met + elsewhere != kWarp) miss(meeting, met, kWarp);
      if (met != kWarp) continue;
      for (int i = 0; i < kWarp; ++i) {
        deposits_[static_cast<std::size_t>(first + i)] = lane(i).deposit;
        release(lane(i), ready);
      }
    }
    if (at_barrier == threads_) {
      for (int i = 0; i < threads_; ++i) release(*fibers_[static_cast<std::size_t>(i)], ready);
    }
    if (ready.empty() && in_vain != 0)
      fail_block("a wait of " + std::to_string(in_vain) + " threads never ends");
    if (ready.empty() && finished != threads_) miss("barrier", at_barrier, threads_);
    return ready;
  }

  static void release(Fiber& fiber, std::vector<Fiber*>& ready) {
    fiber.waits = Waits::nothing;
    ready.push_back(&fiber);
  }

  [[noreturn]] void miss(const std::string& what, int came, int expected) {
    fail_block("a " + what + " was reached by " + std::to_string(came) + " of " + std::to_string(expected) +
               " threads");
  }

  [[noreturn]] void fail_block(const std::string& what) {
    error_ = std::make_exception_ptr(std::runtime_error("simt: block (" + std::to_string(block_.x) + ", " +
                                                        std::to_string(block_.y) + "): " + what));
    abandon();
  }

  static void enter();

  std::jmp_buf scheduler_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<unsigned char> shared_;
  std::vector<Deposit> deposits_;  // of each thread, at the last meeting of its warp
  std::minstd_rand random_{1};
  const std::function<void()>* kernel_ = nullptr;
  Fiber* running_ = nullptr;
  std::exception_ptr error_;
  Grid grid_, block_;
  int threads_ = 0;
};

Machine& machine() {
  thread_local Machine one;
  return one;
}

// Runs one thread after another: a finished one is resumed as a thread of the next block.
void Machine::enter() {
  Machine& self = machine();
  for (;;) {
    try {
      (*self.kernel_)();
    } catch (...) {
      self.error_ = std::current_exception();
    }
    self.wait(Waits::finished);
  }
}

}  // namespace

void launch(Grid grid, int threads, std::int64_t shared_bytes, const std::function<void()>& kernel) {
  machine().launch(grid, threads, shared_bytes, kernel);
}

int thread_index() { return machine().running().thread; }
int block_threads() { return machine().threads(); }
std::int64_t block_x() { return machine().block().x; }
std::int64_t block_y() { return machine().block().y; }
Grid grid() { return machine().grid(); }

void block_barrier() { machine().wait(Waits::block); }

const Deposit* warp_meet(const char* what, const Deposit& mine) { return machine().meet(what, mine); }

void copy_async(void* to, const void* from) {
  Fiber& self = machine().running();
  Copy copy{to, {}, self.groups};
  if (from != nullptr) std::memcpy(copy.bytes.data(), from, copy.bytes.size());
  std::memset(to, 0xFF, copy.bytes.size());
  self.copies.push_back(copy);
}

void copies_commit() { ++machine().running().groups; }

void copies_wait(int pending) {
  Fiber& self = machine().running();
  while (!self.copies.empty() && self.copies.front().group < self.groups - pending) {
    std::memcpy(self.copies.front().to, self.copies.front().bytes.data(), sizeof(Copy::bytes));
    self.copies.pop_front();
  }
}

void wait_until(const std::function<bool()>& condition) {
  if (condition()) return;
  machine().running().condition = &condition;
  machine().wait(Waits::condition);
}

void* shared_memory(std::int64_t offset, std::int64_t bytes) {
  auto& shared = machine().shared();
  const auto size = static_cast<std::int64_t>(shared.size());
  if (offset + bytes > size) {
    fail("shared memory of " + std::to_string(size) + " bytes is asked for byte " +
         std::to_string(offset + bytes));
  }
  return shared.data() + offset;
}

void fail(const std::string& what) {
  throw std::runtime_error("simt: block (" + std::to_string(block_x()) + ", " + std::to_string(block_y()) +
                           "), thread " + std::to_string(thread_index()) + ": " + what);
}

void fail_bounds(const char* memory, std::int64_t i, int count, std::int64_t low, std::int64_t high) {
  fail(std::string(memory) + ": elements [" + std::to_string(i) + ", " + std::to_string(i + count) +
       ") of [" + std::to_string(low) + ", " + std::to_string(high) + ")");
}

}  // namespace megalodon::simt
