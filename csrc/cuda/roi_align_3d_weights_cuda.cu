// The CUDA kernel that turns the boxes of roi_align_3d and roi_align_3d_pool into weights; see roi_align_3d_plan.cuh.

#include <type_traits>

#include "roi_align_3d_plan.cuh"

namespace slowfast {
namespace roi_align_3d {
namespace {

constexpr int kCachedPixels = 64;

// The values of the RoIs, float or double, with the strides of their tensor.
template <typename P>
struct RoIValues {
  const P* data;
  int64_t roi, frame, column;
};

template <typename A>
struct BinWeights {  // of one bin, for add_bin_weights
  A* weights;
  int64_t stride;

  SF_HOST_DEVICE A& operator[](int64_t pixel) const { return weights[pixel * stride]; }
};

// A warp makes one axis of one box: y, x or time by its blockIdx.y. A lane makes a bin, in shared memory if it fits,
// since samples are added to it one after the other.
template <typename P, typename A, bool kFromBins>
__global__ void __launch_bounds__(kLanes) roi_align_3d_weights_kernel(RoIValues<P> values, Plan<A> plan) {
  __shared__ A cache[kCachedPixels * kLanes];
  const bool tubelets = plan.kind == RoIKind::kTubelets, cuboids = plan.kind == RoIKind::kCuboids;
  const bool is_y = blockIdx.y == 0, is_time = blockIdx.y == 2;
  if (is_time && blockIdx.x >= plan.time_rows()) return;
  const int64_t box = blockIdx.x;
  const int frame = tubelets ? blockIdx.x % plan.frames : 0, roi = tubelets ? blockIdx.x / plan.frames : blockIdx.x;
  const Axis<A>& axis = is_time ? plan.time : (is_y ? plan.y : plan.x);
  const int averaged = is_time ? plan.averaged : 1;

  // The clip's own frames: t = T is a frame per bin, whatever the spatial sampling.
  RoIAxis<P> samples = RoIAxis<P>::make(0, static_cast<P>(plan.frames), 1, axis.bins * averaged, 0, true);
  if (!is_time || cuboids) {
    const P* at = values.data + roi * values.roi;
    const int clip = *at >= 0 && *at < static_cast<P>(plan.clips) ? static_cast<int>(*at) : -1;
    if (is_y && frame == 0 && threadIdx.x == 0) plan.clip[roi] = clip;
    at += frame * values.frame;
    const int low = is_time ? 1 : (cuboids ? 2 : 1) + is_y, high = low + (cuboids ? 3 : 2);
    samples = RoIAxis<P>::make(at[low * values.column], at[high * values.column],
                               static_cast<P>(is_time ? plan.temporal_scale : plan.spatial_scale), axis.bins * averaged,
                               plan.sampling_ratio, plan.aligned);
    if (clip < 0) samples.samples = 0;
  }

  A* weights = axis.weights + box * axis.bins * axis.size;
  const bool cached = axis.size <= kCachedPixels;
  PixelRange touched;
  for (int bin = threadIdx.x; bin < axis.bins; bin += kLanes) {
    const BinWeights<A> result{weights + bin, axis.bins};
    const BinWeights<A> sums = cached ? BinWeights<A>{cache + threadIdx.x, kLanes} : result;
    for (int pixel = 0; pixel < axis.size; ++pixel) sums[pixel] = 0;
    PixelRange range;
    for (int i = 0; i < averaged; ++i)
      add_bin_weights(samples, bin * averaged + i, axis.size, A(1) / static_cast<A>(averaged), sums, range);
    if (cached)
      for (int pixel = 0; pixel < axis.size; ++pixel) result[pixel] = sums[pixel];
    if (!kFromBins) axis.ranges[box * axis.bins + bin] = range;
    touched.include(range);
  }
  __syncwarp();
  touched = union_over_warp(touched);
  if (threadIdx.x == 0) axis.spans[box] = touched;
  if constexpr (kFromBins) {
    __syncthreads();  // the weights of all bins are written
    for (int pixel = threadIdx.x; pixel < axis.size; pixel += kLanes) {
      PixelRange bins;
      for (int bin = 0; bin < axis.bins; ++bin)
        if (weights[static_cast<int64_t>(pixel) * axis.bins + bin] != 0) bins.include({bin, bin + 1});
      axis.ranges[box * axis.size + pixel] = bins;
    }
  }
}

template <typename P, typename A, bool kFromBins>
void launch(const RoIAlign3DParams& p, const Plan<A>& plan, void* stream) {
  const TensorView& r = p.rois;
  const bool tubelets = plan.kind == RoIKind::kTubelets;
  const RoIValues<P> values{r.as<const P>(), r.stride(0), tubelets ? r.stride(1) : 0, r.stride(r.ndim - 1)};
  SF_LAUNCH((roi_align_3d_weights_kernel<P, A, kFromBins>), grid(plan.boxes(), 3), kLanes, 0, stream, values, plan);
}

}  // namespace

template <typename A, bool kFromBins>
void make_weights(const RoIAlign3DParams& p, const Plan<A>& plan, void* stream) {
  if (plan.rois == 0) return;
  if (p.rois.dtype == DType::kFloat64) return launch<double, A, kFromBins>(p, plan, stream);
  if constexpr (std::is_same_v<A, float>)
    launch<float, A, kFromBins>(p, plan, stream);
  else
    SF_CHECK(false, "roi_align_3d: float64 features need float64 rois, got ", name_of(p.rois.dtype));
}

template void make_weights<float, false>(const RoIAlign3DParams&, const Plan<float>&, void*);
template void make_weights<float, true>(const RoIAlign3DParams&, const Plan<float>&, void*);
template void make_weights<double, false>(const RoIAlign3DParams&, const Plan<double>&, void*);
template void make_weights<double, true>(const RoIAlign3DParams&, const Plan<double>&, void*);

}  // namespace roi_align_3d
}  // namespace slowfast
