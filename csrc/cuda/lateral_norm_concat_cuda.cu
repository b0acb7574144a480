// CUDA kernels of the training form's second step: one pass that normalises, rectifies and concatenates, and its
// backward, one pass as well and a small kernel that adds the sums of its blocks in their order. Bound by memory.

#include "lateral_tile.cuh"

namespace slowfast {
namespace {

constexpr int64_t kSumBlocks = 256;  // that a sum is split among, on any GPU: the bits do not depend on it

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
  Rows rows;
  int channels, channel_groups;
  bool along_channels, wide;

  Normalisation(const LateralNormConcatParams& p, const TensorView& to)
      : norm(make_norm<Acc>(p)),
        conv(p.conv),
        output(to),
        rows(to),
        channels(static_cast<int>(to.size(1))),
        channel_groups((channels + kCopiedChannels - 1) / kCopiedChannels),
        along_channels(is_channels_last_cuda(to)),
        wide(can_widen(p.conv, along_channels) && can_widen(to, along_channels)) {}
  int64_t blocks() const { return rows.tiles() * channel_groups; }

  template <int kGroup, bool kAlongChannels>
  __device__ void run(int64_t block, Acc (*affine)[2]) const {
    using Values = Group<T, kGroup>;
    const auto tile = rows.first(block / channel_groups * kRows);
    const int first = static_cast<int>(block % channel_groups) * kCopiedChannels;
    if (threadIdx.x < kCopiedChannels && first + threadIdx.x < channels) {
      const auto a = norm(first + threadIdx.x);
      affine[threadIdx.x][0] = a.scale, affine[threadIdx.x][1] = a.shift;
    }
    __syncthreads();
    for_each_batch<kGroup, kAlongChannels>(
        rows, tile, first, channels, [&](const auto& places, const auto& of_channel, const auto& exist) {
          Values values[kBatch];
#pragma unroll
          for (int i = 0; i < kBatch; ++i)
            values[i] = *reinterpret_cast<const Values*>(conv.at(places[i], of_channel[i]));
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
#pragma unroll
            for (int j = 0; j < kGroup; ++j) {
              const Acc* by_channel = affine[of_channel[i] - first + (kAlongChannels ? j : 0)];
              const Acc x = static_cast<Acc>(values[i].values[j]) * by_channel[0] + by_channel[1];
              values[i].values[j] = T(norm.relu && x < 0 ? Acc(0) : x);  // a NaN stays
            }
            if (exist[i]) *reinterpret_cast<Values*>(output.at(places[i], of_channel[i])) = values[i];
          }
        });
  }
  __device__ void operator()(int64_t block, Acc (*affine)[2]) const {
    with_flag(along_channels,
              [&](auto along) { wide ? run<kWide<T>, along>(block, affine) : run<1, along>(block, affine); });
  }
};

// The first blocks make the lateral channels, the others copy the Slow ones.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>)
    lateral_norm_concat_forward_kernel(const Normalisation<T> lateral, const SlowCopy<T> slow, int64_t normalising) {
  SF_DYNAMIC_SHARED(accumulator_t<T>, shared);
  const int64_t block = blockIdx.x;
  if (block >= normalising) return slow(block - normalising);
  lateral(block, reinterpret_cast<accumulator_t<T>(*)[2]>(shared));
}

// How the threads of a block share rows and channels: each takes a group of a row, or of rows of a channel; `lanes` of
// them are adjacent in memory.
template <typename T>
struct NormBackward {
  Norm<accumulator_t<T>> norm;
  Frames<const T> grad, conv;
  Frames<T> grad_conv;
  Rows rows;
  int channels, channel_groups, per_block, lanes;
  int64_t rows_per_part, parts;
  bool along_channels, wide;

  explicit NormBackward(const LateralNormBackwardParams& p)
      : norm(make_norm<accumulator_t<T>>(p)),
        grad(p.grad),
        conv(p.conv),
        grad_conv(p.grad_conv),
        rows(p.conv),
        channels(static_cast<int>(p.conv.size(1))),
        lanes(32),
        along_channels(is_channels_last_cuda(p.conv)),
        wide(can_widen(p.grad, along_channels) && can_widen(p.conv, along_channels) &&
             can_widen(p.grad_conv, along_channels)) {
    const int group = wide ? kWide<T> : 1;
    if (along_channels)
      while (lanes > 1 && lanes / 2 * group >= channels) lanes /= 2;
    per_block = along_channels ? lanes * group : kTileThreads / lanes;
    channel_groups = (channels + per_block - 1) / per_block;
    const int64_t wanted = channel_groups < kSumBlocks ? kSumBlocks / channel_groups : 1;
    const int64_t least = along_channels ? kBatch * kTileThreads / lanes : 512,
                  multiples = (rows.count + least - 1) / least;
    rows_per_part = (multiples + wanted - 1) / wanted * least;
    parts = rows.count > 0 ? (rows.count + rows_per_part - 1) / rows_per_part : 0;
  }
  // Three values a channel at first, then two for each warp and each of its channels.
  size_t shared_bytes() const {
    const int sums = 2 * (kTileThreads / 32) * (along_channels ? per_block : 1);
    return sizeof(double) * (sums > 3 * per_block ? sums : 3 * per_block);
  }
};

// The gradient of conv with mean and var held fixed, and by channel the sums of the gradient g behind the ReLU and of
// g * (conv - mean). A thread adds a few elements in float, everything else is double, as in PyTorch: both sums may
// nearly cancel, and an error in them changes all gradients of the channel the same way. partials [2][Co][parts].
template <typename T, int kGroup, bool kAlongChannels>
__device__ SF_INLINE void norm_backward(const NormBackward<T>& b, double* partials, double* scratch) {
  using Acc = accumulator_t<T>;
  using Values = Group<T, kGroup>;
  constexpr int kMine = kAlongChannels ? kGroup : 1;  // channels of a thread
  const int64_t part = blockIdx.x / b.channel_groups;
  const int first_channel = static_cast<int>(blockIdx.x % b.channel_groups) * b.per_block;
  const int lane = threadIdx.x % b.lanes, line = threadIdx.x / b.lanes, lines = kTileThreads / b.lanes;
  const int mine = kAlongChannels ? lane * kGroup : line, channel = first_channel + mine;
  const auto tile = b.rows.first(part * b.rows_per_part);
  const int count = static_cast<int>(tile.left < b.rows_per_part ? tile.left : b.rows_per_part);

  Acc* affine = reinterpret_cast<Acc*>(scratch);  // [3][per_block]: scale, shift, centre
  if (static_cast<int>(threadIdx.x) < b.per_block && first_channel + static_cast<int>(threadIdx.x) < b.channels) {
    const auto a = b.norm(first_channel + threadIdx.x);
    affine[threadIdx.x] = a.scale, affine[b.per_block + threadIdx.x] = a.shift;
    affine[2 * b.per_block + threadIdx.x] = static_cast<Acc>(b.norm.mean[first_channel + threadIdx.x]);
  }
  __syncthreads();
  Acc scale[kMine], shift[kMine], centre[kMine];
  double sums[kMine] = {}, products[kMine] = {};
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
    scale[j] = affine[mine + j], shift[j] = affine[b.per_block + mine + j];
    centre[j] = affine[2 * b.per_block + mine + j];
  }
  const int step = kAlongChannels ? lines : b.lanes * kGroup;
  if (channel < b.channels)
    for (int first = kAlongChannels ? line : lane * kGroup; first < count; first += kBatch * step) {
      Values x[kBatch], gradient[kBatch];
      Rows::Place places[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {  // rows past the last repeat the first one
        places[i] = b.rows.at(tile, first + i * step < count ? first + i * step : first);
        x[i] = *reinterpret_cast<const Values*>(b.conv.at(places[i], channel));
        gradient[i] = *reinterpret_cast<const Values*>(b.grad.at(places[i], channel));
      }
      Acc sum[kMine] = {}, product[kMine] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i * step >= count) continue;
        Values result;
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          constexpr int kLast = kMine - 1;
          const int c = j < kLast ? j : kLast;
          const Acc value = static_cast<Acc>(x[i].values[j]);
          const bool off = b.norm.relu && value * scale[c] + shift[c] <= 0;
          const Acc g = off ? Acc(0) : static_cast<Acc>(gradient[i].values[j]);
          result.values[j] = T(g * scale[c]);
          sum[c] += g;
          product[c] += g * (value - centre[c]);
        }
        *reinterpret_cast<Values*>(b.grad_conv.at(places[i], channel)) = result;
      }
#pragma unroll
      for (int j = 0; j < kMine; ++j) sums[j] += sum[j], products[j] += product[j];
    }

  // Over the lanes of a warp that share channels, then over its warps: scratch [2][8 warps][channels of a warp].
  __syncthreads();
  constexpr int kWarps = kTileThreads / 32;
  const int begin = kAlongChannels ? b.lanes : 1, of_warp = kAlongChannels ? b.per_block : 1;
  const int warp = threadIdx.x / 32, owned = kAlongChannels ? lane * kGroup : 0;
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
    for (int lanes = begin; lanes < 32; lanes *= 2) {
      sums[j] += __shfl_xor_sync(0xFFFFFFFFu, sums[j], lanes);
      products[j] += __shfl_xor_sync(0xFFFFFFFFu, products[j], lanes);
    }
    if (static_cast<int>(threadIdx.x) % 32 < begin) {
      scratch[warp * of_warp + owned + j] = sums[j];
      scratch[(kWarps + warp) * of_warp + owned + j] = products[j];
    }
  }
  __syncthreads();
  const int o = first_channel + static_cast<int>(threadIdx.x);
  if (static_cast<int>(threadIdx.x) >= b.per_block || o >= b.channels) return;
  double sum = 0, product = 0;
  if (kAlongChannels) {
    for (int i = 0; i < kWarps; ++i) {
      sum += scratch[i * of_warp + threadIdx.x];
      product += scratch[(kWarps + i) * of_warp + threadIdx.x];
    }
  } else {
    sum = scratch[threadIdx.x], product = scratch[kWarps + threadIdx.x];
  }
  const double mean = b.norm.mean[o];
  partials[o * b.parts + part] = sum;
  partials[(o + b.channels) * b.parts + part] = product + (static_cast<double>(static_cast<Acc>(mean)) - mean) * sum;
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2)
    lateral_norm_concat_backward_kernel(const NormBackward<T> b, double* partials) {
  SF_DYNAMIC_SHARED(double, scratch);
  if (b.along_channels)
    b.wide ? norm_backward<T, kWide<T>, true>(b, partials, scratch) : norm_backward<T, 1, true>(b, partials, scratch);
  else
    b.wide ? norm_backward<T, kWide<T>, false>(b, partials, scratch) : norm_backward<T, 1, false>(b, partials, scratch);
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
    const Normalisation<T> lateral(p, channels_of(p.output, p.slow.size(1), p.conv.size(1)));
    const SlowCopy<T> slow(p.slow, p.residual, p.output);
    SF_LAUNCH(lateral_norm_concat_forward_kernel<T>, grid_of(lateral.blocks() + slow.blocks()), dim3(kTileThreads),
              2 * kCopiedChannels * sizeof(accumulator_t<T>), stream, lateral, slow, lateral.blocks());
  });
}

int64_t lateral_norm_backward_workspace_cuda(const LateralNormBackwardParams& p) {
  int64_t size = 0;
  dispatch_floating_cuda(p.conv.dtype, "lateral_norm_concat_backward", [&](auto tag) {
    size = 2 * p.conv.size(1) * NormBackward<typename decltype(tag)::type>(p).parts;
  });
  return size;
}

void lateral_norm_backward_cuda(const LateralNormBackwardParams& p, void* workspace, int device, void* stream) {
  const DeviceGuard guard(device);
  double* partials = static_cast<double*>(workspace);
  dispatch_floating_cuda(p.conv.dtype, "lateral_norm_concat_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    const NormBackward<T> b(p);
    if (b.parts > 0)
      SF_LAUNCH(lateral_norm_concat_backward_kernel<T>, grid_of(b.parts * b.channel_groups), dim3(kTileThreads),
                b.shared_bytes(), stream, b, partials);
    const NormGradients<Acc> grad{p.grad_mean.as<double>(), p.grad_var.as<double>(), p.grad_gamma.as<Acc>(),
                                  p.grad_beta.as<Acc>()};
    SF_LAUNCH(lateral_norm_concat_backward_join_kernel<Acc>, grid_of(b.channels), dim3(kTileThreads),
              kTileThreads * sizeof(double), stream, partials, b.parts, b.norm, grad);
  });
}

}  // namespace slowfast
