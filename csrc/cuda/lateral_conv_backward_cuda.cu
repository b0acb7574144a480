// CUDA backward of the lateral convolution, in both forms of the op (see lateral_conv_concat.h).
//
// A first kernel computes the gradient of the convolution's output from what the forward kept; where that is the
// gradient that came in, it is read as it is. The other gradients are matrix products (lateral_product.cuh) with it,
// and there are no atomics:
//
//   fast:    the alpha Fast frames at a Slow frame t are read by a few Slow frames t + r. Rows are positions at t, the
//            depth is (r, output channel), columns are (which of the alpha frames, Fast channel). Row o of the weight,
//            [K][Cf] in memory, is the same for every r but for a shift by alpha Cf. `scale` is in the weight.
//   weight:  a sum over all rows. Blocks take parts of them, a split that depends on the shapes only, and a second
//            kernel adds the parts in their order. A depth of ones gives the sums of the gradient.

#include "lateral_product.cuh"

namespace slowfast {
namespace {

constexpr int64_t kSumColumns = 32768;  // of all blocks that the gradient of weight is split among, on any GPU

// The gradient of the convolution's output.
template <typename T>
struct ConvGradient {
  using Acc = accumulator_t<T>;
  Frames<const T> grad, kept;
  Frames<T> to;
  const double *mean, *grad_mean, *grad_var;
  double count;
  Rows rows;
  int channels, channel_groups;
  bool centred;  // kept is conv (training form), or the output behind the ReLU
  bool along_channels, wide;

  ConvGradient(const LateralConvBackwardParams& p, const TensorView& result)
      : grad(p.grad),
        kept(p.conv.given() ? p.conv : p.output),
        to(result),
        mean(p.mean.as<const double>()),
        grad_mean(p.grad_mean.as<const double>()),
        grad_var(p.grad_var.as<const double>()),
        count(static_cast<double>(p.grad.size(0) * p.grad.size(2) * p.grad.size(3) * p.grad.size(4))),
        rows(p.grad),
        channels(static_cast<int>(p.grad.size(1))),
        channel_groups((channels + kCopiedChannels - 1) / kCopiedChannels),
        centred(p.conv.given()),
        along_channels(is_channels_last_cuda(p.grad)),
        wide(can_widen(p.grad, along_channels) && can_widen(p.conv, along_channels) &&
             can_widen(p.output, along_channels) && can_widen(result, along_channels)) {}
  int64_t blocks() const { return rows.tiles() * channel_groups; }

  struct ByChannel {
    Acc centre, multiply, add;
  };
  template <int kGroup, bool kAlongChannels>
  __device__ void run(int64_t block, ByChannel* by_channel) const {
    using Values = Group<T, kGroup>;
    const auto tile = rows.first(block / channel_groups * kRows);
    const int first = static_cast<int>(block % channel_groups) * kCopiedChannels;
    const int o = first + static_cast<int>(threadIdx.x);
    if (centred && threadIdx.x < kCopiedChannels && o < channels) {
      // What rounding takes from the mean goes into the constant.
      const Acc centre = static_cast<Acc>(mean[o]);
      const double multiply = 2 * grad_var[o] / count;
      const double add = grad_mean[o] / count + multiply * (centre - mean[o]);
      by_channel[threadIdx.x] = {centre, static_cast<Acc>(multiply), static_cast<Acc>(add)};
    }
    __syncthreads();
    for_each_batch<kGroup, kAlongChannels>(
        rows, tile, first, channels, [&](const auto& places, const auto& of_channel, const auto& exist) {
          Values values[kBatch], keeps[kBatch];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            values[i] = *reinterpret_cast<const Values*>(grad.at(places[i], of_channel[i]));
            keeps[i] = *reinterpret_cast<const Values*>(kept.at(places[i], of_channel[i]));
          }
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
#pragma unroll
            for (int j = 0; j < kGroup; ++j) {
              const Acc value = static_cast<Acc>(values[i].values[j]), keep = static_cast<Acc>(keeps[i].values[j]);
              Acc result = keep <= 0 ? Acc(0) : value;
              if (centred) {
                const ByChannel& by = by_channel[of_channel[i] - first + (kAlongChannels ? j : 0)];
                result = value + (by.add + by.multiply * (keep - by.centre));
              }
              values[i].values[j] = T(result);
            }
            if (exist[i]) *reinterpret_cast<Values*>(to.at(places[i], of_channel[i])) = values[i];
          }
        });
  }
};

template <typename T>
__global__ void __launch_bounds__(kTileThreads, 3) lateral_conv_gradient_kernel(const ConvGradient<T> gradient) {
  SF_DYNAMIC_SHARED(typename ConvGradient<T>::ByChannel, by_channel);
  with_flag(gradient.along_channels, [&](auto along) {
    gradient.wide ? gradient.template run<kWide<T>, along>(blockIdx.x, by_channel)
                  : gradient.template run<1, along>(blockIdx.x, by_channel);
  });
}

// The weight times `scale`, by output channel.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    lateral_conv_scaled_weight_kernel(const T* weight, const accumulator_t<T>* scale, int depth, int64_t count, T* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (i < count) to[i] = T(static_cast<accumulator_t<T>>(weight[i]) * scale[i / depth]);
}

template <typename T>
struct Backward {
  Frames<const T> gradient, fast;
  Frames<T> grad_fast;
  const T* weight;  // [Co][K][Cf]
  Rows rows;
  Divisor fast_channels, channels;
  int taps, alpha, slow_frames, depth;
  bool across, wide, fast_across, wide_fast, wide_weight;

  // `frames` is fast or its gradient.
  Backward(const LateralConvBackwardParams& p, const TensorView& gradient, const TensorView& frames, const T* weight)
      : gradient(gradient),
        fast(p.fast),
        grad_fast(frames),
        weight(weight),
        rows(p.grad),
        fast_channels(p.weight.size(1)),
        channels(p.weight.size(0)),
        taps(static_cast<int>(p.weight.size(2))),
        alpha(static_cast<int>(p.alpha)),
        slow_frames(static_cast<int>(p.grad.size(2))),
        depth(static_cast<int>(p.weight.size(1)) * taps),
        across(!is_channels_last_cuda(gradient)),
        wide(can_widen(gradient, !across)),
        fast_across(!is_channels_last_cuda(frames)),
        wide_fast(can_widen(frames, !fast_across)),
        wide_weight(p.weight.size(1) % kWide<T> == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0) {}

  // Columns of the gradient of fast, and where the first of them are in a row of the weight, for readers t + r.
  SF_HOST_DEVICE int columns() const { return alpha * static_cast<int>(fast_channels.value); }
  SF_HOST_DEVICE int shift(int r) const { return (taps / 2 - alpha * r) * static_cast<int>(fast_channels.value); }
};

// Adjacent blocks share rows.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, blocks_per_processor<T>(kColumns))
    lateral_conv_fast_backward_kernel(const Backward<T> b, int column_groups) {
  SF_DYNAMIC_SHARED(T, shared);
  const auto first = b.rows.first(static_cast<int64_t>(blockIdx.x / column_groups) * kRows);
  const int first_column = static_cast<int>(blockIdx.x % column_groups) * kColumns;
  const int channels = static_cast<int>(b.channels.value);
  // The readers of these columns: [first_reader, end_reader).
  int first_reader = -(b.taps / b.alpha), end_reader;
  while (first_column + b.shift(first_reader) >= b.depth) ++first_reader;
  for (end_reader = first_reader; first_column + kColumns + b.shift(end_reader) > 0;) ++end_reader;
  const int depth = (end_reader - first_reader) * channels;

  const auto gradient = matrix(
      b.gradient.data, b.slow_frames, b.wide,
      [&](int row) {
        if (row >= first.left) return kNowhere;
        const auto place = b.rows.at(first, row);
        return Along{b.gradient.offset(place.n, place.t, place.position), place.t};
      },
      [&](int k) {
        const int i = b.channels.quotient(k), r = first_reader + i;
        return k < depth ? Along{r * b.gradient.t + (k - i * channels) * b.gradient.c, r} : kNowhere;
      });
  const auto weight = matrix(
      b.weight, b.depth, b.wide_weight,
      [&](int column) {
        const int at = first_column + column;
        return at < b.columns() ? Along{at, at} : kNowhere;
      },
      [&](int k) {
        const int i = b.channels.quotient(k), shift = b.shift(first_reader + i);
        return k < depth ? Along{int64_t{k - i * channels} * b.depth + shift, shift} : kNowhere;
      });
  const auto to = matrix(
      b.grad_fast.data, 1, b.wide_fast,
      [&](int row) {
        if (row >= first.left) return kNowhere;
        const auto place = b.rows.at(first, row);
        return Along{b.grad_fast.offset(place.n, place.t * b.alpha, place.position), 0};
      },
      [&](int column) {
        const int at = first_column + column, frame = b.fast_channels.quotient(at);
        const int channel = at - frame * static_cast<int>(b.fast_channels.value);
        return at < b.columns() ? Along{frame * b.grad_fast.t + channel * b.grad_fast.c, 0} : kNowhere;
      });
  TileProduct<T, kColumns> product;
  with_flag(b.across,
            [&](auto across) { product.template run<across, true>(shared, depth, gradient, weight, [](T*) {}); });
  with_flag(b.fast_across, [&](auto across) { product.template store<across>(shared, to); });
}

// How the sum over all rows is split: blocks [part][128 of the depth][kColumns output channels].
struct WeightSplit {
  int depth, depth_groups, channel_groups;  // the depth has one more, of ones, where sums of the gradient are wanted
  int64_t rows_per_part, parts;

  WeightSplit(const LateralConvBackwardParams& p, int columns)
      : depth(static_cast<int>(p.weight.size(1) * p.weight.size(2)) + p.grad_shift.given()),
        depth_groups((depth + kRows - 1) / kRows),
        channel_groups((static_cast<int>(p.weight.size(0)) + columns - 1) / columns) {
    const int64_t rows = Rows(p.grad).count, groups = int64_t{depth_groups} * channel_groups;
    const int64_t wanted = groups * columns < kSumColumns ? kSumColumns / (groups * columns) : 1;
    const int64_t tiles = (rows + kRows - 1) / kRows;
    rows_per_part = (tiles + wanted - 1) / wanted * kRows;
    parts = rows > 0 ? (rows + rows_per_part - 1) / rows_per_part : 0;
  }
  int64_t blocks() const { return parts * depth_groups * channel_groups; }
};

// partials [part][depth][Co]: a part's gradient of weight, without the factor `scale`, and of shift.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, 2)
    lateral_conv_weight_backward_kernel(const Backward<T> b, const WeightSplit split, accumulator_t<T>* partials) {
  using Acc = accumulator_t<T>;
  using Product = TileProduct<T, kColumns>;
  SF_DYNAMIC_SHARED(T, shared);
  const int groups = split.depth_groups * split.channel_groups, group = static_cast<int>(blockIdx.x % groups);
  const int64_t part = blockIdx.x / groups;
  const int first_depth = group / split.channel_groups * kRows, first_channel = group % split.channel_groups * kColumns;
  const int channels = static_cast<int>(b.channels.value);
  const auto first = b.rows.first(part * split.rows_per_part);
  const int count = static_cast<int>(first.left < split.rows_per_part ? first.left : split.rows_per_part);

  const auto frames = matrix(
      b.fast.data, b.slow_frames * b.alpha, b.wide_fast,
      [&](int e) {
        const int d = first_depth + e, tap = b.fast_channels.quotient(d), frame = tap - b.taps / 2;
        const int channel = d - tap * static_cast<int>(b.fast_channels.value);
        return d < b.depth ? Along{frame * b.fast.t + channel * b.fast.c, frame} : kNowhere;
      },
      [&](int row) {
        if (row >= count) return kNowhere;
        const auto place = b.rows.at(first, row);
        const int frame = place.t * b.alpha;
        return Along{b.fast.offset(place.n, frame, place.position), frame};
      });
  const auto gradient = matrix(
      b.gradient.data, 1, b.wide,
      [&](int column) {
        const int channel = first_channel + column;
        return channel < channels ? Along{channel * b.gradient.c, 0} : kNowhere;
      },
      [&](int row) {
        if (row >= count) return kNowhere;
        const auto place = b.rows.at(first, row);
        return Along{b.gradient.offset(place.n, place.t, place.position), 0};
      });

  Product product;
  with_flag(!b.fast_across, [&](auto fast_across) {
    using Groups = typename Product::template A<fast_across>::Groups;
    const auto add_ones = [&](T* stage) {
      if (first_depth + kRows <= b.depth || split.depth == b.depth) return;
#pragma unroll 1
      for (int i = 0; i < Groups::kGroups * kWide<T>; ++i) {
        const int at = i / kWide<T>, j = i % kWide<T>;
        if (first_depth + Groups::first(at) + (fast_across ? j : 0) == b.depth)
          stage[Groups::place(at) + j] = T(Acc(1));
      }
    };
    with_flag(!b.across, [&](auto across) {
      product.template run<fast_across, across>(shared, count, frames, gradient, add_ones);
    });
  });
  product.for_each([&](Acc sum, int row, int column) {
    const int d = first_depth + row, o = first_channel + column;
    if (d < split.depth && o < channels) partials[(part * split.depth + d) * channels + o] = sum;
  });
}

template <typename T>
struct JoinWeight {
  using Acc = accumulator_t<T>;
  Acc* partials;
  int64_t parts;
  int shares;  // of a block's threads in an element, a power of two
  int channels, fast_channels, depth;
  const T* weight;
  const Acc* scale;
  T* grad_weight;
  int64_t stride_o, stride_c, stride_k;
  Acc *grad_scale, *grad_shift;
};

// Adds the parts, whose elements are [depth][Co]: the threads of a block share 256 / shares elements. The unscaled sums
// take the place of the first part.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) lateral_conv_weight_backward_join_kernel(const JoinWeight<T> j) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(Acc, scratch);
  const int lanes = kTileThreads / j.shares, lane = threadIdx.x % lanes, share = threadIdx.x / lanes;
  const int64_t all = int64_t{j.depth + (j.grad_shift != nullptr)} * j.channels;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * lanes + lane;
  Acc sum = 0;
  if (element < all)
#pragma unroll 8
    for (int64_t part = share; part < j.parts; part += j.shares) sum += j.partials[part * all + element];
  scratch[threadIdx.x] = sum;
  __syncthreads();
  if (share != 0 || element >= all) return;
  for (int i = 1; i < j.shares; ++i) sum += scratch[i * lanes + lane];
  const int d = static_cast<int>(element / j.channels), o = static_cast<int>(element % j.channels);
  if (d == j.depth) {
    j.grad_shift[o] = sum;
    return;
  }
  if (j.grad_scale != nullptr && j.parts > 0) j.partials[element] = sum;
  T* to = j.grad_weight + o * j.stride_o + d % j.fast_channels * j.stride_c + d / j.fast_channels * j.stride_k;
  *to = T(j.scale != nullptr ? sum * j.scale[o] : sum);
}

// One output channel a block. The convolution is linear in weight: the gradient of scale is the product of weight and
// its unscaled gradient.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) lateral_conv_scale_backward_kernel(const JoinWeight<T> j) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(Acc, scratch);
  const int64_t o = blockIdx.x;
  Acc product = 0;
  if (j.parts > 0)
    for (int d = threadIdx.x; d < j.depth; d += kTileThreads)
      product += j.partials[int64_t{d} * j.channels + o] * static_cast<Acc>(j.weight[o * j.depth + d]);
  product = block_sum(product, scratch);
  if (threadIdx.x == 0) j.grad_scale[o] = product;
}

// What the kernels keep from one to the next; in bytes from the workspace's beginning, which torch aligns.
struct Workspace {
  TensorView gradient;  // of the convolution's output: the one that came in, or in the workspace
  bool computes_gradient;
  int64_t weight = 0, partials = 0, size = 0;

  Workspace(const LateralConvBackwardParams& p, void* begin)
      : gradient(p.grad), computes_gradient(p.conv.given() || p.output.given()) {
    const int64_t element = size_of(p.grad.dtype), wide = p.grad.dtype == DType::kFloat64 ? 8 : 4;
    const auto take = [&](int64_t bytes) {
      const int64_t from = size;
      size += (bytes + 15) / 16 * 16;
      return from;
    };
    if (computes_gradient) {
      gradient.data = static_cast<char*>(begin) + take(p.grad.numel() * element);
      const int64_t channels = p.grad.size(1);
      const bool along_channels = is_channels_last_cuda(p.grad);
      int64_t stride = along_channels ? channels : 1;
      for (int dim = 4; dim > 1; --dim) gradient.strides[dim] = stride, stride *= gradient.sizes[dim];
      gradient.strides[1] = along_channels ? 1 : stride;
      gradient.strides[0] = along_channels ? stride : stride * channels;
    }
    if (p.scale.given() && p.grad_fast.given()) weight = take(p.weight.numel() * element);
    if (p.grad_weight.given())
      dispatch_floating_cuda(p.grad.dtype, "lateral_conv_backward", [&](auto tag) {
        with_columns<typename decltype(tag)::type>(p.weight.size(0), [&](auto columns) {
          const WeightSplit split(p, columns);
          partials = take(split.parts * split.depth * p.weight.size(0) * wide);
        });
      });
  }
};

}  // namespace

int64_t lateral_conv_backward_workspace_cuda(const LateralConvBackwardParams& p) {
  return Workspace(p, nullptr).size / (p.grad.dtype == DType::kFloat64 ? 8 : 4);
}

void lateral_conv_backward_cuda(const LateralConvBackwardParams& p, void* workspace, int device, void* stream) {
  const DeviceGuard guard(device);
  const Workspace places(p, workspace);
  dispatch_floating_cuda(p.grad.dtype, "lateral_conv_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    const int64_t channels = p.weight.size(0);
    const auto at = [&](int64_t offset) { return static_cast<char*>(workspace) + offset; };
    if (places.computes_gradient && p.grad.numel() > 0) {
      const ConvGradient<T> gradient(p, places.gradient);
      SF_LAUNCH(lateral_conv_gradient_kernel<T>, grid_of(gradient.blocks()), dim3(kTileThreads),
                kCopiedChannels * sizeof(typename ConvGradient<T>::ByChannel), stream, gradient);
    }
    if (p.grad_fast.given() && p.grad_fast.numel() > 0) {
      const T* weight = p.weight.as<const T>();
      if (p.scale.given()) {
        T* scaled = reinterpret_cast<T*>(at(places.weight));
        const int64_t count = p.weight.numel();
        SF_LAUNCH(lateral_conv_scaled_weight_kernel<T>, grid_of((count + kTileThreads - 1) / kTileThreads),
                  dim3(kTileThreads), 0, stream, weight, p.scale.as<const Acc>(), static_cast<int>(count / channels),
                  count, scaled);
        weight = scaled;
      }
      const Backward<T> b(p, places.gradient, p.grad_fast, weight);
      with_columns<T>(b.columns(), [&](auto columns) {
        constexpr int kColumns = columns;
        const int groups = (b.columns() + kColumns - 1) / kColumns;
        SF_LAUNCH((lateral_conv_fast_backward_kernel<T, kColumns>), grid_of(b.rows.tiles() * groups),
                  dim3(kTileThreads), (TileProduct<T, kColumns>::kSharedBytes), stream, b, groups);
      });
    }
    if (!p.grad_weight.given()) return;
    Acc* partials = reinterpret_cast<Acc*>(at(places.partials));
    const Backward<T> b(p, places.gradient, p.fast, p.weight.as<const T>());
    with_columns<T>(channels, [&](auto columns) {
      constexpr int kColumns = columns;
      const WeightSplit split(p, kColumns);
      if (split.parts > 0)
        SF_LAUNCH((lateral_conv_weight_backward_kernel<T, kColumns>), grid_of(split.blocks()), dim3(kTileThreads),
                  (TileProduct<T, kColumns>::kSharedBytes), stream, b, split, partials);
      int shares = 1;
      while (shares < 32 && shares * 8 < split.parts) shares *= 2;
      const JoinWeight<T> join{partials,
                               split.parts,
                               shares,
                               static_cast<int>(channels),
                               static_cast<int>(p.weight.size(1)),
                               b.depth,
                               b.weight,
                               p.scale.as<const Acc>(),
                               p.grad_weight.as<T>(),
                               p.grad_weight.stride(0),
                               p.grad_weight.stride(1),
                               p.grad_weight.stride(2),
                               p.grad_scale.as<Acc>(),
                               p.grad_shift.as<Acc>()};
      const int64_t lanes = kTileThreads / shares;
      SF_LAUNCH(lateral_conv_weight_backward_join_kernel<T>, grid_of((split.depth * channels + lanes - 1) / lanes),
                dim3(kTileThreads), kTileThreads * sizeof(Acc), stream, join);
      if (join.grad_scale != nullptr)
        SF_LAUNCH(lateral_conv_scale_backward_kernel<T>, grid_of(channels), dim3(kTileThreads),
                  kTileThreads * sizeof(Acc), stream, join);
    });
  });
}

}  // namespace slowfast
