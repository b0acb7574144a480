// CUDA kernels of gather_frames: which one makes an output, and the plain one, which can make any.

#include "gather_frames_filter.cuh"
#include "gather_frames_two_taps.cuh"
#include "gather_frames_yuv.cuh"

namespace slowfast {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLargestSide = 0x7FFFFFFF, kMaxGridX = 0x7FFFFFFF;

// One output pixel per thread, straight from the frames; A is the type of the arithmetic.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) gather_frames_plain_forward_kernel(const __grid_constant__ Arguments a) {
  const int64_t n = blockIdx.y;
  const Clip& clip = a.clips[n];
  const ResizeAxis<int64_t> vertical{clip.height, clip.resized_height, a.antialias};
  const ResizeAxis<int64_t> horizontal{clip.width, clip.resized_width, a.antialias};
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, pixels = a.fast.frames * a.height * a.width;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels; i += step) {
    const int64_t x = i % a.width, y = i / a.width % a.height, t = i / a.width / a.height;
    const int64_t row = clip.top + y, column = clip.left + (clip.flip ? a.width - 1 - x : x);
    const int64_t first_row = vertical.first(row), first_column = horizontal.first(column);
    const int64_t index = source_frame(a, clip, n, t);
    const uint8_t *frame = clip.frames + index * clip.stride_t, *chroma = clip.chroma + index * clip.chroma_t;
    A value[3] = {0, 0, 0};
    int64_t row_weights = 0;
    for (int64_t k = 0; k < vertical.taps(); ++k) {
      const int64_t row_weight = vertical.raw_weight(row, first_row + k);
      if (!row_weight) break;
      A mixed[3] = {0, 0, 0};
      int64_t column_weights = 0;
      for (int64_t l = 0; l < horizontal.taps(); ++l) {
        const int64_t weight = horizontal.raw_weight(column, first_column + l);
        if (!weight) break;
        column_weights += weight;
        const A fraction = static_cast<A>(weight) / static_cast<A>(column_weights);
        const uint8_t* line = frame + (first_row + k) * clip.stride_h;
        const int source_column = static_cast<int>(first_column + l);
        uint32_t word;
        if (clip.chroma) {
          word = YuvRow{line, chroma + (first_row + k) / 2 * clip.chroma_h}.pixel(clip, source_column);
        } else {
          word = rgb_pixel(clip, line, source_column);
        }
        for (int c = 0; c < 3; ++c) mixed[c] += (static_cast<A>(word >> 8 * c & 0xFF) - mixed[c]) * fraction;
      }
      row_weights += row_weight;
      const A fraction = static_cast<A>(row_weight) / static_cast<A>(row_weights);
      for (int c = 0; c < 3; ++c) value[c] += (mixed[c] - value[c]) * fraction;
    }
    const int64_t slow_t = slow_frame_of(t, a.fast.frames, a.slow.frames, a.linspace), pixel_stride = a.planar ? 1 : 3;
    for (int c = 0; c < 3; ++c) {
      const T result = to_output<T>(value[c] * static_cast<A>(a.scale_wide[c]) + static_cast<A>(a.shift_wide[c]));
      const auto write = [&](const Output& output, int64_t frame_index) {
        static_cast<T*>(output.data)[n * output.stride_n + c * output.stride_c + frame_index * output.stride_t +
                                     y * output.stride_h + x * pixel_stride] = result;
      };
      write(a.fast, t);
      if (slow_t >= 0) write(a.slow, slow_t);
    }
  }
}

Output output_of(const TensorView& view) {
  return {view.data, view.stride(0), view.stride(1), view.stride(2), view.stride(3), view.size(2)};
}

Clip clip_of(const GatherFramesParams& p, int64_t n) {
  const GatherFramesClip& clip = p.clips[n];
  const TensorView& f = clip.frames;
  check_clip(clip, n);
  SF_CHECK(f.size(0) > 0 && f.size(1) > 0 && f.size(2) > 0, "gather_frames: clip ", n, " has no frames");
  SF_CHECK(clip.top >= 0 && clip.left >= 0 && clip.top + p.fast.size(3) <= clip.resized_height &&
               clip.left + p.fast.size(4) <= clip.resized_width,
           "gather_frames: the crop is not inside the resized frame of clip ", n);
  for (int64_t side : {f.size(0), f.size(1), f.size(2), clip.resized_height, clip.resized_width})
    SF_CHECK(side <= kLargestSide, "gather_frames: clip ", n, " has more than ", kLargestSide,
             " frames, or pixels along a side");
  Clip result{};
  result.frames = f.as<const uint8_t>();
  result.stride_t = f.stride(0);
  result.stride_h = f.stride(1);
  result.stride_w = f.stride(2);
  result.count = static_cast<int>(f.size(0));
  result.height = static_cast<int>(f.size(1));
  result.width = static_cast<int>(f.size(2));
  result.resized_height = static_cast<int>(clip.resized_height);
  result.resized_width = static_cast<int>(clip.resized_width);
  result.top = static_cast<int>(clip.top);
  result.left = static_cast<int>(clip.left);
  result.column_factor = static_cast<int>(kStagedSide / clip.resized_width);
  result.flip = clip.flip;
  if (clip.chroma.given()) {
    const TensorView& uv = clip.chroma;
    result.chroma = uv.as<const uint8_t>();
    result.chroma_t = uv.stride(0);
    result.stride_c = uv.stride(1);
    result.chroma_h = uv.stride(2);
    result.chroma_w = uv.stride(3);
    result.colour = clip.colour;
    result.dense = result.stride_w == 1;
    const auto aligned = [&](int64_t bytes) {
      return reinterpret_cast<uintptr_t>(uv.data) % bytes == 0 && uv.stride(0) % bytes == 0 &&
             uv.stride(2) % bytes == 0;
    };
    if (uv.stride(3) == 1 && uv.stride(1) % 2 == 0 && aligned(2)) result.chroma_loads = ChromaLoads::kPlanes;
    if (uv.stride(3) == 2 && uv.stride(1) == 1 && aligned(4)) result.chroma_loads = ChromaLoads::kPairs;
  } else {
    result.stride_c = f.stride(3);
    result.dense = result.stride_w == 3 && result.stride_c == 1;
  }
  return result;
}

template <typename T>
void launch(Arguments* a, int64_t clips, void* stream) {
  if constexpr (!std::is_same_v<T, double>)
    if (launch_two_taps<T>(a, clips, stream) || launch_filter<T>(a, clips, stream)) return;
  const int64_t blocks = (a->fast.frames * a->height * a->width + kThreads - 1) / kThreads;
  SF_LAUNCH((gather_frames_plain_forward_kernel<T, accumulator_t<T>>),
            dim3(static_cast<unsigned>(std::min(blocks, kMaxGridX)), static_cast<unsigned>(clips)), dim3(kThreads), 0,
            stream, *a);
}

}  // namespace

void gather_frames_cuda(const GatherFramesParams& p, int device, void* stream) {
  if (p.fast.numel() == 0) return;
  SF_CHECK(p.indices.dtype == DType::kInt64 && p.indices.ndim == 2 && p.indices.size(0) == p.fast.size(0) &&
               p.indices.size(1) == p.fast.size(2),
           "gather_frames: indices is not int64 [N, T']");
  const DeviceGuard guard(device);
  Arguments a{};
  a.fast = output_of(p.fast);
  a.slow = output_of(p.slow);
  a.height = p.fast.size(3);
  a.width = p.fast.size(4);
  a.index_stride_n = p.indices.stride(0);
  a.index_stride_t = p.indices.stride(1);
  a.planar = p.fast.stride(4) == 1;
  a.linspace = p.linspace;
  a.antialias = p.antialias;
  for (int c = 0; c < 3; ++c) {
    const bool normalised = p.fast.dtype != DType::kUInt8;
    a.scale_wide[c] = normalised ? 1 / (255 * p.std[c]) : 1;
    a.shift_wide[c] = normalised ? -p.mean[c] / p.std[c] : 0;
    a.scale[c] = static_cast<float>(a.scale_wide[c]);
    a.shift[c] = static_cast<float>(a.shift_wide[c]);
  }
  for (int64_t first = 0; first < p.fast.size(0); first += kMaxClips) {
    const int64_t clips = std::min<int64_t>(kMaxClips, p.fast.size(0) - first);
    for (int64_t n = 0; n < clips; ++n) a.clips[n] = clip_of(p, first + n);
    const int64_t element = size_of(p.fast.dtype);
    a.indices = p.indices.as<const int64_t>() + first * p.indices.stride(0);
    a.fast.data = p.fast.as<uint8_t>() + first * p.fast.stride(0) * element;
    a.slow.data = p.slow.numel() ? p.slow.as<uint8_t>() + first * p.slow.stride(0) * element : nullptr;
    if (p.fast.dtype == DType::kUInt8) {
      launch<uint8_t>(&a, clips, stream);
    } else {
      dispatch_floating_cuda(p.fast.dtype, "gather_frames",
                             [&](auto tag) { launch<typename decltype(tag)::type>(&a, clips, stream); });
    }
  }
}

}  // namespace slowfast
