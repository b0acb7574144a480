// CUDA on the CPU, for tests only: with this folder first in the include path, g++ compiles the .cu files as they are,
// and SF_LAUNCH runs them. It shows wrong indices, out-of-bounds accesses (under AddressSanitizer), missing barriers
// and wrong reductions without a GPU. It says nothing about speed.
//
// How: blocks run one after another; the threads of a block are fibers that switch only at barriers and shuffles.
// Between two barriers they run in an order that is shuffled anew each time, so a missing __syncthreads() gives a wrong
// result. Dynamic shared memory starts as NaN bytes for each block. A barrier that only some threads reach is an error.
// Limits: no two threads run at the same instant (atomics are plain), and a warp meets only at *_sync calls.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __restrict__ __restrict
#define SF_CUDA_ON_CPU 1

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

namespace cuda_on_cpu {

inline std::minstd_rand random_order;  // of threads, the same in every run

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  int linear = 0;
  enum { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone } state = kReady;
  uint64_t deposit = 0;        // what the thread shows to its warp in a shuffle
  uint32_t fragments[6] = {};  // what it shows in a matrix product
  struct Copy {
    void* to;
    const void* from;
    int commit;
  };
  std::vector<Copy> copies;  // asynchronous ones that it has not waited for
  int commits = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  ucontext_t scheduler;
  dim3 grid, block, index;
  std::function<void()> body;
  std::vector<char> shared;
  std::exception_ptr error;
  void* fake_stack = nullptr;
};
inline Block* active = nullptr;

inline void switch_to(ucontext_t* from, ucontext_t* to, [[maybe_unused]] const void* stack,
                      [[maybe_unused]] size_t bytes, [[maybe_unused]] bool leaving_for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
  void* save = nullptr;
  __sanitizer_start_switch_fiber(leaving_for_good ? nullptr : &save, stack, bytes);
  swapcontext(from, to);
  __sanitizer_finish_switch_fiber(save, nullptr, nullptr);
#else
  swapcontext(from, to);
#endif
}

inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;

inline void yield_fiber(bool done = false) {
  switch_to(&active->current->context, &active->scheduler, scheduler_stack, scheduler_stack_bytes, done);
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  try {
    active->body();
  } catch (...) {
    active->error = std::current_exception();
  }
  active->current->state = Fiber::kDone;
  yield_fiber(true);
}

inline void barrier(decltype(Fiber::state) kind) {
  active->current->state = kind;
  yield_fiber();
}

// Shows `value` to the warp, then reads what lane `source` shows.
template <typename T>
T exchange(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Fiber* self = active->current;
  std::memcpy(&self->deposit, &value, sizeof(T));
  barrier(Fiber::kAtWarpBarrier);
  const int first = self->linear / kWarp * kWarp, target = first + source;
  T result = value;
  if (source >= 0 && source < kWarp && target < static_cast<int>(active->fibers.size()))
    std::memcpy(&result, &active->fibers[target].deposit, sizeof(T));
  barrier(Fiber::kAtWarpBarrier);
  return result;
}

inline int lane() { return active->current->linear % kWarp; }

// mma.sync.m16n8k16, row by column: every lane shows its fragments of a (4 registers) and b (2), two 16-bit elements in
// each, and then computes the elements of c that are its own. The layouts are those of the PTX manual.
template <typename Decode>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b, const Decode& decode) {
  Fiber* self = active->current;
  std::memcpy(self->fragments, a, sizeof(a));
  std::memcpy(self->fragments + 4, b, 2 * sizeof(*b));
  barrier(Fiber::kAtWarpBarrier);
  const Fiber* warp = &active->fibers[self->linear / kWarp * kWarp];
  const auto element = [&](int of_lane, int reg, int k) {
    return decode(static_cast<uint16_t>(warp[of_lane].fragments[reg] >> (k % 2 * 16)));
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2;
      c[i] += element(row % 8 * 4 + pair, row / 8 + k / 8 * 2, k) * element(column * 4 + pair, 4 + k / 8, k);
    }
  }
  barrier(Fiber::kAtWarpBarrier);
}

// cp.async of 16 bytes (zeros where `from` is null). Nothing arrives before the thread waits for it, so that reading
// without waiting shows what was there before.
inline void copy_async_16(void* to, const void* from) {
  active->current->copies.push_back({to, from, active->current->commits});
}
inline void copy_async_commit() { ++active->current->commits; }
template <int kPending>
void copy_async_wait() {
  Fiber* self = active->current;
  const auto waits = [&](const Fiber::Copy& copy) { return copy.commit >= self->commits - kPending; };
  const auto arrived = std::stable_partition(self->copies.begin(), self->copies.end(), waits);
  for (auto copy = arrived; copy != self->copies.end(); ++copy) {
    if (copy->from != nullptr)
      std::memcpy(copy->to, copy->from, 16);
    else
      std::memset(copy->to, 0, 16);
  }
  self->copies.erase(arrived, self->copies.end());
}

// ldmatrix.x4: lane l gives the address of line l % 8 of matrix l / 8, and receives of each matrix the elements
// l % 4 * 2 and l % 4 * 2 + 1 of line l / 4; of its transpose, if kTransposed.
template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* line) {
  Fiber* self = active->current;
  std::memcpy(&self->deposit, &line, sizeof(line));
  barrier(Fiber::kAtWarpBarrier);
  const Fiber* warp = &active->fibers[self->linear / kWarp * kWarp];
  for (int matrix = 0; matrix < 4; ++matrix) {
    to[matrix] = 0;
    for (int i = 0; i < 2; ++i) {
      const int row = lane() / 4, column = lane() % 4 * 2 + i;
      const uint16_t* from = nullptr;
      std::memcpy(&from, &warp[matrix * 8 + (kTransposed ? column : row)].deposit, sizeof(from));
      to[matrix] |= static_cast<uint32_t>(from[kTransposed ? row : column]) << (i * 16);
    }
  }
  barrier(Fiber::kAtWarpBarrier);
}

inline void run_block(Block& block) {
  const int count = static_cast<int>(block.fibers.size());
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.state = Fiber::kReady;
    fiber.linear = i;
    fiber.copies.clear();
    fiber.commits = 0;
    fiber.thread = dim3(i % block.block.x, i / block.block.x % block.block.y, i / (block.block.x * block.block.y));
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  std::vector<int> order(count);
  for (int i = 0; i < count; ++i) order[i] = i;
  for (;;) {
    std::shuffle(order.begin(), order.end(), random_order);
    for (int i : order) {
      Fiber& fiber = block.fibers[i];
      if (fiber.state != Fiber::kReady) continue;
      block.current = &fiber;
      switch_to(&block.scheduler, &fiber.context, fiber.stack.get(), kStackBytes);
      if (block.error) std::rethrow_exception(block.error);
    }
    // Everyone waits or is done: open the warp barriers that are full, else the block barrier.
    int done = 0, at_block = 0;
    bool opened = false;
    for (int first = 0; first < count; first += kWarp) {
      int waiting = 0, finished = 0, blocked = 0;
      const int end = std::min(count, first + kWarp);
      for (int i = first; i < end; ++i) {
        waiting += block.fibers[i].state == Fiber::kAtWarpBarrier;
        finished += block.fibers[i].state == Fiber::kDone;
        blocked += block.fibers[i].state == Fiber::kAtBlockBarrier;
      }
      if (waiting) {
        if (blocked || finished) throw std::runtime_error("a *_sync call was reached by only a part of its warp");
        for (int i = first; i < end; ++i) block.fibers[i].state = Fiber::kReady;
        opened = true;
      }
      done += finished;
      at_block += blocked;
    }
    if (opened) continue;
    if (done == count) return;
    if (done) throw std::runtime_error("__syncthreads() was reached by only a part of the block");
    for (Fiber& fiber : block.fibers) fiber.state = Fiber::kReady;
  }
}

template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, dim3 threads, size_t shared_bytes, Args... args) {
  if (threads.x * threads.y * threads.z > 1024 || grid.y > 65535 || grid.z > 65535 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > 0x7FFFFFFFu || shared_bytes > 227 * 1024)
    throw std::runtime_error("launch configuration that a GPU would refuse");
  Block block;
  block.grid = grid;
  block.block = threads;
  block.fibers.resize(threads.x * threads.y * threads.z);
  block.body = [&] { kernel(args...); };
  active = &block;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block.index = dim3(x, y, z);
        // exactly the asked size on the heap, so that AddressSanitizer sees one byte too many
        std::vector<char>(shared_bytes, static_cast<char>(0xFF)).swap(block.shared);
        run_block(block);
      }
  active = nullptr;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::active->current->thread)
#define blockIdx (cuda_on_cpu::active->index)
#define blockDim (cuda_on_cpu::active->block)
#define gridDim (cuda_on_cpu::active->grid)

inline void __syncthreads() { cuda_on_cpu::barrier(cuda_on_cpu::Fiber::kAtBlockBarrier); }
inline void __syncwarp(unsigned = 0xFFFFFFFFu) { cuda_on_cpu::barrier(cuda_on_cpu::Fiber::kAtWarpBarrier); }
template <typename T>
T __shfl_sync(unsigned, T value, int source, int = 32) {
  return cuda_on_cpu::exchange(value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return cuda_on_cpu::exchange(value, cuda_on_cpu::lane() ^ mask);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int = 32) {
  return cuda_on_cpu::exchange(value, cuda_on_cpu::lane() + static_cast<int>(delta));
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int = 32) {
  return cuda_on_cpu::exchange(value, cuda_on_cpu::lane() - static_cast<int>(delta));
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned bits = 0;
  for (int i = 0; i < cuda_on_cpu::kWarp; ++i) bits |= (cuda_on_cpu::exchange(predicate, i) ? 1u : 0u) << i;
  return bits;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31));
}
template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = (static_cast<uint64_t>(high) << 32) | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 0xFF) << 8 * i;
  return result;
}
// The dot product of two 16-bit numbers with the lower (upper) two bytes of the second argument, and a summand.
inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) {
  return (a & 0xFFFF) * (b & 0xFF) + (a >> 16) * ((b >> 8) & 0xFF) + c;
}
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned c) { return __dp2a_lo(a, b >> 16, c); }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

#define SF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  cuda_on_cpu::launch(kernel, grid, block, shared_bytes, __VA_ARGS__)
#define SF_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(cuda_on_cpu::active->shared.data())
