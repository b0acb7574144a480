// What the CUDA kernels of lateral_conv_concat share: tensors as rows and channels, and the copy of the Slow channels.
//
// A row is a position (h, w) of a Slow frame; the rows of all frames follow one another. A block has 256 threads and
// works on 128 rows. All kernels are bound by memory in the paper's networks (at most 60 operations a byte), so threads
// walk every tensor in the order in which it lies in memory, in groups of 16 bytes where it is aligned.
#pragma once

#include <type_traits>

#include "cuda_utils.cuh"
#include "slowfast/lateral_conv_concat.h"
#include "slowfast/lateral_conv_concat_math.h"

namespace slowfast {

constexpr int kTileThreads = 256;
constexpr int kRows = 128;           // of a tile
constexpr int kCopiedChannels = 64;  // of a tile that is copied or normalised
constexpr int kBatch = 4;            // groups that a thread loads together

// Blocks that a processor is to hold at once: three where shared memory has room for them and no register is spilled.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 == 9
template <typename T>
constexpr int kBlocks = std::is_same_v<T, bfloat16> || std::is_same_v<T, float> ? 3 : 2;
#else
template <typename T>
constexpr int kBlocks = 2;
#endif

template <typename T>
constexpr int kWide = 16 / sizeof(T);  // elements of a group of 16 bytes

template <typename T, int kGroup>
struct alignas(kGroup * sizeof(T)) Group {
  T values[kGroup];
};

// Division of a number below 2^31 by one that is known at the launch: a multiplication.
struct Divisor {
  uint32_t value, factor;
  int shift = 0;

  explicit Divisor(int64_t by) : value(by > 1 ? static_cast<uint32_t>(by) : 1) {
    SF_CHECK(by < (int64_t{1} << 30), "lateral_conv_concat takes less than 2^30 positions, frames or channels, got ",
             by);
    while ((uint32_t{1} << shift) < value) ++shift;
    factor = static_cast<uint32_t>(((((uint64_t{1} << shift) - value) << 32) / value) + 1);
  }
  SF_HOST_DEVICE SF_INLINE int quotient(int number) const {
    const uint32_t n = static_cast<uint32_t>(number);
    return static_cast<int>((static_cast<uint32_t>((static_cast<uint64_t>(factor) * n) >> 32) + n) >> shift);
  }
};

// The rows of a tensor [N, ., T, H, W].
struct Rows {
  int64_t count;
  Divisor positions, frames;  // of a frame; of a clip

  explicit Rows(const TensorView& v)
      : count(v.size(0) * v.size(2) * v.size(3) * v.size(4)), positions(v.size(3) * v.size(4)), frames(v.size(2)) {
    SF_CHECK(v.size(0) * v.size(2) < (int64_t{1} << 30), "lateral_conv_concat takes less than 2^30 frames");
  }
  SF_HOST_DEVICE int64_t tiles() const { return (count + kRows - 1) / kRows; }

  struct First {  // a row; how many there are from it on
    int frame, position;
    int64_t left;
  };
  SF_HOST_DEVICE SF_INLINE First first(int64_t row) const {
    return {static_cast<int>(row / positions.value), static_cast<int>(row % positions.value), count - row};
  }
  struct Place {
    int n, t, position;
  };
  // Row `first + i`, i below 2^30.
  SF_HOST_DEVICE SF_INLINE Place at(const First& first, int i) const {
    const int row = first.position + i, past = positions.quotient(row), frame = first.frame + past;
    const int n = frames.quotient(frame);
    return {n, frame - n * static_cast<int>(frames.value), row - past * static_cast<int>(positions.value)};
  }
};

inline bool is_even(const TensorView& v) { return v.size(3) == 1 || v.stride(3) == v.size(4) * v.stride(4); }

template <typename T>
struct Frames {
  T* data;
  int64_t n, c, t, w, gap;  // gap: what one line of positions is further from the next than w; mostly 0
  Divisor width;

  explicit Frames(const TensorView& v)
      : data(v.as<T>()),
        n(v.stride(0)),
        c(v.stride(1)),
        t(v.stride(2)),
        w(v.stride(4)),
        gap(is_even(v) ? 0 : v.stride(3) - v.size(4) * v.stride(4)),
        width(v.size(4)) {}

  // Of channel 0, from `data` on.
  SF_HOST_DEVICE SF_INLINE int64_t offset(int clip, int frame, int position) const {
    return clip * n + frame * t + position * w + width.quotient(position) * gap;
  }
  SF_HOST_DEVICE SF_INLINE T* at(const Rows::Place& row, int channel) const {
    return data + offset(row.n, row.t, row.position) + channel * c;
  }
};

inline bool is_channels_last_cuda(const TensorView& v) { return v.stride(1) == 1; }

// Whether tensors can be walked by groups of 16 bytes along the channels, or else along the positions.
inline bool can_widen(const TensorView& v, bool along_channels) {
  if (!v.given()) return true;
  const int64_t group = 16 / size_of(v.dtype);
  if (reinterpret_cast<uintptr_t>(v.data) % 16 || v.stride(0) % group || v.stride(2) % group) return false;
  if (along_channels)
    return v.stride(1) == 1 && v.size(1) % group == 0 && v.stride(3) % group == 0 && v.stride(4) % group == 0;
  return is_even(v) && v.stride(4) == 1 && v.size(3) * v.size(4) % group == 0 && v.stride(1) % group == 0;
}

// function(std::true_type or std::false_type): a loop of its own for each layout, so that none pays for the others.
template <typename Function>
__device__ SF_INLINE void with_flag(bool flag, const Function& function) {
  flag ? function(std::true_type{}) : function(std::false_type{});
}

// The groups of a tile of 128 rows and 64 channels from `first` on that a thread owns, some at a time, so that their
// loads are in flight together: function(places, channels, exist). Those that do not exist repeat another one.
template <int kGroup, bool kAlongChannels, typename Function>
__device__ SF_INLINE void for_each_batch(const Rows& rows, const Rows::First& tile, int first, int channels,
                                         const Function& function) {
  constexpr int kGroups = kRows * kCopiedChannels / kGroup;
  constexpr int kPerRow = kCopiedChannels / kGroup, kPerChannel = kRows / kGroup;
  static_assert(kGroups % (kBatch * kTileThreads) == 0);
#pragma unroll 1
  for (int begin = threadIdx.x; begin < kGroups; begin += kBatch * kTileThreads) {
    Rows::Place places[kBatch];
    int of_channel[kBatch];
    bool exist[kBatch];
    if (kAlongChannels) {  // one group of channels, kBatch rows
      const int channel = first + begin % kPerRow * kGroup;
      if (channel >= channels) return;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = (begin + i * kTileThreads) / kPerRow;
        exist[i] = row < tile.left;
        places[i] = rows.at(tile, exist[i] ? row : 0);
        of_channel[i] = channel;
      }
    } else {  // one group of rows, kBatch channels
      const int row = begin % kPerChannel * kGroup;
      if (row >= tile.left) return;
      const Rows::Place place = rows.at(tile, row);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int channel = first + (begin + i * kTileThreads) / kPerChannel;
        exist[i] = channel < channels;
        places[i] = place;
        of_channel[i] = exist[i] ? channel : first;
      }
    }
    function(places, of_channel, exist);
  }
}

template <typename T>
struct SlowCopy {
  Frames<const T> slow, residual;
  Frames<T> output;
  Rows rows;
  int channels, channel_groups;
  bool has_residual, along_channels, wide;

  SlowCopy(const TensorView& from, const TensorView& shortcut, const TensorView& to)
      : slow(from),
        residual(shortcut.given() ? shortcut : from),
        output(to),
        rows(from),
        channels(static_cast<int>(from.size(1))),
        channel_groups((channels + kCopiedChannels - 1) / kCopiedChannels),
        has_residual(shortcut.given()),
        along_channels(is_channels_last_cuda(to)) {
    const TensorView first = channels_of(to, 0, channels);
    wide = can_widen(from, along_channels) && can_widen(shortcut, along_channels) && can_widen(first, along_channels);
  }
  int64_t blocks() const { return rows.tiles() * channel_groups; }

  template <int kGroup, bool kAlongChannels>
  __device__ void copy(int64_t block) const {
    using Acc = accumulator_t<T>;
    using Values = Group<T, kGroup>;
    const auto tile = rows.first(block / channel_groups * kRows);
    const int first = static_cast<int>(block % channel_groups) * kCopiedChannels;
    for_each_batch<kGroup, kAlongChannels>(
        rows, tile, first, channels, [&](const auto& places, const auto& of_channel, const auto& exist) {
          Values values[kBatch];
#pragma unroll
          for (int i = 0; i < kBatch; ++i)
            values[i] = *reinterpret_cast<const Values*>(slow.at(places[i], of_channel[i]));
          if (has_residual) {
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
              const Values other = *reinterpret_cast<const Values*>(residual.at(places[i], of_channel[i]));
#pragma unroll
              for (int j = 0; j < kGroup; ++j) {
                const T sum(static_cast<Acc>(values[i].values[j]) + static_cast<Acc>(other.values[j]));
                values[i].values[j] = static_cast<Acc>(sum) < 0 ? T(Acc(0)) : sum;  // a NaN stays, as in torch.relu
              }
            }
          }
#pragma unroll
          for (int i = 0; i < kBatch; ++i)
            if (exist[i]) *reinterpret_cast<Values*>(output.at(places[i], of_channel[i])) = values[i];
        });
  }
  __device__ void operator()(int64_t block) const {
    with_flag(along_channels, [&](auto along) { wide ? copy<kWide<T>, along>(block) : copy<1, along>(block); });
  }
};

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
