// What the CUDA kernels of lateral_conv_concat share: tensors as tiles of positions and channels, the matrix product of
// such tiles, and the copy of the Slow channels.
//
// A position is a pixel (h, w) of a frame. A block has 128 threads and makes a 64 x 64 tile of a product in steps of 32
// along its depth: each step fills shared memory, converting strides and padding on the way, and multiplies from there.
// float16 and bfloat16 run on the tensor cores (mma.sync, from sm_80 on), each warp making 32 x 32; float, double and
// older processors use multiply-adds. All kernels are bound by memory in the paper's networks (at most 60 operations a
// byte), so threads walk every tensor in the order in which it lies in memory, 16 bytes at a time where it is aligned.
#pragma once

#include "cuda_utils.cuh"
#include "slowfast/lateral_conv_concat.h"
#include "slowfast/lateral_conv_concat_math.h"

namespace slowfast {

constexpr int kTileThreads = 128;
constexpr int kTile = 64;   // rows and columns of a product's tile, positions of any tile
constexpr int kDepth = 32;  // of a step

#if defined(SF_CUDA_ON_CPU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
constexpr bool kHasMma = true;
#else
constexpr bool kHasMma = false;
#endif

template <typename T>
struct Frames {
  T* data;
  int64_t n, c, t, h, w, width;
  bool even;  // positions are evenly spaced

  Frames() = default;
  explicit Frames(const TensorView& v)
      : data(v.as<T>()),
        n(v.stride(0)),
        c(v.stride(1)),
        t(v.stride(2)),
        h(v.stride(3)),
        w(v.stride(4)),
        width(v.size(4)),
        even(v.size(3) == 1 || v.stride(3) == v.size(4) * v.stride(4)) {}

  SF_HOST_DEVICE SF_INLINE T* at(int64_t clip, int64_t channel, int64_t frame, int64_t position) const {
    const int64_t place = even ? position * w : position / width * h + position % width * w;
    return data + clip * n + channel * c + frame * t + place;
  }
};

inline bool is_channels_last_cuda(const TensorView& v) { return v.stride(1) == 1; }

// The tiles of a tensor [N, ., T, H, W]: 64 positions of a frame, those of a frame one after the other.
struct Tiles {
  int64_t frames, positions, per_frame, count;

  explicit Tiles(const TensorView& v)
      : frames(v.size(2)),
        positions(v.size(3) * v.size(4)),
        per_frame((positions + kTile - 1) / kTile),
        count(v.size(0) * frames * per_frame) {}

  struct Tile {
    int64_t n, t, first;
    int count;
  };
  SF_HOST_DEVICE SF_INLINE Tile operator[](int64_t i) const {
    const int64_t frame = i / per_frame, first = i % per_frame * kTile, left = positions - first;
    return {frame / frames, frame % frames, first, static_cast<int>(left < kTile ? left : kTile)};
  }
};

// ---- copying: groups of elements that are adjacent in all tensors

template <typename T, int kGroup>
struct alignas(kGroup * sizeof(T)) Group {
  T values[kGroup];
};

template <typename T>
constexpr int kWide = 16 / sizeof(T);

// Whether tensors can be walked by groups of 16 bytes along the channels, or else along the positions.
inline bool can_widen(const TensorView& v, bool along_channels) {
  if (!v.given()) return true;
  const int64_t group = 16 / size_of(v.dtype);
  const bool even = v.size(3) == 1 || v.stride(3) == v.size(4) * v.stride(4);
  if (reinterpret_cast<uintptr_t>(v.data) % 16 || v.stride(0) % group || v.stride(2) % group) return false;
  if (along_channels)
    return v.stride(1) == 1 && v.size(1) % group == 0 && v.stride(3) % group == 0 && v.stride(4) % group == 0;
  return even && v.stride(4) == 1 && v.size(3) * v.size(4) % group == 0 && v.stride(1) % group == 0;
}

// function(channel, position) for the first elements of all groups of a tile of up to 64 channels from `channel`.
template <int kGroup, typename Function>
__device__ void for_each_group(bool along_channels, int64_t channel, int64_t channels, const Tiles::Tile& tile,
                               const Function& function) {
  constexpr int kPerRow = kTile / kGroup;
  for (int i = threadIdx.x; i < kTile * kPerRow; i += kTileThreads) {
    const int64_t adjacent = i % kPerRow * kGroup, other = i / kPerRow;
    const int64_t c = channel + (along_channels ? adjacent : other), p = along_channels ? other : adjacent;
    if (c < channels && p < tile.count) function(c, tile.first + p);
  }
}

template <typename T>
struct SlowCopy {
  Frames<const T> slow, residual;
  Frames<T> output;
  int64_t channels, groups;  // groups of 64 channels
  bool has_residual, along_channels, wide;
  Tiles tiles;

  SlowCopy(const TensorView& from, const TensorView& shortcut, const TensorView& to)
      : slow(from),
        residual(shortcut.given() ? shortcut : from),
        output(to),
        channels(from.size(1)),
        groups((channels + kTile - 1) / kTile),
        has_residual(shortcut.given()),
        along_channels(is_channels_last_cuda(to)),
        tiles(from) {
    const TensorView first = channels_of(to, 0, channels);
    wide = can_widen(from, along_channels) && can_widen(shortcut, along_channels) && can_widen(first, along_channels);
  }
  int64_t blocks() const { return tiles.count * groups; }

  template <int kGroup>
  __device__ void copy(int64_t block) const {
    using Acc = accumulator_t<T>;
    const Tiles::Tile tile = tiles[block / groups];
    for_each_group<kGroup>(along_channels, block % groups * kTile, channels, tile, [&](int64_t c, int64_t p) {
      auto value = *reinterpret_cast<const Group<T, kGroup>*>(slow.at(tile.n, c, tile.t, p));
      if (has_residual) {
        const auto other = *reinterpret_cast<const Group<T, kGroup>*>(residual.at(tile.n, c, tile.t, p));
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const T sum(static_cast<Acc>(value.values[i]) + static_cast<Acc>(other.values[i]));
          value.values[i] = static_cast<Acc>(sum) < 0 ? T(Acc(0)) : sum;  // a NaN stays, as in torch.relu
        }
      }
      *reinterpret_cast<Group<T, kGroup>*>(output.at(tile.n, c, tile.t, p)) = value;
    });
  }
  __device__ void operator()(int64_t block) const { wide ? copy<kWide<T>>(block) : copy<1>(block); }
};

// ---- the matrix product of a tile: product[row][column] = sum over k of a[row][k] * b[column][k]

// Rows of shared memory are padded so that the threads of a warp meet different banks.
template <typename T>
constexpr int kStep = kDepth + (sizeof(T) == 2 ? 8 : 1);
constexpr int kProductStride = kTile + 1;

// One mma.sync.m16n8k16: c += a * b, with each thread's fragments laid out as the PTX manual says.
#if defined(SF_CUDA_ON_CPU)
template <typename T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_cpu::mma_16x8x16(c, a, b, [](uint16_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(value));
    return static_cast<float>(value);
  });
}
#else
template <typename T>
__device__ SF_INLINE void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define SF_MMA(TYPE)                                                                  \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (sizeof(T) == 2) {
    if constexpr (std::is_same_v<T, bfloat16>)
      SF_MMA("bf16");
    else
      SF_MMA("f16");
  }
#undef SF_MMA
#endif
}
#endif

// A thread's 32 accumulators of a 64 x 64 product.
template <typename T>
struct TileProduct {
  using Acc = accumulator_t<T>;
  static constexpr bool kMma = kHasMma && sizeof(T) == 2;
  // Elements of T: the two operands of a step; afterwards the product takes their place.
  static constexpr size_t kOperands = 2 * kTile * kStep<T> * sizeof(T);
  static constexpr size_t kResult = kTile * kProductStride * sizeof(Acc);
  static constexpr size_t kSharedBytes = kOperands > kResult ? kOperands : kResult;

  Acc sums[8][4] = {};

  // Adds a step; a and b are in shared memory, complete for all threads.
  __device__ void add(const T* a, const T* b) {
    if constexpr (kMma) {
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, pair = lane % 4 * 2;
      const auto load = [](const T* from) { return *reinterpret_cast<const uint32_t*>(from); };
      a += (warp / 2 * 32 + group) * kStep<T> + pair;
      b += (warp % 2 * 32 + group) * kStep<T> + pair;
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        uint32_t rows[2][4], columns[4][2];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) rows[m][i] = load(a + (m * 16 + i % 2 * 8) * kStep<T> + k + i / 2 * 8);
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) columns[n][i] = load(b + n * 8 * kStep<T> + k + i * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 4; ++n) mma_16x8x16<T>(sums[m * 4 + n], rows[m], columns[n]);
      }
    } else {
      a += threadIdx.x / 16 * kStep<T>;
      b += threadIdx.x % 16 * kStep<T>;
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
        Acc rows[8], columns[4];
#pragma unroll
        for (int i = 0; i < 8; ++i) rows[i] = static_cast<Acc>(a[i * 8 * kStep<T> + k]);
#pragma unroll
        for (int j = 0; j < 4; ++j) columns[j] = static_cast<Acc>(b[j * 16 * kStep<T> + k]);
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[i][j] += rows[i] * columns[j];
      }
    }
  }

  // Writes the product to shared memory, [64][kProductStride], where the operands were.
  __device__ void store(Acc* product) const {
    __syncthreads();
    if constexpr (kMma) {
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
      product += (warp / 2 * 32 + lane / 4) * kProductStride + warp % 2 * 32 + lane % 4 * 2;
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            product[(m * 16 + i / 2 * 8) * kProductStride + n * 8 + i % 2] = sums[m * 4 + n][i];
    } else {
      product += threadIdx.x / 16 * kProductStride + threadIdx.x % 16;
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) product[i * 8 * kProductStride + j * 16] = sums[i][j];
    }
    __syncthreads();
  }
};

// Fills an operand of a step: value(row, k), walking along k or along the rows first.
template <typename T, typename Value>
__device__ void fill_operand(T* operand, bool along_depth, const Value& value) {
  for (int i = threadIdx.x; i < kTile * kDepth; i += kTileThreads) {
    const int row = along_depth ? i / kDepth : i % kTile, k = along_depth ? i % kDepth : i / kTile;
    operand[row * kStep<T> + k] = value(row, k);
  }
}

// The same for elements in memory, 16 bytes along k at a time: from(row, k) is their address, or nullptr for zeros.
template <typename T, typename From>
__device__ void fill_operand_wide(T* operand, const From& from) {
  constexpr int kGroup = kWide<T>, kPerRow = kDepth / kGroup;
  for (int i = threadIdx.x; i < kTile * kPerRow; i += kTileThreads) {
    const int row = i / kPerRow, k = i % kPerRow * kGroup;
    const T* source = from(row, k);
    *reinterpret_cast<uint4*>(operand + row * kStep<T> + k) =
        source != nullptr ? *reinterpret_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0);
  }
}

// The sum of a value over the threads of a block, in a fixed order; for all of them. `scratch` has an element a thread.
template <typename Acc>
__device__ Acc block_sum(Acc value, Acc* scratch) {
  scratch[threadIdx.x] = value;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
  }
  __syncthreads();
  const Acc result = scratch[0];
  __syncthreads();
  return result;
}

inline dim3 grid_of(int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); }

}  // namespace slowfast
