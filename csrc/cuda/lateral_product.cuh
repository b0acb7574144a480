// The matrix product behind the lateral convolution and its gradients: a block multiplies 128 rows by 32, 64 or 128
// columns, in steps of 64 bytes along the depth.
//
//   product[row][column] = sum over k of a[row][k] * b[column][k]
//
// The steps go through a ring of stages in shared memory: while one is multiplied, the next ones arrive (cp.async,
// which needs no registers). float16 and bfloat16 run on the tensor cores (ldmatrix, mma.sync.m16n8k16; from sm_80 on),
// all others use multiply-adds; either way a thread owns the same elements of the product.
#pragma once

#include "lateral_tile.cuh"

namespace slowfast {

#if defined(SF_CUDA_ON_CPU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
constexpr bool kHasMma = true;
#else
constexpr bool kHasMma = false;
#endif

template <typename T>
constexpr int kDepth = 64 / sizeof(T);  // of a step
template <typename T>
constexpr int kMostColumns = 256 / sizeof(T);
constexpr int kWarps = kTileThreads / 32;

// function(std::integral_constant<int, 32, 64 or 128>) with what suits that many columns.
template <typename T, typename Function>
void with_columns(int64_t columns, const Function& function) {
  if constexpr (kMostColumns<T> >= 128)
    if (columns > 64) return function(std::integral_constant<int, 128>{});
  if constexpr (kMostColumns<T> >= 64)
    if (columns > 32) return function(std::integral_constant<int, 64>{});
  function(std::integral_constant<int, 32>{});
}
// Without tensor cores, threads of the widest tiles need more registers.
template <typename T>
constexpr int blocks_per_processor(int columns) {
  return columns >= 128 ? (kHasMma ? 2 : 1) : kBlocks<T>;
}

// ---- instructions, and what stands in for them where they do not exist

#if defined(SF_CUDA_ON_CPU)
using cuda_on_cpu::copy_async_16;
using cuda_on_cpu::copy_async_commit;
using cuda_on_cpu::copy_async_wait;
using cuda_on_cpu::load_matrices;
template <typename T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  cuda_on_cpu::mma_16x8x16(c, a, b, [](uint16_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(value));
    return static_cast<float>(value);
  });
}
#else
// 16 bytes to shared memory, zeros if `from` is null; they are there after copy_async_wait.
__device__ SF_INLINE void copy_async_16(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(from != nullptr ? 16 : 0)
      : "memory");
#else
  *static_cast<uint4*>(to) = from != nullptr ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ SF_INLINE void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for all of this thread's copies but those of the last kPending commits.
template <int kPending>
__device__ SF_INLINE void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}
// ldmatrix.x4: lane l gives the address of line l % 8 of matrix l / 8, eight elements of 16 bits.
template <bool kTransposed>
__device__ SF_INLINE void load_matrices(uint32_t (&to)[4], const void* line) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(line));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
#endif
}
// c += a * b, with each thread's fragments laid out as the PTX manual says.
template <typename T>
__device__ SF_INLINE void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define SF_MMA(TYPE)                                                                  \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, bfloat16>)
    SF_MMA("bf16");
  else
    SF_MMA("f16");
#undef SF_MMA
#endif
}
#endif

// ---- operands and results in shared memory

// Where element i of a line of kLength elements is: its groups of 16 bytes are permuted from line to line, so that
// eight lines' groups at the same i lie in different banks.
template <typename T, int kLength>
__device__ SF_INLINE int place_in_lines(int line, int i) {
  constexpr int kGroups = kLength / kWide<T>, kCycle = kGroups < 8 ? kGroups : 8, kRepeat = 8 / kCycle;
  return line * kLength + (((i / kWide<T>)^(line / kRepeat % kCycle)) * kWide<T> + i % kWide<T>);
}

// Where an element lies along one of its two axes: element (x, y) is at data + x.offset + y.offset, and it is zero
// unless x.index + y.index is in [0, limit).
struct Along {
  int64_t offset;
  int index;
};
constexpr Along kNowhere{0, -(1 << 30)};

template <typename T, typename First, typename Second>
struct Matrix {
  T* data;
  int limit;
  bool wide;      // groups of 16 bytes, in lines of shared memory, are adjacent and aligned in memory
  First first;    // of a row or column: Along
  Second second;  // of an index of the depth, or a column of a result

  // The address of an element, or nullptr.
  __device__ SF_INLINE T* at(const Along& x, const Along& y) const {
    const bool exists = static_cast<unsigned>(x.index + y.index) < static_cast<unsigned>(limit);
    return exists ? data + (x.offset + y.offset) : nullptr;
  }
};
template <typename T, typename First, typename Second>
__device__ Matrix<T, First, Second> matrix(T* data, int limit, bool wide, const First& first, const Second& second) {
  return {data, limit, wide, first, second};
}

// The groups of a thread in kFirst by kSecond elements of shared memory, in lines along the second axis, or `across` it
// along the first one. They are at the same place in lines a fixed distance apart.
template <typename T, int kFirst, int kSecond, bool kAcross>
struct Share {
  static constexpr int kLength = kAcross ? kFirst : kSecond, kLines = kAcross ? kSecond : kFirst;
  static constexpr int kPerLine = kLength / kWide<T>, kStep = kTileThreads / kPerLine;  // lines from group to group
  static constexpr int kGroups = kLines > kStep ? kLines / kStep : 1;

  // The place of a group in its line, and the first line.
  static __device__ SF_INLINE int in_line() { return threadIdx.x % kPerLine * kWide<T>; }
  static __device__ SF_INLINE int line(int group) { return threadIdx.x / kPerLine + group * kStep; }
  static __device__ SF_INLINE bool any() { return kLines >= kStep || line(0) < kLines; }
  static __device__ SF_INLINE int first(int group) { return kAcross ? in_line() : line(group); }
  static __device__ SF_INLINE int second(int group) { return kAcross ? line(group) : in_line(); }
  static __device__ SF_INLINE int place(int group) { return place_in_lines<T, kLength>(line(group), in_line()); }
};

// An operand of a step: kExtent rows or columns by kDepth.
template <typename T, int kExtent, bool kAcross>
struct Operand {
  using Groups = Share<T, kExtent, kDepth<T>, kAcross>;
  static constexpr int kFixed = kAcross ? 1 : Groups::kGroups;

  Along fixed[kFixed];  // what stays from step to step

  template <typename Source>
  __device__ SF_INLINE explicit Operand(const Source& from) {
#pragma unroll
    for (int i = 0; i < kFixed; ++i) fixed[i] = from.first(Groups::first(i));
  }

  // Fills the thread's groups of a step from `begin` on along the depth.
  template <typename Source>
  __device__ SF_INLINE void fill(T* operand, const Source& from, int begin) const {
    if (!Groups::any()) return;
    if (from.wide) {
      Along second;
#pragma unroll
      for (int i = 0; i < Groups::kGroups; ++i) {
        if (kAcross || i == 0) second = from.second(begin + Groups::second(i));
        copy_async_16(operand + Groups::place(i), from.at(fixed[kAcross ? 0 : i], second));
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < Groups::kGroups * kWide<T>; ++i) {
        const int group = i / kWide<T>, j = i % kWide<T>;
        const Along first = from.first(Groups::first(group) + (kAcross ? j : 0));
        const T* element = from.at(first, from.second(begin + Groups::second(group) + (kAcross ? 0 : j)));
        operand[Groups::place(group) + j] = element != nullptr ? *element : T(accumulator_t<T>(0));
      }
    }
  }

  static __device__ SF_INLINE int place(int e, int k) {
    return kAcross ? place_in_lines<T, kExtent>(k, e) : place_in_lines<T, kDepth<T>>(e, k);
  }
};

// A thread's elements of a product of 128 rows and kColumns columns.
template <typename T, int kColumns>
struct TileProduct {
  using Acc = accumulator_t<T>;
  template <bool kAcross>
  using A = Operand<T, kRows, kAcross>;
  template <bool kAcross>
  using B = Operand<T, kColumns, kAcross>;
  static constexpr int kSizeA = kRows * kDepth<T>, kStageSize = kSizeA + kColumns * kDepth<T>, kStages = 3;
  // The ring of stages, and a result that takes its place.
  static constexpr size_t kRing = sizeof(T) * kStages * kStageSize, kResult = sizeof(T) * kRows * kColumns;
  static constexpr size_t kSharedBytes = kRing > kResult ? kRing : kResult;
  static constexpr bool kMma = kHasMma && sizeof(T) == 2;
  static constexpr int kWarpColumns = kColumns / 32;  // that many warps side by side, 32 columns each
  static constexpr int kM = kColumns / 32, kN = 4;    // a warp's tiles of 16 x 8
  static constexpr int kRowParts = kWarps / kWarpColumns;

  Acc sums[kM][kN][4] = {};

  __device__ static int row_part() { return threadIdx.x / 32 / kWarpColumns; }
  __device__ static int warp_row() { return row_part() * (kM * 16); }
  __device__ static int warp_column() { return threadIdx.x / 32 % kWarpColumns * 32; }
  // Element sums[m][n][i] of the thread is at row(m, i), column(n, i).
  __device__ static int row(int m, int i) { return warp_row() + threadIdx.x % 32 / 4 + m * 16 + i / 2 * 8; }
  __device__ static int column(int n, int i) { return warp_column() + threadIdx.x % 4 * 2 + n * 8 + i % 2; }

  template <bool kAcrossA, bool kAcrossB>
  __device__ SF_INLINE void add(const T* a, const T* b) {
    if constexpr (kMma) {
      const int lane = threadIdx.x % 32, line = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll
      for (int k = 0; k < kDepth<T>; k += 16) {
        uint32_t columns[kN / 2][4];
#pragma unroll
        for (int n = 0; n < kN / 2; ++n) {
          const int e = warp_column() + n * 16 + high, depth = k + low;
          load_matrices<kAcrossB>(columns[n],
                                  b + B<kAcrossB>::place(kAcrossB ? e : e + line, kAcrossB ? depth + line : depth));
        }
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const int e = warp_row() + m * 16 + low, depth = k + high;
          uint32_t rows[4];
          load_matrices<kAcrossA>(rows,
                                  a + A<kAcrossA>::place(kAcrossA ? e : e + line, kAcrossA ? depth + line : depth));
#pragma unroll
          for (int n = 0; n < kN; ++n) mma_16x8x16<T>(sums[m][n], rows, columns[n / 2] + n % 2 * 2);
        }
      }
    } else {
#pragma unroll 4
      for (int k = 0; k < kDepth<T>; ++k) {
        Acc columns[kN][2];
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) columns[n][i] = static_cast<Acc>(b[B<kAcrossB>::place(column(n, i), k)]);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const Acc value = static_cast<Acc>(a[A<kAcrossA>::place(row(m, half * 2), k)]);
#pragma unroll
            for (int n = 0; n < kN; ++n)
#pragma unroll
              for (int i = 0; i < 2; ++i) sums[m][n][half * 2 + i] += value * columns[n][i];
          }
      }
    }
  }

  // Adds the product of two matrices, [rows][depth] and [columns][depth]. finish(stage) may change the groups of `a` in
  // a stage that the thread itself loaded.
  template <bool kAcrossA, bool kAcrossB, typename MatrixA, typename MatrixB, typename Finish>
  __device__ SF_INLINE void run(T* shared, int depth, const MatrixA& from_a, const MatrixB& from_b,
                                const Finish& finish) {
    const A<kAcrossA> a(from_a);
    const B<kAcrossB> b(from_b);
    const int steps = (depth + kDepth<T> - 1) / kDepth<T>;
    int filled = 0;
    const auto fill_next = [&] {
      T* stage = shared + filled % kStages * kStageSize;
      if (filled < steps) {
        a.fill(stage, from_a, filled * kDepth<T>);
        b.fill(stage + kSizeA, from_b, filled * kDepth<T>);
      }
      ++filled;
      copy_async_commit();
    };
    for (int i = 1; i < kStages; ++i) fill_next();
    for (int step = 0; step < steps; ++step) {
      T* stage = shared + step % kStages * kStageSize;
      copy_async_wait<kStages - 2>();
      finish(stage);
      __syncthreads();
      fill_next();
      add<kAcrossA, kAcrossB>(stage, stage + kSizeA);
    }
    __syncthreads();
  }

  // function(sum, row, column) for the thread's elements.
  template <typename Function>
  __device__ SF_INLINE void for_each(const Function& function) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) function(sums[m][n][i], row(m, i), column(n, i));
  }

  // The sum of value(element, row, column) over each column; scratch [kRowParts][kColumns] is free again after a
  // barrier.
  template <typename Value>
  __device__ void sum_columns(Acc* scratch, const Value& value) const {
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Acc sum = 0;
#pragma unroll
        for (int m = 0; m < kM; ++m)
          sum += value(sums[m][n][i], row(m, i), column(n, i)) + value(sums[m][n][i + 2], row(m, i + 2), column(n, i));
        for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
        if (threadIdx.x % 32 < 4) scratch[row_part() * kColumns + column(n, i)] = sum;
      }
    __syncthreads();
  }
  static __device__ SF_INLINE Acc column_sum(const Acc* scratch, int column) {
    Acc sum = 0;
    for (int part = 0; part < kRowParts; ++part) sum += scratch[part * kColumns + column];
    return sum;
  }

  // Writes the product to memory by way of shared memory, where nothing is needed any more.
  template <bool kAcross, typename Matrix>
  __device__ SF_INLINE void store(T* shared, const Matrix& to) {
    using Groups = Share<T, kRows, kColumns, kAcross>;
    for_each([&](Acc sum, int row, int column) {
      shared[place_in_lines<T, Groups::kLength>(kAcross ? column : row, kAcross ? row : column)] = T(sum);
    });
    __syncthreads();
    if (to.wide) {
      const Along fixed = kAcross ? to.first(Groups::first(0)) : to.second(Groups::second(0));
#pragma unroll 1
      for (int i = 0; i < Groups::kGroups; ++i) {
        const Along other = kAcross ? to.second(Groups::second(i)) : to.first(Groups::first(i));
        if (T* address = to.at(fixed, other))
          *reinterpret_cast<uint4*>(address) = *reinterpret_cast<const uint4*>(shared + Groups::place(i));
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < Groups::kGroups * kWide<T>; ++i) {
        const int group = i / kWide<T>, j = i % kWide<T>;
        const Along row = to.first(Groups::first(group) + (kAcross ? j : 0));
        const Along column = to.second(Groups::second(group) + (kAcross ? 0 : j));
        if (T* address = to.at(row, column)) *address = shared[Groups::place(group) + j];
      }
    }
  }
};

}  // namespace slowfast
