// CUDA kernels of roi_align_3d_pool where it differs from roi_align_3d: its backward; and its forward where all frames
// count the same, which works on their mean: T times fewer values to read, and read once for the RoIs that overlap.
//
// The mean is taken of the pixels that the clip's boxes lie in, by 16-byte loads, all frames of a packet under way
// together. It is kept in the accumulator's type as [N, H, W, C], whatever the order of the features, so that a lane
// of the forward reads 16 bytes of channels: a warp takes a row of bins.
//
// Backward: all of a channel's gradient is in one bin, which the forward has saved in argmax (8 bytes per RoI and
// channel; finding it again would read the features again). So a thread owns a channel of a patch in shared memory and
// adds, RoI by RoI in ascending order, to the few pixels of that bin; then the block writes its patch, to all frames if
// they are alike. The patch lies as grad_features does, so that both are read and written 16 bytes at a time.

#include "roi_align_3d_pool.cuh"

namespace slowfast {
namespace roi_align_3d {
namespace {

constexpr int kMeanPixels = 112;
constexpr int kMeanBlocks = 2;  // per multiprocessor: leaves registers for loads under way
constexpr int kPatchBytes = 32 * 1024;

// The smallest rectangle that contains all boxes of a clip. All threads of a block call it.
template <typename A>
__device__ Rectangle covered(const Plan<A>& plan, int clip) {
  __shared__ PixelRange ranges[2][kThreads / kLanes];
  PixelRange ys, xs;
  for (int roi = threadIdx.x; roi < plan.rois; roi += kThreads) {
    const PixelRange y = plan.y.spans[roi], x = plan.x.spans[roi];
    if (plan.clip[roi] == clip) ys.include(y), xs.include(x);
  }
  __syncwarp();
  ys = union_over_warp(ys), xs = union_over_warp(xs);
  if (threadIdx.x % kLanes == 0) ranges[0][threadIdx.x / kLanes] = ys, ranges[1][threadIdx.x / kLanes] = xs;
  __syncthreads();
  for (int i = 0; i < kThreads / kLanes; ++i) ys.include(ranges[0][i]), xs.include(ranges[1][i]);
  return {ys.begin, xs.begin, ys.end - ys.begin, xs.end - xs.begin};
}

// The mean of kCount elements over all frames, the loads of eight under way together.
template <int kCount, typename T, typename A = accumulator_t<T>>
__device__ void mean_of_frames(const T* at, int64_t frame_stride, int frames, A (&mean)[kCount]) {
  struct alignas(kCount * sizeof(T)) Input {
    T values[kCount];
  };
  const A share = A(1) / static_cast<A>(frames);
#pragma unroll
  for (int k = 0; k < kCount; ++k) mean[k] = 0;
#pragma unroll 1
  for (int first = 0; first < frames; first += 8) {
    Input inputs[8];
#pragma unroll
    for (int f = 0; f < 8; ++f)
      inputs[f] = first + f < frames ? *reinterpret_cast<const Input*>(at + (first + f) * frame_stride) : Input{};
#pragma unroll
    for (int f = 0; f < 8; ++f)
#pragma unroll
      for (int k = 0; k < kCount; ++k) mean[k] += share * static_cast<A>(inputs[f].values[k]);
  }
}

// Of features whose channels lie together. Blocks: x over clips and, fastest, kCount channels of a pixel a thread.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMeanBlocks)
    roi_align_3d_mean_forward_kernel(Plan<accumulator_t<T>> plan, Channels<const T> features, int frames,
                                     accumulator_t<T>* mean, int blocks) {
  using A = accumulator_t<T>;
  constexpr int kStored = kCount < Packet<A>::kCount ? kCount : Packet<A>::kCount;
  struct alignas(kStored * sizeof(A)) Output {
    A values[kStored];
  };
  const int clip = blockIdx.x / blocks, packets = plan.channels / kCount;
  const Rectangle where = covered(plan, clip);
  const int i = blockIdx.x % blocks * kThreads + threadIdx.x, channel = i % packets * kCount;
  if (i / packets >= where.area()) return;
  const int y = where.y + i / packets / where.width, x = where.x + i / packets % where.width;
  A sum[kCount];
  mean_of_frames(features.data + clip * features.row + y * features.y + x * features.x + channel, features.frame,
                 frames, sum);
  mean += (static_cast<int64_t>(clip) * plan.height * plan.width + y * plan.width + x) * mean_pitch(plan) + channel;
#pragma unroll
  for (int k = 0; k < kCount; k += kStored) {
    Output output;
#pragma unroll
    for (int j = 0; j < kStored; ++j) output.values[j] = sum[k + j];
    *reinterpret_cast<Output*>(mean + k) = output;
  }
}

// Of other features. Blocks: x over clips, tiles of kLanes channels and, fastest, `pieces` of the rows that boxes lie
// in; a thread takes kCount pixels of a channel.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMeanBlocks)
    roi_align_3d_transposed_mean_forward_kernel(Plan<accumulator_t<T>> plan, Channels<const T> features, int frames,
                                                accumulator_t<T>* mean, int pieces) {
  using A = accumulator_t<T>;
  __shared__ A tile[kMeanPixels * (kLanes + 1)];
  const int tiles = divided_up(plan.channels, kLanes), rest = blockIdx.x / pieces;
  const int clip = rest / tiles, first_channel = rest % tiles * kLanes;
  const Rectangle where = covered(plan, clip);
  const Channels<const T> from = features.at(clip, first_channel, plan.channels, kLanes);
  // Whole packets of the pixels of these rows, cut into pieces of equal size.
  const int begin = where.y * plan.width / kCount, end = divided_up((where.y + where.height) * plan.width, kCount);
  const int size = divided_up(end - begin, pieces), first = begin + blockIdx.x % pieces * size;
  const int packets = size < end - first ? size : end - first;
  for (int i = threadIdx.x; i < packets * from.count; i += kThreads) {
    const int packet = i % packets, channel = i / packets, pixel = (first + packet) * kCount;
    A sum[kCount];
    mean_of_frames(from.data + channel * from.channel + pixel / plan.width * from.y + pixel % plan.width * from.x,
                   from.frame, frames, sum);
#pragma unroll
    for (int k = 0; k < kCount; ++k) tile[(packet * kCount + k) * (kLanes + 1) + channel] = sum[k];
  }
  __syncthreads();
  const int pitch = mean_pitch(plan), lane = threadIdx.x % kLanes;
  if (lane >= from.count) return;
  mean += (static_cast<int64_t>(clip) * plan.height * plan.width + first * kCount) * pitch + first_channel + lane;
  for (int pixel = threadIdx.x / kLanes; pixel < packets * kCount; pixel += kThreads / kLanes)
    mean[pixel * pitch] = tile[pixel * (kLanes + 1) + lane];
}

// Blocks: x over RoIs and, fastest, tiles of a warp's channels.
template <typename A, typename Output>
__global__ void __launch_bounds__(kThreads)
    roi_align_3d_pool_forward_kernel(Plan<A> plan, const A* mean, Channels<Output> output, Channels<int64_t> argmax) {
  constexpr int kCount = Packet<A>::kCount, kTile = kLanes * kCount;
  __shared__ A values[kWarps * kTile];
  __shared__ int places[kWarps * kTile];
  const int tiles = divided_up(plan.channels, kTile), roi = blockIdx.x / tiles;
  const int first_channel = blockIdx.x % tiles * kTile, own_channel = first_channel + threadIdx.x % kLanes * kCount;
  const int clip = plan.clip[roi], pitch = mean_pitch(plan) / kCount;
  const AxisWeights<A> y = plan.y.from_pixels(roi), x = plan.x.from_pixels(roi);
  if (clip >= 0) mean += static_cast<int64_t>(clip) * plan.height * plan.width * pitch * kCount;
  if (own_channel < pitch * kCount) mean += own_channel;
  Largest<A> largest[kCount];
  for (int p = threadIdx.x / kLanes; p < plan.y.bins; p += kWarps) {
    const PixelRange ys = y.ranges[p];
    for (int q = 0; q < plan.x.bins; ++q) {
      const PixelRange xs = x.ranges[q];
      const auto* const at = reinterpret_cast<const Packet<A>*>(mean) + (ys.begin * plan.width + xs.begin) * pitch;
      const Packet<A> sum = weighted_sum(y, p, ys, x, q, xs, at, plan.width * pitch, pitch);
#pragma unroll
      for (int k = 0; k < kCount; ++k) largest[k].include_next(sum.values[k], p * plan.x.bins + q);
    }
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    values[threadIdx.x * kCount + k] = largest[k].value;
    places[threadIdx.x * kCount + k] = largest[k].place;
  }
  __syncthreads();
  const Channels<Output> result = output.at(roi, first_channel, plan.channels, kTile);
  if (threadIdx.x >= result.count) return;
  Largest<A> of_all;
  for (int i = threadIdx.x; i < kWarps * kTile; i += kTile) of_all.include(values[i], places[i]);
  const Channels<int64_t> place = argmax.at(roi, first_channel, plan.channels, kTile);
  result.data[threadIdx.x * result.channel] = Output(of_all.value);
  place.data[threadIdx.x * place.channel] = of_all.place;
}

// A tile of grad_features in the order of its memory: [pixel][channel] if channels are inner, else [channel][pixel].
template <typename A>
struct Patch {
  int channels;
  Pieces pieces;

  SF_HOST_DEVICE Patch(const Plan<A>& plan, bool inner, int packet)
      : channels(inner ? kChannels<A> : kLanes),
        pieces({0, 0, plan.height, plan.width}, static_cast<int>(kPatchBytes / sizeof(A)) / channels,
               inner ? 1 : packet) {}
};

// A channel of a RoI's gradient: its bin, its value and how much the frame counts.
template <typename A>
struct OneBin {
  A time = 0, value = 0;
  int place = 0;
};

// Blocks: x over clips, patches of pixels and, fastest, tiles of channels; y over frames (one, if all are alike).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    roi_align_3d_pool_backward_kernel(Plan<accumulator_t<T>> plan, Patch<accumulator_t<T>> patch,
                                      Channels<T> grad_features, Channels<const T> grad_output,
                                      Channels<const int64_t> argmax) {
  using A = accumulator_t<T>;
  constexpr int kCount = Packet<T>::kCount;
  SF_DYNAMIC_SHARED(A, tile);
  __shared__ unsigned reaching[kWarps];
  const int tiles = divided_up(plan.channels, patch.channels);
  const int first_channel = blockIdx.x % tiles * patch.channels, rest = blockIdx.x / tiles;
  const int frame = blockIdx.y, clip = rest / patch.pieces.count;
  const Rectangle where = patch.pieces[rest % patch.pieces.count];
  const int pixels = where.area();
  const Channels<T> to = grad_features.at(clip, first_channel, plan.channels, patch.channels);
  const int pixel_stride = to.inner ? patch.channels : 1, channel_stride = to.inner ? 1 : pixels;
  constexpr int kWide = Packet<A>::kCount;  // the channels of a tile are a multiple of it
  for (int i = threadIdx.x; i < pixels * patch.channels / kWide; i += kThreads)
    reinterpret_cast<Packet<A>*>(tile)[i] = Packet<A>{};

  // The threads of a channel take turns at rows: each row has one thread, for all RoIs.
  const int channel = threadIdx.x % patch.channels, turn = threadIdx.x / patch.channels;
  const int turns = kThreads / patch.channels;
  const auto load = [&](int roi) {
    if (roi < 0) return OneBin<A>{};
    const Channels<const int64_t> places = argmax.at(roi, first_channel, plan.channels, patch.channels);
    const Channels<const T> from = grad_output.at(roi, first_channel, plan.channels, patch.channels);
    return OneBin<A>{plan.time.from_bins(plan.time_row(roi)).weight(frame, 0),
                     static_cast<A>(from.data[channel * from.channel]),
                     static_cast<int>(places.data[channel * places.channel])};
  };
  for (int first = 0; first < plan.rois; first += kThreads) {
    find_reaching(plan, clip, frame, where, first, reaching);
    if (channel >= to.count) continue;
    ReachingRoIs reached(reaching, first);
    int roi = reached.next();
    OneBin<A> bin = load(roi);
    while (roi >= 0) {
      const int following = reached.next();
      const OneBin<A> next_bin = load(following);  // on its way while this one is added
      const int64_t box = plan.box(roi, frame);
      const AxisWeights<A> y = plan.y.from_pixels(box), x = plan.x.from_pixels(box);
      const int p = bin.place / plan.x.bins, q = bin.place % plan.x.bins;
      const PixelRange ys = overlap(y.ranges[p], where.y, where.height);
      const PixelRange xs = overlap(x.ranges[q], where.x, where.width);
      if (bin.time != 0 && (!ys.empty() & !xs.empty())) {
        const A value = bin.time * bin.value;
#pragma unroll 1
        for (int i = ys.begin + (turn + turns - ys.begin % turns) % turns; i < ys.end; i += turns) {
          const A row = y.weight(p, i) * value;
          A* sum = tile + ((i - where.y) * where.width + xs.begin - where.x) * pixel_stride + channel * channel_stride;
#pragma unroll 1
          for (int j = xs.begin; j < xs.end; ++j, sum += pixel_stride) *sum += row * x.weight(q, j);
        }
      }
      roi = following, bin = next_bin;
    }
  }
  __syncthreads();

  const PixelRange frames{frame, plan.frames_alike() ? plan.frames : frame + 1};
  const auto store_packet = [&](const A* values, T* at) {
    Packet<T> packet;
#pragma unroll
    for (int k = 0; k < kCount; k += kWide) {
      const Packet<A> part = *reinterpret_cast<const Packet<A>*>(values + k);
#pragma unroll
      for (int j = 0; j < kWide; ++j) packet.values[k + j] = T(part.values[j]);
    }
#pragma unroll 4
    for (int f = frames.begin; f < frames.end; ++f) *reinterpret_cast<Packet<T>*>(at + f * to.frame) = packet;
  };
  if (to.packets == Packets::kOfChannels) {
    const int packets = patch.channels / kCount;
#pragma unroll 1
    for (int i = threadIdx.x; i < pixels * packets; i += kThreads) {
      const int pixel = i / packets, k = i % packets * kCount;
      if (k < to.count) store_packet(tile + pixel * pixel_stride + k, to.pixel(where, pixel) + k);
    }
  } else if (to.packets == Packets::kOfPixels && where.width == plan.width && where.y * plan.width % kCount == 0 &&
             pixels % kCount == 0) {
    const int packets = pixels / kCount;
    T* const start = to.data + where.y * plan.width;
#pragma unroll 1
    for (int i = threadIdx.x; i < to.count * packets; i += kThreads) {
      const int k = i / packets, pixel = i % packets * kCount;
      store_packet(tile + k * channel_stride + pixel, start + k * to.channel + pixel);
    }
  } else {
    for_elements(to, pixels, [&](int pixel, int first, int step) {
      T* at = to.pixel(where, pixel);
#pragma unroll 1
      for (int k = first; k < to.count; k += step) {
        const T value = T(tile[pixel * pixel_stride + k * channel_stride]);
        for (int f = frames.begin; f < frames.end; ++f) at[k * to.channel + f * to.frame] = value;
      }
    });
  }
}

}  // namespace

template <typename T>
void pool_forward_on_mean(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, accumulator_t<T>* mean,
                          void* stream) {
  using A = accumulator_t<T>;
  constexpr int kCount = Packet<T>::kCount, kTile = kLanes * Packet<A>::kCount;
  const Channels<const T> features(p.features);
  const bool wide = features.packets != Packets::kNone;
  const int64_t pixels = static_cast<int64_t>(plan.height) * plan.width, clips = plan.clips;
  SF_CHECK(pixels * mean_pitch(plan) <= INT32_MAX / 2, "roi_align_3d_pool: the CUDA kernels cannot count the ",
           pixels * mean_pitch(plan), " elements of a frame");
  const int frames = to_int(p.features.size(2));
  if (features.inner) {
    const auto kernel = wide ? roi_align_3d_mean_forward_kernel<T, kCount> : roi_align_3d_mean_forward_kernel<T, 1>;
    const int blocks = divided_up(static_cast<int>(pixels) * (plan.channels / (wide ? kCount : 1)), kThreads);
    SF_LAUNCH(kernel, grid(clips * blocks), kThreads, 0, stream, plan, features, frames, mean, blocks);
  } else {
    const auto kernel = wide ? roi_align_3d_transposed_mean_forward_kernel<T, kCount>
                             : roi_align_3d_transposed_mean_forward_kernel<T, 1>;
    const int pieces = divided_up(static_cast<int>(pixels), kMeanPixels);
    SF_LAUNCH(kernel, grid(clips * divided_up(plan.channels, kLanes) * pieces), kThreads, 0, stream, plan, features,
              frames, mean, pieces);
  }
  SF_LAUNCH((roi_align_3d_pool_forward_kernel<A, T>),
            grid(static_cast<int64_t>(plan.rois) * divided_up(plan.channels, kTile)), kThreads, 0, stream, plan, mean,
            Channels<T>(p.output), Channels<int64_t>(p.argmax));
}

template <typename T>
void pool_backward(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, void* stream) {
  using A = accumulator_t<T>;
  const Channels<T> grad_features(p.features);
  const Patch<A> patch(plan, grad_features.inner, Packet<T>::kCount);
  const int64_t tiles = divided_up(plan.channels, patch.channels);
  SF_LAUNCH((roi_align_3d_pool_backward_kernel<T>),
            grid(tiles * plan.clips * patch.pieces.count, plan.frames_alike() ? 1 : plan.frames), kThreads, kPatchBytes,
            stream, plan, patch, grad_features, Channels<const T>(p.output), Channels<const int64_t>(p.argmax));
}

#define SF_INSTANTIATE(T)                                                                                          \
  template void pool_forward_on_mean<T>(const RoIAlign3DParams&, const Plan<accumulator_t<T>>&, accumulator_t<T>*, \
                                        void*);                                                                    \
  template void pool_backward<T>(const RoIAlign3DParams&, const Plan<accumulator_t<T>>&, void*);
SF_INSTANTIATE(float)
SF_INSTANTIATE(double)
SF_INSTANTIATE(bfloat16)
SF_INSTANTIATE(float16)
#undef SF_INSTANTIATE

}  // namespace roi_align_3d
}  // namespace slowfast
