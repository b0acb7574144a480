// CUDA kernels of the training form's second step: one pass that normalises, rectifies and concatenates, and its
// backward, one pass as well and a small kernel that adds the sums of its blocks in their order. Bound by memory.

#include "lateral_tile.cuh"

namespace slowfast {
namespace {

constexpr int64_t kSumBlocks = 1024;  // that a sum is split among, on any GPU: the bits do not depend on it

template <typename Acc>
struct Norm {
  const double* mean;
  const double* var;
  const Acc* gamma;
  const Acc* beta;
  double eps;
  bool relu;

  struct Affine {
    Acc inverse, scale, shift;  // 1 / sqrt(var + eps); conv * scale + shift
  };
  __device__ Affine operator()(int64_t channel) const {
    const Acc inverse = static_cast<Acc>(1 / sqrt(var[channel] + eps));
    const Acc scale = gamma != nullptr ? inverse * gamma[channel] : inverse;
    const double shift = (beta != nullptr ? static_cast<double>(beta[channel]) : 0) - mean[channel] * scale;
    return {inverse, scale, static_cast<Acc>(shift)};
  }
};

template <typename Acc, typename Params>
Norm<Acc> make_norm(const Params& p) {
  return {p.mean.template as<const double>(),
          p.var.template as<const double>(),
          p.gamma.template as<const Acc>(),
          p.beta.template as<const Acc>(),
          p.eps,
          p.relu};
}

template <typename T>
struct Normalisation {
  using Acc = accumulator_t<T>;
  Norm<Acc> norm;
  Frames<const T> conv;
  Frames<T> output;
  int64_t channels, groups;
  bool along_channels, wide;
  Tiles tiles;

  template <int kGroup>
  __device__ void run(int64_t block, Acc (*affine)[2]) const {
    const Tiles::Tile tile = tiles[block / groups];
    const int64_t first = block % groups * kTile;
    if (threadIdx.x < kTile && first + threadIdx.x < channels) {
      const auto a = norm(first + threadIdx.x);
      affine[threadIdx.x][0] = a.scale, affine[threadIdx.x][1] = a.shift;
    }
    __syncthreads();
    for_each_group<kGroup>(along_channels, first, channels, tile, [&](int64_t c, int64_t p) {
      auto value = *reinterpret_cast<const Group<T, kGroup>*>(conv.at(tile.n, c, tile.t, p));
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const Acc* by_channel = affine[c - first + (along_channels ? i : 0)];
        const Acc x = static_cast<Acc>(value.values[i]) * by_channel[0] + by_channel[1];
        value.values[i] = T(norm.relu && x < 0 ? Acc(0) : x);  // a NaN stays
      }
      *reinterpret_cast<Group<T, kGroup>*>(output.at(tile.n, c, tile.t, p)) = value;
    });
  }
};

// The first blocks make the lateral channels, the others copy the Slow ones.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    lateral_norm_concat_forward_kernel(const Normalisation<T> lateral, const SlowCopy<T> slow, int64_t normalising) {
  SF_DYNAMIC_SHARED(accumulator_t<T>, shared);
  const int64_t block = blockIdx.x;
  if (block >= normalising) return slow(block - normalising);
  auto* affine = reinterpret_cast<accumulator_t<T>(*)[2]>(shared);
  lateral.wide ? lateral.template run<kWide<T>>(block, affine) : lateral.template run<1>(block, affine);
}

template <typename T>
struct NormBackward {
  Norm<accumulator_t<T>> norm;
  Frames<const T> grad, conv;
  Frames<T> grad_conv;
  int64_t channels, groups, parts, tiles_per_part;
  bool along_channels;
  Tiles tiles;

  explicit NormBackward(const LateralNormBackwardParams& p)
      : norm(make_norm<accumulator_t<T>>(p)),
        grad(p.grad),
        conv(p.conv),
        grad_conv(p.grad_conv),
        channels(p.conv.size(1)),
        along_channels(is_channels_last_cuda(p.conv)),
        tiles(p.conv) {
    groups = (channels + per_block() - 1) / per_block();
    const int64_t wanted = groups < kSumBlocks ? kSumBlocks / groups : 1;
    tiles_per_part = tiles.count > wanted ? (tiles.count + wanted - 1) / wanted : 1;
    parts = (tiles.count + tiles_per_part - 1) / tiles_per_part;
  }
  // Channels of a block: its warps run along the channels, or each takes one of its own.
  SF_HOST_DEVICE int per_block() const { return along_channels ? 32 : kTileThreads / 32; }
};

// The gradient of conv with mean and var held fixed, and by channel the sums of the gradient g behind the ReLU and of
// g * (conv - mean), in double, as PyTorch: both may nearly cancel, and an error in them changes all gradients of the
// channel the same way. partials [2][Co][parts].
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    lateral_norm_concat_backward_kernel(const NormBackward<T> b, double* partials) {
  using Acc = accumulator_t<T>;
  SF_DYNAMIC_SHARED(double, scratch);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = kTileThreads / 32;
  const int mine = b.along_channels ? lane : warp, stride = b.along_channels ? warps : 32;
  const int64_t part = blockIdx.x / b.groups, first = blockIdx.x % b.groups * b.per_block(), channel = first + mine;
  double sum = 0, product = 0;
  if (channel < b.channels) {
    const auto affine = b.norm(channel);
    const double mean = b.norm.mean[channel];
    const int64_t end = (part + 1) * b.tiles_per_part;
    for (int64_t i = part * b.tiles_per_part; i < end && i < b.tiles.count; ++i) {
      const Tiles::Tile tile = b.tiles[i];
      for (int p = b.along_channels ? warp : lane; p < tile.count; p += stride) {
        const Acc x = static_cast<Acc>(*b.conv.at(tile.n, channel, tile.t, tile.first + p));
        const Acc gradient = static_cast<Acc>(*b.grad.at(tile.n, channel, tile.t, tile.first + p));
        const Acc g = b.norm.relu && x * affine.scale + affine.shift <= 0 ? Acc(0) : gradient;
        *b.grad_conv.at(tile.n, channel, tile.t, tile.first + p) = T(g * affine.scale);
        sum += g;
        product += static_cast<double>(g) * (static_cast<double>(x) - mean);
      }
    }
  }
  scratch[threadIdx.x] = sum;
  scratch[kTileThreads + threadIdx.x] = product;
  __syncthreads();
  if (channel >= b.channels || (b.along_channels ? warp : lane) != 0) return;
  const int step = b.along_channels ? 32 : 1;  // of the threads that share a channel
  for (int i = 1; i < stride; ++i) {
    sum += scratch[threadIdx.x + i * step];
    product += scratch[kTileThreads + threadIdx.x + i * step];
  }
  partials[channel * b.parts + part] = sum;
  partials[(channel + b.channels) * b.parts + part] = product;
}

template <typename Acc>
struct NormGradients {
  double* mean;
  double* var;
  Acc* gamma;
  Acc* beta;
};

// One channel a block.
template <typename Acc>
__global__ void __launch_bounds__(kTileThreads)
    lateral_norm_concat_backward_join_kernel(const double* partials, int64_t parts, const Norm<Acc> norm,
                                             const NormGradients<Acc> grad) {
  SF_DYNAMIC_SHARED(double, scratch);
  const int64_t channel = blockIdx.x;
  const double* sums = partials + channel * parts;
  const double* products = sums + gridDim.x * parts;
  double sum = 0, product = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kTileThreads) sum += sums[i], product += products[i];
  sum = block_sum(sum, scratch);
  product = block_sum(product, scratch);
  if (threadIdx.x != 0) return;
  const auto affine = norm(channel);
  const double inverse = affine.inverse, scale = affine.scale;
  grad.beta[channel] = static_cast<Acc>(sum);
  grad.gamma[channel] = static_cast<Acc>(product * inverse);
  grad.mean[channel] = -sum * scale;
  grad.var[channel] = -0.5 * product * scale * inverse * inverse;
}

}  // namespace

void lateral_norm_concat_cuda(const LateralNormConcatParams& p, int device, void* stream) {
  if (p.output.numel() == 0) return;
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.conv.dtype, "lateral_norm_concat", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    const int64_t channels = p.conv.size(1);
    const TensorView to = channels_of(p.output, p.slow.size(1), channels);
    const bool along_channels = is_channels_last_cuda(to);
    const bool wide = can_widen(p.conv, along_channels) && can_widen(to, along_channels);
    const Normalisation<T> lateral{make_norm<Acc>(p),
                                   Frames<const T>(p.conv),
                                   Frames<T>(to),
                                   channels,
                                   (channels + kTile - 1) / kTile,
                                   along_channels,
                                   wide,
                                   Tiles(to)};
    const SlowCopy<T> slow(p.slow, p.residual, p.output);
    const int64_t normalising = lateral.tiles.count * lateral.groups;
    SF_LAUNCH(lateral_norm_concat_forward_kernel<T>, grid_of(normalising + slow.blocks()), dim3(kTileThreads),
              2 * kTile * sizeof(Acc), stream, lateral, slow, normalising);
  });
}

int64_t lateral_norm_backward_workspace_cuda(const LateralNormBackwardParams& p) {
  return 2 * p.conv.size(1) * NormBackward<float>(p).parts;  // the parts do not depend on the type
}

void lateral_norm_backward_cuda(const LateralNormBackwardParams& p, void* workspace, int device, void* stream) {
  const DeviceGuard guard(device);
  double* partials = static_cast<double*>(workspace);
  dispatch_floating_cuda(p.conv.dtype, "lateral_norm_concat_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    const NormBackward<T> b(p);
    if (b.parts > 0)
      SF_LAUNCH(lateral_norm_concat_backward_kernel<T>, grid_of(b.parts * b.groups), dim3(kTileThreads),
                2 * kTileThreads * sizeof(double), stream, b, partials);
    const NormGradients<Acc> grad{p.grad_mean.as<double>(), p.grad_var.as<double>(), p.grad_gamma.as<Acc>(),
                                  p.grad_beta.as<Acc>()};
    SF_LAUNCH(lateral_norm_concat_backward_join_kernel<Acc>, grid_of(b.channels), dim3(kTileThreads),
              kTileThreads * sizeof(double), stream, partials, b.parts, b.norm, grad);
  });
}

}  // namespace slowfast
