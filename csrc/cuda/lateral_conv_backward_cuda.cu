// CUDA backward of the lateral convolution, in both forms of the op (see lateral_conv_concat.h).
//
// The gradient of the convolution's output is never stored: it is computed from what the forward kept, in shared
// memory, when the operands of a matrix product have arrived there. Both gradients are such products
// (lateral_product.cuh), and there are no atomics:
//
//   fast:    the alpha Fast frames at a Slow frame t are read by a few Slow frames t + r. Rows are positions at t, the
//            depth is (r, output channel), columns are (which of the alpha frames, Fast channel). Row o of the weight,
//            [K][Cf] in memory, is the same for every r but for a shift by alpha Cf.
//   weight:  a sum over all rows. Blocks take parts of them, a split that depends on the shapes only, and a second
//            kernel adds the parts in their order. A depth of ones gives the sums of the gradient.

#include "lateral_product.cuh"

namespace slowfast {
namespace {

constexpr int kStages = 2, kBlocksPerProcessor = 2;
constexpr int64_t kSumColumns = 32768;  // of all blocks that the gradient of weight is split among, on any GPU

int64_t padded(int64_t channels) { return (channels + 7) / 8 * 8; }

// What the gradient of the convolution's output takes from each channel, rounded once: rows of padded(Co) in workspace.
enum Coefficient { kScale, kCentre, kMultiply, kAdd, kCoefficients };

template <typename Acc>
struct Channels {
  const Acc* scale;  // nullptr: without it
  const double *mean, *grad_mean, *grad_var;
  double count;
  int channels, stride;
};

template <typename Acc>
__global__ void lateral_conv_coefficients_kernel(const Channels<Acc> c, Acc* to) {
  const int o = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (o >= c.stride) return;
  const bool real = o < c.channels, centred = real && c.mean != nullptr;
  // What rounding takes from the mean goes into the constant.
  const Acc centre = centred ? static_cast<Acc>(c.mean[o]) : Acc(0);
  const double multiply = centred ? 2 * c.grad_var[o] / c.count : 0;
  const double add = centred ? c.grad_mean[o] / c.count + multiply * (centre - c.mean[o]) : 0;
  to[kScale * c.stride + o] = real && c.scale != nullptr ? c.scale[o] : Acc(1);
  to[kCentre * c.stride + o] = centre;
  to[kMultiply * c.stride + o] = static_cast<Acc>(multiply);
  to[kAdd * c.stride + o] = static_cast<Acc>(add);
}

// The gradient of the convolution's output. It is loaded as it came, next to what was kept, and completed in place.
template <typename T>
struct ConvGradient {
  using Acc = accumulator_t<T>;
  Frames<const T> grad, kept;
  const Acc* coefficients;
  Rows rows;
  int channels, stride;
  bool scaled, has_kept, centred;  // kept is conv (training form), or the output behind the ReLU
  bool along_channels, wide;

  ConvGradient(const LateralConvBackwardParams& p, const Acc* coefficients, bool scaled)
      : grad(p.grad),
        kept(p.conv.given()     ? p.conv
             : p.output.given() ? p.output
                                : p.grad),
        coefficients(coefficients),
        rows(p.grad),
        channels(static_cast<int>(p.grad.size(1))),
        stride(static_cast<int>(padded(channels))),
        scaled(scaled && p.scale.given()),
        has_kept(p.conv.given() || p.output.given()),
        centred(p.conv.given()),
        along_channels(is_channels_last_cuda(p.grad)),
        wide(can_widen(p.grad, along_channels) && can_widen(p.conv, along_channels) &&
             can_widen(p.output, along_channels)) {}

  // Completes the groups of an operand that the thread itself loaded; channel_of(first, second) of an element.
  template <typename Operand, typename Source, typename ChannelOf>
  __device__ SF_INLINE void finish(T* grads, const T* keeps, const Operand& operand, const Source& from, int begin,
                                   const ChannelOf& channel_of) const {
    if (!scaled && !has_kept) return;
    if (wide) {
      operand.for_each_group(from, begin, [&](int group, const Along& x, const Along& y) {
        if (!from.has(x, y)) return;  // it is zero
        const int channel = channel_of(Operand::first(group), begin + Operand::second(group));
        constexpr int kAtOnce = 16 / sizeof(Acc);  // whose coefficients are loaded together
#pragma unroll
        for (int j = 0; j < kWide<T>; j += kAtOnce) {
          const int at = Operand::Groups::place(group) + j;
          if (along_channels)
            complete<kAtOnce, kAtOnce>(grads + at, keeps + at, channel + j);
          else
            complete<kAtOnce, 1>(grads + at, keeps + at, channel);
        }
      });
    } else if (Operand::any()) {
#pragma unroll 1
      for (int group = 0; group < Operand::kGroups; ++group)
        Operand::for_each_element(from, begin, group, [&](int j, int first, int second, const T* element) {
          const int at = Operand::Groups::place(group) + j;
          if (element != nullptr) complete<1, 1>(grads + at, keeps + at, channel_of(first, begin + second));
        });
    }
  }

 private:
  // For kCount elements of kChannels adjacent channels, or of one.
  template <int kCount, int kChannels>
  __device__ SF_INLINE void complete(T* grads, const T* keeps, int channel) const {
    using Values = Group<T, kCount>;
    Values values = *reinterpret_cast<Values*>(grads), others;
    if (has_kept) others = *reinterpret_cast<const Values*>(keeps);
    const auto row = [&](Coefficient i) {
      return *reinterpret_cast<const Group<Acc, kChannels>*>(coefficients + i * stride + channel);
    };
    Acc results[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) results[j] = static_cast<Acc>(values.values[j]);
    if (centred) {
      const auto centre = row(kCentre), multiply = row(kMultiply), add = row(kAdd);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int c = j % kChannels;
        results[j] += add.values[c] + multiply.values[c] * (static_cast<Acc>(others.values[j]) - centre.values[c]);
      }
    } else if (has_kept) {
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        if (static_cast<Acc>(others.values[j]) <= 0) results[j] = 0;
    }
    if (scaled) {
      const auto scale = row(kScale);
#pragma unroll
      for (int j = 0; j < kCount; ++j) results[j] *= scale.values[j % kChannels];
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) values.values[j] = T(results[j]);
    *reinterpret_cast<Values*>(grads) = values;
  }
};

template <typename T>
struct Backward {
  ConvGradient<T> gradient;
  Frames<const T> fast;
  Frames<T> grad_fast;
  const T* weight;  // [Co][K][Cf]
  Divisor fast_channels, channels;
  int taps, alpha, slow_frames, depth;
  bool fast_across, wide_fast, wide_weight;

  Backward(const LateralConvBackwardParams& p, const accumulator_t<T>* coefficients, bool scaled,
           const TensorView& frames)
      : gradient(p, coefficients, scaled),
        fast(p.fast),
        grad_fast(p.grad_fast.given() ? p.grad_fast : p.fast),
        weight(p.weight.as<const T>()),
        fast_channels(p.weight.size(1)),
        channels(p.weight.size(0)),
        taps(static_cast<int>(p.weight.size(2))),
        alpha(static_cast<int>(p.alpha)),
        slow_frames(static_cast<int>(p.grad.size(2))),
        depth(static_cast<int>(p.weight.size(1)) * taps),
        fast_across(!is_channels_last_cuda(frames)),
        wide_fast(can_widen(frames, !fast_across)),
        wide_weight(p.weight.size(1) % kWide<T> == 0 && reinterpret_cast<uintptr_t>(p.weight.data) % 16 == 0) {}

  // Columns of the gradient of fast, and where the first of them are in a row of the weight, for readers t + r.
  SF_HOST_DEVICE int columns() const { return alpha * static_cast<int>(fast_channels.value); }
  SF_HOST_DEVICE int shift(int r) const { return (taps / 2 - alpha * r) * static_cast<int>(fast_channels.value); }
};

template <typename T, int kColumns>
struct FastBackward {
  using Product = TileProduct<T, kColumns>;
  static constexpr int kKept = Product::kSizeA + Product::kSizeB, kStageSize = kKept + Product::kSizeA;
  static constexpr size_t kSharedBytes = shared_bytes<T, kColumns>(kStages, kStageSize);
};

// Adjacent blocks share rows.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerProcessor)
    lateral_conv_fast_backward_kernel(const Backward<T> b, int column_groups) {
  using Product = TileProduct<T, kColumns>;
  using Sizes = FastBackward<T, kColumns>;
  SF_DYNAMIC_SHARED(T, shared);
  const Rows& rows = b.gradient.rows;
  const auto first = rows.first(static_cast<int64_t>(blockIdx.x / column_groups) * kRows);
  const int first_column = static_cast<int>(blockIdx.x % column_groups) * kColumns, channels = b.gradient.channels;
  // The readers of these columns: [first_reader, end_reader).
  int first_reader = -(b.taps / b.alpha), end_reader;
  while (first_column + b.shift(first_reader) >= b.depth) ++first_reader;
  for (end_reader = first_reader; first_column + kColumns + b.shift(end_reader) > 0;) ++end_reader;
  const int depth = (end_reader - first_reader) * channels;

  const auto gradient = [&](const Frames<const T>& from) {
    return matrix(
        from.data, b.slow_frames, b.gradient.wide,
        [&](int row) {
          if (row >= first.left) return kNowhere;
          const auto place = rows.at(first, row);
          return Along{from.offset(place.n, place.t, place.position), place.t};
        },
        [&](int k) {
          const int i = b.channels.quotient(k), r = first_reader + i;
          return k < depth ? Along{r * from.t + (k - i * channels) * from.c, r} : kNowhere;
        });
  };
  const auto grads = gradient(b.gradient.grad), keeps = gradient(b.gradient.kept);
  const auto weights = matrix(
      b.weight, b.depth, b.wide_weight,
      [&](int column) {
        const int at = first_column + column;
        return at < b.columns() ? Along{at, at} : kNowhere;
      },
      [&](int k) {
        const int i = b.channels.quotient(k), shift = b.shift(first_reader + i);
        return k < depth ? Along{int64_t{k - i * channels} * b.depth + shift, shift} : kNowhere;
      });
  const auto channel_of = [&](int, int k) { return k - b.channels.quotient(k) * channels; };

  Product product;
  const typename Product::template B<true> weight_columns(weights);
  with_flag(!b.gradient.along_channels, [&](auto across) {
    const typename Product::template A<across> grad_rows(grads), kept_rows(keeps);
    product.template run<kStages, Sizes::kStageSize, across, true>(
        shared, (depth + kDepth<T> - 1) / kDepth<T>,
        [&](T* stage, int begin) {
          grad_rows.fill(stage, grads, begin);
          if (b.gradient.has_kept) kept_rows.fill(stage + Sizes::kKept, keeps, begin);
          weight_columns.fill(stage + Product::kSizeA, weights, begin);
        },
        [&](T* stage, int begin) {
          b.gradient.finish(stage, stage + Sizes::kKept, grad_rows, grads, begin, channel_of);
        });
  });

  const auto to = matrix(
      b.grad_fast.data, 1, b.wide_fast,
      [&](int row) {
        if (row >= first.left) return kNowhere;
        const auto place = rows.at(first, row);
        return Along{b.grad_fast.offset(place.n, place.t * b.alpha, place.position), 0};
      },
      [&](int column) {
        const int at = first_column + column, frame = b.fast_channels.quotient(at);
        const int channel = at - frame * static_cast<int>(b.fast_channels.value);
        return at < b.columns() ? Along{frame * b.grad_fast.t + channel * b.grad_fast.c, 0} : kNowhere;
      });
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

template <typename T, int kColumns>
struct WeightBackward {
  using Product = TileProduct<T, kColumns>;
  static constexpr int kKept = Product::kSizeA + Product::kSizeB, kStageSize = kKept + Product::kSizeB;
  static constexpr size_t kSharedBytes = sizeof(T) * kStages * kStageSize;
};

// partials [part][depth][Co]: a part's gradient of weight, without the factor `scale`, and of shift.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerProcessor)
    lateral_conv_weight_backward_kernel(const Backward<T> b, const WeightSplit split, accumulator_t<T>* partials) {
  using Acc = accumulator_t<T>;
  using Product = TileProduct<T, kColumns>;
  using Sizes = WeightBackward<T, kColumns>;
  SF_DYNAMIC_SHARED(T, shared);
  const Rows& rows = b.gradient.rows;
  const int group = static_cast<int>(blockIdx.x % (split.depth_groups * split.channel_groups));
  const int64_t part = blockIdx.x / (split.depth_groups * split.channel_groups);
  const int first_depth = group / split.channel_groups * kRows, first_channel = group % split.channel_groups * kColumns;
  const auto first = rows.first(part * split.rows_per_part);
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
        const auto place = rows.at(first, row);
        const int frame = place.t * b.alpha;
        return Along{b.fast.offset(place.n, frame, place.position), frame};
      });
  const auto gradient = [&](const Frames<const T>& from) {
    return matrix(
        from.data, 1, b.gradient.wide,
        [&](int column) {
          const int channel = first_channel + column;
          return channel < b.gradient.channels ? Along{channel * from.c, 0} : kNowhere;
        },
        [&](int row) {
          if (row >= count) return kNowhere;
          const auto place = rows.at(first, row);
          return Along{from.offset(place.n, place.t, place.position), 0};
        });
  };
  const auto grads = gradient(b.gradient.grad), keeps = gradient(b.gradient.kept);
  const auto channel_of = [&](int column, int) { return first_channel + column; };

  Product product;
  const auto run = [&](auto fast_across, auto across) {
    using A = typename Product::template A<fast_across>;
    const A fast_rows(frames);
    const typename Product::template B<across> grad_columns(grads), kept_columns(keeps);
    product.template run<kStages, Sizes::kStageSize, fast_across, across>(
        shared, (count + kDepth<T> - 1) / kDepth<T>,
        [&](T* stage, int begin) {
          fast_rows.fill(stage, frames, begin);
          grad_columns.fill(stage + Product::kSizeA, grads, begin);
          if (b.gradient.has_kept) kept_columns.fill(stage + Sizes::kKept, keeps, begin);
        },
        [&](T* stage, int begin) {
          if (first_depth + kRows > b.depth && split.depth > b.depth)  // the ones
#pragma unroll 1
            for (int i = 0; i < A::kGroups * kWide<T>; ++i) {
              const int group = i / kWide<T>, j = i % kWide<T>;
              if (first_depth + A::first(group) + (fast_across ? j : 0) == b.depth)
                stage[A::Groups::place(group) + j] = T(Acc(1));
            }
          b.gradient.finish(stage + Product::kSizeA, stage + Sizes::kKept, grad_columns, grads, begin, channel_of);
        });
  };
  with_flag(!b.fast_across, [&](auto fast_across) {
    with_flag(b.gradient.along_channels, [&](auto across) { run(fast_across, across); });
  });
  product.for_each([&](Acc sum, int row, int column) {
    const int d = first_depth + row, o = first_channel + column;
    if (d < split.depth && o < b.gradient.channels) partials[(part * split.depth + d) * b.gradient.channels + o] = sum;
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
#pragma unroll 4
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

}  // namespace

int64_t lateral_conv_backward_workspace_cuda(const LateralConvBackwardParams& p) {
  int64_t size = kCoefficients * padded(p.weight.size(0));
  if (p.grad_weight.given())
    dispatch_floating_cuda(p.grad.dtype, "lateral_conv_backward", [&](auto tag) {
      with_columns<typename decltype(tag)::type>(p.weight.size(0), [&](auto columns) {
        const WeightSplit split(p, columns);
        size += split.parts * split.depth * p.weight.size(0);
      });
    });
  return size;
}

void lateral_conv_backward_cuda(const LateralConvBackwardParams& p, void* workspace, int device, void* stream) {
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.grad.dtype, "lateral_conv_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    const int64_t channels = p.weight.size(0);
    Acc* coefficients = static_cast<Acc*>(workspace);
    const int64_t rows = Rows(p.grad).count;
    if (rows > 0 && (p.conv.given() || p.scale.given())) {
      const Channels<Acc> values{p.scale.as<const Acc>(),           p.mean.as<const double>(),
                                 p.grad_mean.as<const double>(),    p.grad_var.as<const double>(),
                                 static_cast<double>(rows),         static_cast<int>(channels),
                                 static_cast<int>(padded(channels))};
      SF_LAUNCH(lateral_conv_coefficients_kernel<Acc>, grid_of((padded(channels) + 31) / 32), dim3(32), 0, stream,
                values, coefficients);
    }
    if (p.grad_fast.given() && p.grad_fast.numel() > 0) {
      const Backward<T> b(p, coefficients, true, p.grad_fast);
      with_columns<T>(b.columns(), [&](auto columns) {
        constexpr int kColumns = columns;
        const int groups = (b.columns() + kColumns - 1) / kColumns;
        SF_LAUNCH((lateral_conv_fast_backward_kernel<T, kColumns>), grid_of(b.gradient.rows.tiles() * groups),
                  dim3(kTileThreads), (FastBackward<T, kColumns>::kSharedBytes), stream, b, groups);
      });
    }
    if (!p.grad_weight.given()) return;
    Acc* partials = coefficients + kCoefficients * padded(channels);
    const Backward<T> b(p, coefficients, false, p.fast);
    with_columns<T>(channels, [&](auto columns) {
      constexpr int kColumns = columns;
      const WeightSplit split(p, kColumns);
      if (split.parts > 0)
        SF_LAUNCH((lateral_conv_weight_backward_kernel<T, kColumns>), grid_of(split.blocks()), dim3(kTileThreads),
                  (WeightBackward<T, kColumns>::kSharedBytes), stream, b, split, partials);
      int shares = 1;
      while (shares < 32 && shares * 4 < split.parts) shares *= 2;
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
