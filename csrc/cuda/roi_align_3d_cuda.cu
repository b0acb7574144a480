// CUDA kernels of roi_align_3d, and the launchers of roi_align_3d and roi_align_3d_pool. First the weights of all boxes
// are made (roi_align_3d_plan.cuh); everything else is a sum with these weights.
//
// Forward: a block owns a RoI, a time bin and a tile of channels. It sums the time bin's frames into a tile of pixels
// in shared memory, once per pixel, then a warp takes a bin and its lanes the channels. The pooled form keeps the
// running maximum and writes [R, C], unless all frames count the same (roi_align_3d_pool_cuda.cu).
//
// Backward: in gather form, the same two steps transposed. A block owns a patch of grad_features, walks in ascending
// order over the RoIs that reach it, and writes it once. Sorted segments would need a sort and one partial sum for each
// pixel that a RoI touches, R C T h' w' of them in memory; here nothing is written but the gradient, which is what
// bounds it, and a block finds its RoIs by testing 256 boxes at once. No atomics: one owner and one order for each
// element, so the same bits each time. For boxes with one time bin all frames have one gradient: it is computed once
// and stored T times.

#include "roi_align_3d_pool.cuh"

namespace slowfast {
namespace roi_align_3d {
namespace {

// Blocks per multiprocessor that leave each kernel the registers it needs.
constexpr int kForwardBlocks = 2, kBackwardBlocks = 2;
template <typename A>
constexpr int kSharedBytes = (kPixels + kBins) * kPitch<A> * sizeof(A);

// Blocks: x over RoIs and, fastest, tiles of channels; y over time bins.
template <typename T, bool kPool>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    roi_align_3d_forward_kernel(Plan<accumulator_t<T>> plan, Channels<const T> features, Channels<T> output,
                                Channels<int64_t> argmax) {
  using A = accumulator_t<T>;
  SF_DYNAMIC_SHARED(A, shared);
  A *const inputs = shared, *const outputs = shared + kPixels * kPitch<A>;
  const int tiles = divided_up(plan.channels, kChannels<A>);
  const int channel = blockIdx.x % tiles * kChannels<A>, roi = blockIdx.x / tiles;
  const int time_bin = blockIdx.y, clip = plan.clip[roi];
  const Channels<const T> from = features.at(clip < 0 ? 0 : clip, channel, plan.channels, kChannels<A>);
  const Channels<T> result = output.at(roi, channel, plan.channels, kChannels<A>);
  const AxisWeights<A> time = plan.time.from_pixels(plan.time_row(roi));
  const PixelRange frames = time.ranges[time_bin];
  const Pieces bins({0, 0, plan.y.bins, plan.x.bins}, kBins);
  Largest<A> largest[PerLane<A>::kCount];
  for (int piece = 0; piece < bins.count; ++piece) {
    const Rectangle to = bins[piece];
    for_part(to, to, outputs, [&](int, int, PerLane<A>& own) { own = {}; });
    // Frames that share a box: all of them, or a tubelet's one by one.
    for (int first = frames.begin, last; first < frames.end; first = last) {
      last = plan.kind == RoIKind::kTubelets ? first + 1 : frames.end;
      const int64_t box = plan.box(roi, first);
      const PixelRange ys = plan.y.spans[box], xs = plan.x.spans[box];
      const Pieces pixels({ys.begin, xs.begin, ys.end - ys.begin, xs.end - xs.begin}, kPixels);
      const TimeWeights<A> weights{{first, last}, time.weights + time_bin, time.input_stride};
      for (int i = 0; i < pixels.count; ++i) {
        load_tile(from, weights, pixels[i], inputs);
        __syncthreads();
        resample(plan.y.from_pixels(box), plan.x.from_pixels(box), pixels[i], inputs, to, to, outputs);
        __syncthreads();
      }
    }
    if (kPool) {
      for_part(to, to, outputs, [&](int p, int q, const PerLane<A>& own) {
#pragma unroll
        for (int k = 0; k < PerLane<A>::kCount; ++k) largest[k].include(own.values[k], p * plan.x.bins + q);
      });
    } else {
      __syncthreads();
      store_tile(outputs, to, {time_bin, time_bin + 1}, result);
      __syncthreads();
    }
  }
  if constexpr (kPool) {  // the maxima of the warps meet where the tile was
    A* const values = inputs;
    int* const places = reinterpret_cast<int*>(inputs + kWarps * kChannels<A>);
#pragma unroll
    for (int k = 0; k < PerLane<A>::kCount; ++k) {
      values[threadIdx.x * PerLane<A>::kCount + k] = largest[k].value;
      places[threadIdx.x * PerLane<A>::kCount + k] = largest[k].place;
    }
    __syncthreads();
    if (threadIdx.x >= result.count) return;
    Largest<A> of_all;
    for (int i = threadIdx.x; i < kWarps * kChannels<A>; i += kChannels<A>) of_all.include(values[i], places[i]);
    const Channels<int64_t> place = argmax.at(roi, channel, plan.channels, kChannels<A>);
    result.data[threadIdx.x * result.channel] = T(of_all.value);
    place.data[threadIdx.x * place.channel] = of_all.place;
  }
}

// Blocks: x over clips, patches of pixels and, fastest, tiles of channels; y over frames (one, if all are alike).
template <typename T>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    roi_align_3d_backward_kernel(Plan<accumulator_t<T>> plan, Channels<T> grad_features,
                                 Channels<const T> grad_output) {
  using A = accumulator_t<T>;
  SF_DYNAMIC_SHARED(A, shared);
  A *const inputs = shared, *const outputs = shared + kBins * kPitch<A>;
  __shared__ unsigned reaching[kWarps];
  const Pieces pixels({0, 0, plan.height, plan.width}, kPixels), bins({0, 0, plan.y.bins, plan.x.bins}, kBins);
  const int tiles = divided_up(plan.channels, kChannels<A>);
  const int channel = blockIdx.x % tiles * kChannels<A>, rest = blockIdx.x / tiles;
  const int frame = blockIdx.y, clip = rest / pixels.count;
  const Rectangle to = pixels[rest % pixels.count];
  for_part(to, to, outputs, [&](int, int, PerLane<A>& own) { own = {}; });
  for (int first = 0; first < plan.rois; first += kThreads) {
    find_reaching(plan, clip, frame, to, first, reaching);
    ReachingRoIs reached(reaching, first);
    for (int roi = reached.next(); roi >= 0; roi = reached.next()) {
      const int64_t box = plan.box(roi, frame);
      const AxisWeights<A> time = plan.time.from_bins(plan.time_row(roi));
      const TimeWeights<A> weights{time.ranges[frame], time.weights + frame * time.output_stride, 1};
      if (weights.range.empty()) continue;
      const Channels<const T> from = grad_output.at(roi, channel, plan.channels, kChannels<A>);
      const Rectangle part = overlap(to, plan.y.spans[box], plan.x.spans[box]);
      for (int piece = 0; piece < bins.count; ++piece) {
        load_tile(from, weights, bins[piece], inputs);
        __syncthreads();
        resample(plan.y.from_bins(box), plan.x.from_bins(box), bins[piece], inputs, to, part, outputs);
        __syncthreads();
      }
    }
  }
  __syncthreads();
  store_tile(outputs, to, {frame, plan.frames_alike() ? plan.frames : frame + 1},
             grad_features.at(clip, channel, plan.channels, kChannels<A>));
}

template <typename T, bool kPool>
void align(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, void* stream) {
  using A = accumulator_t<T>;
  const int64_t tiles = divided_up(plan.channels, kChannels<A>);
  SF_LAUNCH((roi_align_3d_forward_kernel<T, kPool>), grid(plan.rois * tiles, plan.time.bins), kThreads, kSharedBytes<A>,
            stream, plan, Channels<const T>(p.features), Channels<T>(p.output), Channels<int64_t>(p.argmax));
}

template <typename T>
void backward(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, void* stream) {
  using A = accumulator_t<T>;
  const Pieces pixels({0, 0, plan.height, plan.width}, kPixels);
  const int64_t tiles = divided_up(plan.channels, kChannels<A>);
  SF_LAUNCH((roi_align_3d_backward_kernel<T>),
            grid(tiles * plan.clips * pixels.count, plan.frames_alike() ? 1 : plan.frames), kThreads, kSharedBytes<A>,
            stream, plan, Channels<T>(p.features), Channels<const T>(p.output));
}

// The pieces of the workspace: a plan, and the temporal mean in a pooled forward where all frames count the same. It is
// a clip of one frame then.
template <typename A>
struct Workspace {
  Plan<A> plan;
  A* mean = nullptr;
  int64_t bytes;

  Workspace(const RoIAlign3DParams& p, bool backward) : plan(p, p.workspace.as<char>()) {
    const bool on_mean = p.options.pool && !backward && plan.frames_alike();
    if (on_mean) {
      RoIAlign3DParams one_frame = p;
      one_frame.features.sizes[2] = one_frame.options.bins[0] = 1;
      plan = Plan<A>(one_frame, p.workspace.as<char>());
    }
    Arena arena = plan.arena;
    if (on_mean)
      mean = arena.template take<A>(static_cast<int64_t>(plan.clips) * plan.height * plan.width * mean_pitch(plan));
    bytes = arena.used;
  }
};

template <typename A>
Workspace<A> checked_workspace(const RoIAlign3DParams& p, bool backward) {
  const Workspace<A> workspace(p, backward);
  SF_CHECK(p.workspace.numel() >= workspace.bytes, "roi_align_3d: the workspace is too small");
  return workspace;
}

}  // namespace
}  // namespace roi_align_3d

int64_t roi_align_3d_workspace_bytes_cuda(const RoIAlign3DParams& p, bool backward) {
  if (p.features.dtype == DType::kFloat64) return roi_align_3d::Workspace<double>(p, backward).bytes;
  return roi_align_3d::Workspace<float>(p, backward).bytes;
}

void roi_align_3d_forward_cuda(const RoIAlign3DParams& p, int device, void* stream) {
  using namespace roi_align_3d;
  if (p.output.numel() == 0) return;
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.features.dtype, "roi_align_3d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulator_t<T>;
    const Workspace<A> workspace = checked_workspace<A>(p, false);
    make_weights<A, false>(p, workspace.plan, stream);
    if (!p.options.pool)
      align<T, false>(p, workspace.plan, stream);
    else if (workspace.mean == nullptr)
      align<T, true>(p, workspace.plan, stream);
    else
      pool_forward_on_mean<T>(p, workspace.plan, workspace.mean, stream);
  });
}

void roi_align_3d_backward_cuda(const RoIAlign3DParams& p, int device, void* stream) {
  using namespace roi_align_3d;
  if (p.features.numel() == 0) return;
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.features.dtype, "roi_align_3d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulator_t<T>;
    const Workspace<A> workspace = checked_workspace<A>(p, true);
    if (p.options.pool) {
      make_weights<A, false>(p, workspace.plan, stream);
      pool_backward<T>(p, workspace.plan, stream);
    } else {
      make_weights<A, true>(p, workspace.plan, stream);
      backward<T>(p, workspace.plan, stream);
    }
  });
}

}  // namespace slowfast
