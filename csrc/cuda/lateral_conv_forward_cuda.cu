// CUDA forward kernels of lateral_conv_concat: the inference form, and the training form's convolution with statistics.
//
// A tile of the convolution is a matrix product, positions x (tap, Fast channel) x output channels (lateral_tile.cuh):
// eight Fast channels alone would leave the tensor cores idle. Frames that no tap reaches are not read. The product is
// scaled, shifted, rectified and written next to the Slow channels, which further blocks of the same launch copy; or it
// is measured and written as it is, and a second kernel joins the measurements of the tiles in their order.
//
// weight is [Co][K][Cf] in memory (native.py sees to it), so that the depth is contiguous.

#include "lateral_tile.cuh"

namespace slowfast {
namespace {

template <typename T>
struct Convolution {
  Frames<const T> fast;
  const T* weight;
  LateralTaps taps;
  int64_t fast_channels, channels, depth, groups;  // groups of 64 output channels
  bool along_channels, wide_frames, wide_weight;
  Tiles tiles;

  Convolution(const TensorView& frames, const TensorView& weights, const TensorView& output, int64_t alpha)
      : fast(frames),
        weight(weights.as<const T>()),
        taps(weights, alpha, output.size(2)),
        fast_channels(weights.size(1)),
        channels(weights.size(0)),
        depth(fast_channels * weights.size(2)),
        groups((channels + kTile - 1) / kTile),
        along_channels(is_channels_last_cuda(frames)),
        wide_frames(sizeof(T) == 2 && can_widen(frames, true)),
        wide_weight(sizeof(T) == 2 && depth % kWide<T> == 0 && reinterpret_cast<uintptr_t>(weights.data) % 16 == 0),
        tiles(output) {}
  int64_t blocks() const { return tiles.count * groups; }

  // The product of tile block / groups and output channels 64 (block % groups) on; in shared memory.
  __device__ void product(int64_t block, void* shared) const {
    T* a = static_cast<T*>(shared);
    T* b = a + kTile * kStep<T>;
    const Tiles::Tile tile = tiles[block / groups];
    const int64_t first_channel = block % groups * kTile;
    const auto frame_at = [&](int p, int64_t d) -> const T* {
      if (p >= tile.count || d >= depth) return nullptr;
      const int64_t frame = taps.fast_frame(tile.t, d / fast_channels);
      if (frame < 0 || frame >= taps.fast_frames()) return nullptr;
      return fast.at(tile.n, d % fast_channels, frame, tile.first + p);
    };
    const auto weight_at = [&](int o, int64_t d) -> const T* {
      return first_channel + o < channels && d < depth ? weight + (first_channel + o) * depth + d : nullptr;
    };
    const auto value_of = [](const T* from) { return from != nullptr ? *from : T(accumulator_t<T>(0)); };
    TileProduct<T> result;
    for (int64_t first = 0; first < depth; first += kDepth) {
      __syncthreads();
      if constexpr (sizeof(T) == 2) {
        if (wide_frames) fill_operand_wide(a, [&](int p, int k) { return frame_at(p, first + k); });
        if (wide_weight) fill_operand_wide(b, [&](int o, int k) { return weight_at(o, first + k); });
      }
      if (!wide_frames) fill_operand(a, along_channels, [&](int p, int k) { return value_of(frame_at(p, first + k)); });
      if (!wide_weight) fill_operand(b, true, [&](int o, int k) { return value_of(weight_at(o, first + k)); });
      __syncthreads();
      result.add(a, b);
    }
    result.store(static_cast<accumulator_t<T>*>(shared));
  }
};

template <typename T>
struct Epilogue {
  using Acc = accumulator_t<T>;
  const Acc* scale;
  const Acc* shift;
  Frames<T> output;
  bool relu, along_channels, wide;

  __device__ T value(Acc x, int64_t channel) const {
    if (scale != nullptr) x *= scale[channel];
    if (shift != nullptr) x += shift[channel];
    return T(relu && x < 0 ? Acc(0) : x);  // a NaN stays
  }

  template <int kGroup>
  __device__ void write(const Convolution<T>& conv, int64_t block, const Acc* product) const {
    const Tiles::Tile tile = conv.tiles[block / conv.groups];
    const int64_t first = block % conv.groups * kTile;
    for_each_group<kGroup>(along_channels, first, conv.channels, tile, [&](int64_t c, int64_t p) {
      const Acc* from = product + (p - tile.first) * kProductStride + (c - first);
      Group<T, kGroup> group;
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        group.values[i] = value(from[along_channels ? i : i * kProductStride], along_channels ? c + i : c);
      *reinterpret_cast<Group<T, kGroup>*>(output.at(tile.n, c, tile.t, p)) = group;
    });
  }
  __device__ void operator()(const Convolution<T>& conv, int64_t block, const Acc* product) const {
    wide ? write<kWide<T>>(conv, block, product) : write<1>(conv, block, product);
  }
};

template <typename T>
Epilogue<T> make_epilogue(const TensorView& scale, const TensorView& shift, const TensorView& output, bool relu) {
  using Acc = accumulator_t<T>;
  const bool along_channels = is_channels_last_cuda(output);
  return {scale.as<const Acc>(), shift.as<const Acc>(),
          Frames<T>(output),     relu,
          along_channels,        can_widen(output, along_channels)};
}

// The first blocks make the lateral channels, the others copy the Slow ones: the last ones to run are short.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    lateral_conv_concat_forward_kernel(const Convolution<T> conv, const Epilogue<T> epilogue, const SlowCopy<T> slow,
                                       int64_t convolving) {
  SF_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t block = blockIdx.x;
  if (block >= convolving) {
    slow(block - convolving);
    return;
  }
  conv.product(block, shared);
  epilogue(conv, block, reinterpret_cast<const accumulator_t<T>*>(shared));
}

// partials [2][Co][tiles]: mean and sum of squared deviations of each tile.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    lateral_conv_statistics_forward_kernel(const Convolution<T> conv, const Epilogue<T> epilogue, double* partials) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t block = blockIdx.x, tile = block / conv.groups, channel = block % conv.groups * kTile + threadIdx.x;
  conv.product(block, shared);
  const Acc* product = reinterpret_cast<const Acc*>(shared);
  epilogue(conv, block, product);
  if (threadIdx.x >= kTile || channel >= conv.channels) return;
  // About a first mean that is nearly right, so that nothing cancels and the mean is exact to a part of the deviation.
  const int count = conv.tiles[tile].count;
  Acc centre = 0, sum = 0, squares = 0;
  for (int p = 0; p < count; ++p) centre += product[p * kProductStride + threadIdx.x];
  centre /= static_cast<Acc>(count);
  for (int p = 0; p < count; ++p) {
    const Acc difference = product[p * kProductStride + threadIdx.x] - centre;
    sum += difference;
    squares += difference * difference;
  }
  const double correction = static_cast<double>(sum) / count, deviation = squares - sum * correction;
  partials[channel * conv.tiles.count + tile] = centre + correction;
  partials[(channel + conv.channels) * conv.tiles.count + tile] = deviation < 0 ? 0 : deviation;
}

// One channel a block: the statistics of all values out of those of the tiles; 0 if there are none.
__global__ void __launch_bounds__(kTileThreads)
    lateral_conv_statistics_join_kernel(const double* partials, Tiles tiles, double* mean, double* var) {
  SF_DYNAMIC_SHARED(double, scratch);
  const int64_t channel = blockIdx.x;
  const double* means = partials + channel * tiles.count;
  const double* deviations = means + gridDim.x * tiles.count;
  double total = 0, count = 0;
  for (int64_t i = threadIdx.x; i < tiles.count; i += kTileThreads) {
    total += means[i] * tiles[i].count;
    count += tiles[i].count;
  }
  total = block_sum(total, scratch);
  count = block_sum(count, scratch);
  const double average = count > 0 ? total / count : 0;
  double deviation = 0;
  for (int64_t i = threadIdx.x; i < tiles.count; i += kTileThreads) {
    const double difference = means[i] - average;
    deviation += deviations[i] + difference * difference * tiles[i].count;
  }
  deviation = block_sum(deviation, scratch);
  if (threadIdx.x == 0) {
    mean[channel] = average;
    var[channel] = count > 0 ? deviation / count : 0;
  }
}

}  // namespace

void lateral_conv_concat_forward_cuda(const LateralConvConcatParams& p, int device, void* stream) {
  if (p.output.numel() == 0) return;
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.fast.dtype, "lateral_conv_concat", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const TensorView lateral = channels_of(p.output, p.slow.size(1), p.weight.size(0));
    const Convolution<T> conv(p.fast, p.weight, lateral, p.alpha);
    const Epilogue<T> epilogue = make_epilogue<T>(p.scale, p.shift, lateral, p.relu);
    const SlowCopy<T> slow(p.slow, p.residual, p.output);
    SF_LAUNCH(lateral_conv_concat_forward_kernel<T>, grid_of(conv.blocks() + slow.blocks()), dim3(kTileThreads),
              TileProduct<T>::kSharedBytes, stream, conv, epilogue, slow, conv.blocks());
  });
}

int64_t lateral_conv_statistics_workspace_cuda(const LateralConvStatisticsParams& p) {
  return 2 * p.weight.size(0) * Tiles(p.conv).count;
}

void lateral_conv_statistics_cuda(const LateralConvStatisticsParams& p, void* workspace, int device, void* stream) {
  const DeviceGuard guard(device);
  double* partials = static_cast<double*>(workspace);
  dispatch_floating_cuda(p.fast.dtype, "lateral_conv_statistics", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Convolution<T> conv(p.fast, p.weight, p.conv, p.alpha);
    if (conv.blocks() > 0)
      SF_LAUNCH(lateral_conv_statistics_forward_kernel<T>, grid_of(conv.blocks()), dim3(kTileThreads),
                TileProduct<T>::kSharedBytes, stream, conv, make_epilogue<T>({}, {}, p.conv, false), partials);
  });
  SF_LAUNCH(lateral_conv_statistics_join_kernel, grid_of(p.weight.size(0)), dim3(kTileThreads),
            kTileThreads * sizeof(double), stream, partials, Tiles(p.conv), p.mean.as<double>(), p.var.as<double>());
}

}  // namespace slowfast
