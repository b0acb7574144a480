// CUDA forward kernels of lateral_conv_concat: the inference form, and the training form's convolution with statistics.
//
// The convolution is a matrix product, rows x (tap, Fast channel) x output channels (lateral_product.cuh): eight Fast
// channels alone would leave the tensor cores idle. Frames that no tap reaches are not read. The product is scaled,
// shifted, rectified and written next to the Slow channels, which further blocks of the same launch copy; or it is
// measured and written as it is, and a second kernel joins the measurements of the tiles in their order.
//
// weight is [Co][K][Cf] in memory (native.py sees to it), so that the depth is contiguous.

#include "lateral_product.cuh"

namespace slowfast {
namespace {

template <typename T>
struct Convolution {
  using Acc = accumulator_t<T>;
  Frames<const T> fast;
  const T* weight;
  Frames<T> output;
  Rows rows;
  Divisor fast_channels;
  int taps, alpha, fast_frames, channels, depth;
  bool across, wide_fast, wide_weight, output_across, wide_output;

  Convolution(const TensorView& frames, const TensorView& weights, const TensorView& to, int64_t alpha)
      : fast(frames),
        weight(weights.as<const T>()),
        output(to),
        rows(to),
        fast_channels(weights.size(1)),
        taps(static_cast<int>(weights.size(2))),
        alpha(static_cast<int>(alpha)),
        fast_frames(static_cast<int>(frames.size(2))),
        channels(static_cast<int>(weights.size(0))),
        depth(static_cast<int>(weights.size(1)) * taps),
        across(!is_channels_last_cuda(frames)),
        wide_fast(can_widen(frames, !across)),
        wide_weight(depth % kWide<T> == 0 && reinterpret_cast<uintptr_t>(weights.data) % 16 == 0),
        output_across(!is_channels_last_cuda(to)),
        wide_output(can_widen(to, !output_across)) {}

  int64_t blocks(int columns) const { return rows.tiles() * column_groups(columns); }
  SF_HOST_DEVICE int column_groups(int columns) const { return (channels + columns - 1) / columns; }
};

// The product of one tile: rows `block / groups` x 128 on, output channels `block % groups` x kColumns on.
template <typename T, int kColumns>
struct ConvolvedTile {
  using Product = TileProduct<T, kColumns>;

  const Convolution<T>& conv;
  int64_t index;
  Rows::First first;
  int first_channel;
  Product product;

  __device__ ConvolvedTile(const Convolution<T>& conv, int64_t block, T* shared)
      : conv(conv),
        index(block / conv.column_groups(kColumns)),
        first(conv.rows.first(index * kRows)),
        first_channel(static_cast<int>(block % conv.column_groups(kColumns)) * kColumns) {
    const auto frames = matrix(
        conv.fast.data, conv.fast_frames, conv.wide_fast,
        [&](int row) {
          if (row >= first.left) return kNowhere;
          const auto place = conv.rows.at(first, row);
          const int frame = place.t * conv.alpha;
          return Along{conv.fast.offset(place.n, frame, place.position), frame};
        },
        [&](int d) {
          const int tap = conv.fast_channels.quotient(d), frame = tap - conv.taps / 2;
          const int channel = d - tap * static_cast<int>(conv.fast_channels.value);
          return d < conv.depth ? Along{frame * conv.fast.t + channel * conv.fast.c, frame} : kNowhere;
        });
    const auto weights = matrix(
        conv.weight, 1, conv.wide_weight,
        [&](int column) {
          const int64_t channel = first_channel + column;
          return channel < conv.channels ? Along{channel * conv.depth, 0} : kNowhere;
        },
        [&](int d) { return d < conv.depth ? Along{d, 0} : kNowhere; });
    with_flag(conv.across, [&](auto across) {
      product.template run<across, false>(shared, conv.depth, frames, weights, [](T*) {});
    });
  }

  __device__ void store(T* shared) {
    const auto to = matrix(
        conv.output.data, 1, conv.wide_output,
        [&](int row) {
          if (row >= first.left) return kNowhere;
          const auto place = conv.rows.at(first, row);
          return Along{conv.output.offset(place.n, place.t, place.position), 0};
        },
        [&](int column) {
          const int channel = first_channel + column;
          return channel < conv.channels ? Along{channel * conv.output.c, 0} : kNowhere;
        });
    with_flag(conv.output_across, [&](auto across) { product.template store<across>(shared, to); });
  }
};

template <typename Acc>
struct Epilogue {
  const Acc* scale;
  const Acc* shift;
  bool relu;
};

// Blocks that convolve alternate with ones that copy, as long as there are both: the former wait for the tensor cores
// while the latter wait for memory.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, blocks_per_processor<T>(kColumns))
    lateral_conv_concat_forward_kernel(const Convolution<T> conv, const Epilogue<accumulator_t<T>> epilogue,
                                       const SlowCopy<T> slow, unsigned convolving, unsigned copying) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(T, shared);
  const unsigned block = blockIdx.x, pairs = convolving < copying ? convolving : copying;
  const bool paired = block / 2 < pairs;
  if (paired ? block % 2 == 1 : convolving == pairs) return slow(paired ? block / 2 : block - pairs);

  ConvolvedTile<T, kColumns> tile(conv, paired ? block / 2 : block - pairs, shared);
  tile.product.for_each([&](Acc& sum, int, int column) {
    const int channel = tile.first_channel + column;
    if (channel >= conv.channels) return;
    if (epilogue.scale != nullptr) sum *= epilogue.scale[channel];
    if (epilogue.shift != nullptr) sum += epilogue.shift[channel];
    if (epilogue.relu && sum < 0) sum = 0;  // a NaN stays
  });
  tile.store(shared);
}

// partials [2][Co][tiles]: mean and sum of squared deviations of each tile.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, blocks_per_processor<T>(kColumns))
    lateral_conv_statistics_forward_kernel(const Convolution<T> conv, double* partials) {
  using Acc = accumulator_t<T>;
  using Product = TileProduct<T, kColumns>;
  SF_DYNAMIC_SHARED(T, shared);
  ConvolvedTile<T, kColumns> tile(conv, blockIdx.x, shared);
  const int count = tile.first.left < kRows ? static_cast<int>(tile.first.left) : kRows;
  // About a first mean that is nearly right, so that nothing cancels and the mean is exact to a part of the deviation.
  Acc* scratch = reinterpret_cast<Acc*>(shared);
  tile.product.sum_columns(scratch, [](Acc value, int, int) { return value; });  // rows past the last are zero
  Acc* centres = scratch + Product::kRowParts * kColumns;
  if (threadIdx.x < kColumns)
    centres[threadIdx.x] = Product::column_sum(scratch, threadIdx.x) / static_cast<Acc>(count);
  __syncthreads();
  const auto difference = [&](Acc value, int row, int column) {
    return row < count ? value - centres[column] : Acc(0);
  };
  Acc* squares = centres + kColumns;
  tile.product.sum_columns(scratch, difference);
  tile.product.sum_columns(squares, [&](Acc value, int row, int column) {
    const Acc x = difference(value, row, column);
    return x * x;
  });
  const int channel = tile.first_channel + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kColumns && channel < conv.channels) {
    const double sum = Product::column_sum(scratch, threadIdx.x), correction = sum / count;
    const double deviation = Product::column_sum(squares, threadIdx.x) - sum * correction;
    const int64_t tiles = conv.rows.tiles();
    partials[channel * tiles + tile.index] = centres[threadIdx.x] + correction;
    partials[(channel + conv.channels) * tiles + tile.index] = deviation < 0 ? 0 : deviation;
  }
  __syncthreads();
  tile.store(shared);
}

// One channel a block: the statistics of all values out of those of the tiles; 0 if there are none.
__global__ void __launch_bounds__(kTileThreads)
    lateral_conv_statistics_join_kernel(const double* partials, int64_t tiles, int64_t rows, double* mean,
                                        double* var) {
  SF_DYNAMIC_SHARED(double, scratch);
  const int64_t channel = blockIdx.x;
  const double* means = partials + channel * tiles;
  const double* deviations = means + gridDim.x * tiles;
  const auto count = [&](int64_t tile) { return tile + 1 < tiles ? kRows : static_cast<int>(rows - tile * kRows); };
  double total = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kTileThreads) total += means[i] * count(i);
  const double average = rows > 0 ? block_sum(total, scratch) / rows : 0;
  double deviation = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kTileThreads) {
    const double difference = means[i] - average;
    deviation += deviations[i] + difference * difference * count(i);
  }
  deviation = block_sum(deviation, scratch);
  if (threadIdx.x == 0) {
    mean[channel] = average;
    var[channel] = rows > 0 ? deviation / rows : 0;
  }
}

}  // namespace

void lateral_conv_concat_forward_cuda(const LateralConvConcatParams& p, int device, void* stream) {
  if (p.output.numel() == 0) return;
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.fast.dtype, "lateral_conv_concat", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    const Convolution<T> conv(p.fast, p.weight, channels_of(p.output, p.slow.size(1), p.weight.size(0)), p.alpha);
    const Epilogue<Acc> epilogue{p.scale.as<const Acc>(), p.shift.as<const Acc>(), p.relu};
    const SlowCopy<T> slow(p.slow, p.residual, p.output);
    with_columns<T>(conv.channels, [&](auto columns) {
      constexpr int kColumns = columns;
      const int64_t convolving = conv.blocks(kColumns), copying = slow.blocks();
      SF_LAUNCH((lateral_conv_concat_forward_kernel<T, kColumns>), grid_of(convolving + copying), dim3(kTileThreads),
                (TileProduct<T, kColumns>::kSharedBytes), stream, conv, epilogue, slow,
                static_cast<unsigned>(convolving), static_cast<unsigned>(copying));
    });
  });
}

int64_t lateral_conv_statistics_workspace_cuda(const LateralConvStatisticsParams& p) {
  return 2 * p.weight.size(0) * Rows(p.conv).tiles();
}

void lateral_conv_statistics_cuda(const LateralConvStatisticsParams& p, void* workspace, int device, void* stream) {
  const DeviceGuard guard(device);
  double* partials = static_cast<double*>(workspace);
  const Rows rows(p.conv);
  if (rows.count > 0)
    dispatch_floating_cuda(p.fast.dtype, "lateral_conv_statistics", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const Convolution<T> conv(p.fast, p.weight, p.conv, p.alpha);
      with_columns<T>(conv.channels, [&](auto columns) {
        constexpr int kColumns = columns;
        SF_LAUNCH((lateral_conv_statistics_forward_kernel<T, kColumns>), grid_of(conv.blocks(kColumns)),
                  dim3(kTileThreads), (TileProduct<T, kColumns>::kSharedBytes), stream, conv, partials);
      });
    });
  SF_LAUNCH(lateral_conv_statistics_join_kernel, grid_of(p.weight.size(0)), dim3(kTileThreads),
            kTileThreads * sizeof(double), stream, partials, rows.tiles(), rows.count, p.mean.as<double>(),
            p.var.as<double>());
}

}  // namespace slowfast
