// CUDA backward of the lateral convolution, in both forms of the op (see lateral_conv_concat.h).
//
// The gradient of the convolution's output is never stored: it is computed from what the forward kept as each operand
// is loaded. The gradient of fast is in gather form: a block owns a tile of a Fast frame and sums over the Slow frames
// that read it, at most one where alpha >= K. The gradient of weight is a sum over all positions: blocks take parts of
// them, a split that depends on the shapes only, and a second kernel adds the parts in their order. No atomics.

#include "lateral_tile.cuh"

namespace slowfast {
namespace {

constexpr int64_t kSumBlocks = 512;  // that the gradient of weight is split among, on any GPU

// The gradient of the convolution's output, element by element.
template <typename T>
struct ConvGradient {
  using Acc = accumulator_t<T>;
  Frames<const T> grad, kept;
  const Acc* scale;  // nullptr: without it
  const double *mean, *grad_mean, *grad_var;
  double count;
  bool rectified, centred;  // kept is the output behind the ReLU, or conv (training form)

  ConvGradient(const LateralConvBackwardParams& p, bool scaled)
      : grad(p.grad),
        kept(p.conv.given()     ? p.conv
             : p.output.given() ? p.output
                                : p.grad),
        scale(scaled ? p.scale.as<const Acc>() : nullptr),
        mean(p.mean.as<const double>()),
        grad_mean(p.grad_mean.as<const double>()),
        grad_var(p.grad_var.as<const double>()),
        count(static_cast<double>(p.grad.size(0) * p.grad.size(2) * p.grad.size(3) * p.grad.size(4))),
        rectified(!p.conv.given() && p.output.given()),
        centred(p.conv.given()) {}

  __device__ Acc operator()(int64_t n, int64_t channel, int64_t t, int64_t position) const {
    Acc value = static_cast<Acc>(*grad.at(n, channel, t, position));
    if (rectified && static_cast<Acc>(*kept.at(n, channel, t, position)) <= 0) value = 0;
    if (centred) {
      // What rounding takes from the mean goes into the constant.
      const Acc centre = static_cast<Acc>(mean[channel]);
      const double multiply = 2 * grad_var[channel] / count;
      const Acc add = static_cast<Acc>(grad_mean[channel] / count + multiply * (centre - mean[channel]));
      value += add + static_cast<Acc>(multiply) * (static_cast<Acc>(*kept.at(n, channel, t, position)) - centre);
    }
    return scale != nullptr ? value * scale[channel] : value;
  }
};

template <typename T>
struct Backward {
  ConvGradient<T> gradient;
  Frames<const T> fast;
  Frames<T> grad_fast;
  const T* weight;  // [Co][K][Cf]
  LateralTaps taps;
  int64_t fast_channels, channels, depth;
  bool along_channels;
  Tiles tiles;  // of the Slow frames

  Backward(const LateralConvBackwardParams& p, bool scaled)
      : gradient(p, scaled),
        fast(p.fast),
        grad_fast(p.grad_fast.given() ? p.grad_fast : p.fast),
        weight(p.weight.as<const T>()),
        taps(p.weight, p.alpha, p.grad.size(2)),
        fast_channels(p.weight.size(1)),
        channels(p.weight.size(0)),
        depth(fast_channels * p.weight.size(2)),
        along_channels(is_channels_last_cuda(p.grad)),
        tiles(p.grad) {}
};

// Blocks that read the same Slow frames are adjacent: [tile of a Slow frame][alpha][group of 64 Fast channels].
template <typename T>
__global__ void __launch_bounds__(kTileThreads) lateral_conv_fast_backward_kernel(const Backward<T> b, int64_t groups) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(unsigned char, shared);
  T* x = reinterpret_cast<T*>(shared);
  T* w = x + kTile * kStep<T>;
  const int64_t block = blockIdx.x, first_fast = block % groups * kTile, slot = block / groups;
  const Tiles::Tile tile = b.tiles[slot / b.taps.alpha];
  const int64_t frame = tile.t * b.taps.alpha + slot % b.taps.alpha;
  const T zero(Acc(0));
  TileProduct<T> product;
  for (int64_t t = b.taps.first_reader(frame); t < b.taps.end_reader(frame); ++t) {
    const T* weight = b.weight + b.taps.tap(t, frame) * b.fast_channels;
    for (int64_t first = 0; first < b.channels; first += kDepth) {
      __syncthreads();
      fill_operand(x, b.along_channels, [&](int p, int k) {
        const bool inside = p < tile.count && first + k < b.channels;
        return inside ? T(b.gradient(tile.n, first + k, t, tile.first + p)) : zero;
      });
      fill_operand(w, false, [&](int f, int k) {
        const bool inside = first_fast + f < b.fast_channels && first + k < b.channels;
        return inside ? weight[(first + k) * b.depth + first_fast + f] : zero;
      });
      __syncthreads();
      product.add(x, w);
    }
  }
  Acc* result = reinterpret_cast<Acc*>(shared);
  product.store(result);
  for_each_group<1>(b.along_channels, first_fast, b.fast_channels, tile, [&](int64_t f, int64_t p) {
    *b.grad_fast.at(tile.n, f, frame, p) = T(result[(p - tile.first) * kProductStride + f - first_fast]);
  });
}

// How the sum over all positions is split: blocks [part][group of 64 output channels][group of 64 of the depth, and one
// more for the sums of the gradient where they are wanted].
struct WeightSplit {
  int64_t channel_groups, depth_groups, tiles_per_part, parts;
  bool with_sums;

  explicit WeightSplit(const LateralConvBackwardParams& p) : with_sums(p.grad_shift.given()) {
    const int64_t tiles = Tiles(p.grad).count, depth = p.weight.size(1) * p.weight.size(2);
    channel_groups = (p.weight.size(0) + kTile - 1) / kTile;
    depth_groups = (depth + kTile - 1) / kTile;
    const int64_t groups = channel_groups * depth_groups, wanted = groups < kSumBlocks ? kSumBlocks / groups : 1;
    tiles_per_part = tiles > wanted ? (tiles + wanted - 1) / wanted : 1;
    parts = (tiles + tiles_per_part - 1) / tiles_per_part;
  }
  SF_HOST_DEVICE int64_t columns() const { return depth_groups + with_sums; }
};

// partials [part][Co][depth + 1]: a part's gradient of weight, without the factor `scale`, and of shift.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    lateral_conv_weight_backward_kernel(const Backward<T> b, const WeightSplit split, accumulator_t<T>* partials) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(unsigned char, shared);
  T* g = reinterpret_cast<T*>(shared);
  T* x = g + kTile * kStep<T>;
  const int64_t column = blockIdx.x % split.columns(), rest = blockIdx.x / split.columns();
  const int64_t part = rest / split.channel_groups, first_channel = rest % split.channel_groups * kTile;
  const int64_t first_tile = part * split.tiles_per_part, most = first_tile + split.tiles_per_part;
  const int64_t end_tile = most < b.tiles.count ? most : b.tiles.count;
  Acc* to = partials + (part * b.channels + first_channel) * (b.depth + 1);

  if (column == split.depth_groups) {  // the sums: two threads a channel
    const int channel = threadIdx.x % kTile;
    Acc sum = 0;
    if (first_channel + channel < b.channels)
      for (int64_t i = first_tile; i < end_tile; ++i) {
        const Tiles::Tile tile = b.tiles[i];
        for (int p = threadIdx.x / kTile; p < tile.count; p += kTileThreads / kTile)
          sum += b.gradient(tile.n, first_channel + channel, tile.t, tile.first + p);
      }
    Acc* sums = reinterpret_cast<Acc*>(shared);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < kTile && first_channel + channel < b.channels)
      to[channel * (b.depth + 1) + b.depth] = sum + sums[threadIdx.x + kTile];
    return;
  }

  const int64_t first_depth = column * kTile;
  const T zero(Acc(0));
  TileProduct<T> product;
  for (int64_t i = first_tile; i < end_tile; ++i) {
    const Tiles::Tile tile = b.tiles[i];
    for (int first = 0; first < tile.count; first += kDepth) {  // the depth of this product is positions
      __syncthreads();
      fill_operand(g, !b.along_channels, [&](int o, int k) {
        const bool inside = first + k < tile.count && first_channel + o < b.channels;
        return inside ? T(b.gradient(tile.n, first_channel + o, tile.t, tile.first + first + k)) : zero;
      });
      fill_operand(x, !b.along_channels, [&](int d, int k) {
        const int64_t at = first_depth + d, frame = b.taps.fast_frame(tile.t, at / b.fast_channels);
        const bool exists = at < b.depth && frame >= 0 && frame < b.taps.fast_frames();
        return exists && first + k < tile.count
                   ? *b.fast.at(tile.n, at % b.fast_channels, frame, tile.first + first + k)
                   : zero;
      });
      __syncthreads();
      product.add(g, x);
    }
  }
  Acc* result = reinterpret_cast<Acc*>(shared);
  product.store(result);
  for (int i = threadIdx.x; i < kTile * kTile; i += kTileThreads) {
    const int o = i / kTile, d = i % kTile;
    if (first_channel + o < b.channels && first_depth + d < b.depth)
      to[o * (b.depth + 1) + first_depth + d] = result[o * kProductStride + d];
  }
}

template <typename T>
struct JoinWeight {
  using Acc = accumulator_t<T>;
  const Acc* partials;
  int64_t parts, channels, fast_channels, depth;
  const T* weight;
  const Acc* scale;
  T* grad_weight;
  int64_t stride_o, stride_c, stride_k;
  Acc *grad_scale, *grad_shift;
};

// One output channel a block of 32 x 8 threads: 8 threads share an element of the depth, each adding every eighth part.
// The convolution is linear in weight: the gradient of scale is the product of weight and its unscaled gradient.
constexpr int kJoinLanes = 32, kJoinShares = 8;
template <typename T>
__global__ void __launch_bounds__(kJoinLanes* kJoinShares)
    lateral_conv_weight_backward_join_kernel(const JoinWeight<T> j) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(Acc, scratch);
  const int lane = threadIdx.x % kJoinLanes, share = threadIdx.x / kJoinLanes;
  const int64_t o = blockIdx.x, row = j.depth + 1, part_stride = j.channels * row;
  Acc product = 0;
  for (int64_t first = 0; first < row; first += kJoinLanes) {
    const int64_t d = first + lane;
    Acc sum = 0;
    const bool wanted = d < j.depth || (d == j.depth && j.grad_shift != nullptr);
    if (wanted)
      for (int64_t part = share; part < j.parts; part += kJoinShares)
        sum += j.partials[part * part_stride + o * row + d];
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (share == 0 && wanted) {
      for (int i = 1; i < kJoinShares; ++i) sum += scratch[i * kJoinLanes + lane];
      if (d == j.depth) {
        j.grad_shift[o] = sum;
      } else {
        product += sum * static_cast<Acc>(j.weight[o * j.depth + d]);
        T* to = j.grad_weight + o * j.stride_o + d % j.fast_channels * j.stride_c + d / j.fast_channels * j.stride_k;
        *to = T(j.scale != nullptr ? sum * j.scale[o] : sum);
      }
    }
    __syncthreads();
  }
  product = block_sum(product, scratch);
  if (threadIdx.x == 0 && j.grad_scale != nullptr) j.grad_scale[o] = product;
}

}  // namespace

int64_t lateral_conv_backward_workspace_cuda(const LateralConvBackwardParams& p) {
  const int64_t depth = p.weight.size(1) * p.weight.size(2);
  return p.grad_weight.given() ? WeightSplit(p).parts * p.weight.size(0) * (depth + 1) : 0;
}

void lateral_conv_backward_cuda(const LateralConvBackwardParams& p, void* workspace, int device, void* stream) {
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.grad.dtype, "lateral_conv_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    if (p.grad_fast.given() && p.grad_fast.numel() > 0) {
      const Backward<T> b(p, true);
      const int64_t groups = (b.fast_channels + kTile - 1) / kTile;
      SF_LAUNCH(lateral_conv_fast_backward_kernel<T>, grid_of(b.tiles.count * p.alpha * groups), dim3(kTileThreads),
                TileProduct<T>::kSharedBytes, stream, b, groups);
    }
    if (!p.grad_weight.given()) return;
    const Backward<T> b(p, false);
    const WeightSplit split(p);
    Acc* partials = static_cast<Acc*>(workspace);
    if (split.parts > 0)
      SF_LAUNCH(lateral_conv_weight_backward_kernel<T>, grid_of(split.parts * split.channel_groups * split.columns()),
                dim3(kTileThreads), TileProduct<T>::kSharedBytes, stream, b, split, partials);
    const JoinWeight<T> join{partials,
                             split.parts,
                             b.channels,
                             b.fast_channels,
                             b.depth,
                             b.weight,
                             p.scale.as<const Acc>(),
                             p.grad_weight.as<T>(),
                             p.grad_weight.stride(0),
                             p.grad_weight.stride(1),
                             p.grad_weight.stride(2),
                             p.grad_scale.as<Acc>(),
                             p.grad_shift.as<Acc>()};
    SF_LAUNCH(lateral_conv_weight_backward_join_kernel<T>, grid_of(b.channels), dim3(kJoinLanes * kJoinShares),
              kJoinLanes * kJoinShares * sizeof(Acc), stream, join);
  });
}

}  // namespace slowfast
