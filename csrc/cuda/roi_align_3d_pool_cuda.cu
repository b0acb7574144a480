// CUDA kernels of roi_align_3d_pool where it differs from roi_align_3d: the temporal mean that its forward starts from,
// and its backward.
//
// The mean is taken of the pixels that the clip's boxes lie in, by 16-byte loads, all frames of a packet under way
// together; it is kept in the accumulator's type and in the order of the features' memory.
//
// Backward: all of a channel's gradient is in one bin, which the forward has saved in argmax (8 bytes per RoI and
// channel; finding it again would read the features again). So a thread owns a channel of a patch in shared memory and
// adds, RoI by RoI in ascending order, to the few pixels of that bin; then the block writes its patch, to all frames if
// they are alike. The patch lies as grad_features does, so that both are read and written 16 bytes at a time.

#include "roi_align_3d_pool.cuh"
#include "roi_align_3d_tile.cuh"

namespace slowfast {
namespace roi_align_3d {
namespace {

constexpr int kMeanBlocks = 2048;
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

// Blocks: x over clips and, fastest, the packets of a clip. A packet is of kCount elements, along channels if these are
// inner, else along pixels; `dense`: the rows of a frame follow each other.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads)
    roi_align_3d_mean_forward_kernel(Plan<accumulator_t<T>> plan, Channels<const T> features, int frames,
                                     accumulator_t<T>* mean, int blocks) {
  using A = accumulator_t<T>;
  struct alignas(kCount * sizeof(T)) Input {
    T values[kCount];
  };
  constexpr int kStored = kCount < Packet<A>::kCount ? kCount : Packet<A>::kCount;
  struct alignas(kStored * sizeof(A)) Output {
    A values[kStored];
  };
  const int clip = blockIdx.x / blocks;
  const Rectangle where = covered(plan, clip);
  const Channels<const T> from = features.at(clip, 0, plan.channels, plan.channels);
  const int area = plan.height * plan.width;
  mean += static_cast<int64_t>(clip) * plan.channels * area;
  // Along pixels, whole rows: the packets that the rows of the rectangle lie in.
  const int first_packet = where.y * plan.width / kCount;
  const int packets = from.inner ? plan.channels / kCount
                                 : divided_up((where.y + where.height) * plan.width, kCount) - first_packet;
  const int count = packets * (from.inner ? where.area() : plan.channels);
  const A share = A(1) / static_cast<A>(frames);
#pragma unroll 1
  for (int i = blockIdx.x % blocks * kThreads + threadIdx.x; i < count; i += blocks * kThreads) {
    const int line = i / packets, packet = i % packets;
    const T* at = from.data;
    A* to = mean;
    if (from.inner) {
      const int y = where.y + line / where.width, x = where.x + line % where.width;
      at += y * from.y + x * from.x + packet * kCount;
      to += (y * plan.width + x) * plan.channels + packet * kCount;
    } else {
      const int pixel = (first_packet + packet) * kCount;
      at += line * from.channel + pixel / plan.width * from.y + pixel % plan.width * from.x;
      to += line * area + pixel;
    }
    A sum[kCount] = {};
#pragma unroll 8
    for (int f = 0; f < frames; ++f) {
      const Input input = *reinterpret_cast<const Input*>(at + f * from.frame);
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum[k] += share * static_cast<A>(input.values[k]);
    }
#pragma unroll
    for (int k = 0; k < kCount; k += kStored) {
      Output output;
#pragma unroll
      for (int j = 0; j < kStored; ++j) output.values[j] = sum[k + j];
      *reinterpret_cast<Output*>(to + k) = output;
    }
  }
}

// A tile of grad_features in the order of its memory: [pixel][channel] if channels are inner, else [channel][pixel].
template <typename A>
struct Patch {
  int channels;
  Pieces pieces;

  SF_HOST_DEVICE Patch(const Plan<A>& plan, bool inner, int packet)
      : channels(inner ? kChannels<A> : kLanes),
        pieces({0, 0, plan.height, plan.width}, static_cast<int>(kPatchBytes / sizeof(A)) / channels, inner ? 1 : packet) {}
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

  // The threads of a channel take turns at rows.
  const int channel = threadIdx.x % patch.channels, turn = threadIdx.x / patch.channels;
  const int turns = kThreads / patch.channels;
  const auto load = [&](int roi) {
    if (roi < 0) return OneBin<A>{};
    const Channels<const int64_t> places = argmax.at(roi, first_channel, plan.channels, patch.channels);
    const Channels<const T> from = grad_output.at(roi, first_channel, plan.channels, patch.channels);
    return OneBin<A>{*plan.time.from_bins(plan.time_row(roi)).at(frame, 0),
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
        const A* const x_weights = x.at(q, 0);
#pragma unroll 1
        for (int i = ys.begin + turn; i < ys.end; i += turns) {
          const A row = *y.at(p, i) * value;
          A* sum = tile + ((i - where.y) * where.width + xs.begin - where.x) * pixel_stride + channel * channel_stride;
#pragma unroll 1
          for (int j = xs.begin; j < xs.end; ++j, sum += pixel_stride) *sum += row * x_weights[j * x.input_stride];
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
void make_temporal_mean(const RoIAlign3DParams& p, const RoIAlign3DParams& on_mean, const Plan<accumulator_t<T>>& plan,
                        void* stream) {
  const Channels<const T> features(p.features);
  constexpr int kCount = Packet<T>::kCount;
  const bool wide = features.packets != Packets::kNone;
  // One frame of a clip, with room for the last step of the loop over it.
  const int64_t elements = static_cast<int64_t>(plan.channels) * plan.height * plan.width;
  SF_CHECK(elements <= INT32_MAX / 2, "roi_align_3d_pool: the CUDA kernels cannot count the ", elements,
           " elements of a frame");
  const int packets = static_cast<int>(elements) / (wide ? kCount : 1);
  const int most = divided_up(packets, kThreads), share = divided_up(kMeanBlocks, plan.clips);
  const int blocks = most < share ? most : share;
  auto* const mean = on_mean.features.as<accumulator_t<T>>();
  const auto kernel = wide ? roi_align_3d_mean_forward_kernel<T, kCount> : roi_align_3d_mean_forward_kernel<T, 1>;
  SF_LAUNCH(kernel, grid(static_cast<int64_t>(plan.clips) * blocks), kThreads, 0, stream, plan, features,
            to_int(p.features.size(2)), mean, blocks);
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

#define SF_INSTANTIATE(T)                                                                                      \
  template void make_temporal_mean<T>(const RoIAlign3DParams&, const RoIAlign3DParams&,                        \
                                      const Plan<accumulator_t<T>>&, void*);                                   \
  template void pool_backward<T>(const RoIAlign3DParams&, const Plan<accumulator_t<T>>&, void*);
SF_INSTANTIATE(float)
SF_INSTANTIATE(double)
SF_INSTANTIATE(bfloat16)
SF_INSTANTIATE(float16)
#undef SF_INSTANTIATE

}  // namespace roi_align_3d
}  // namespace slowfast
