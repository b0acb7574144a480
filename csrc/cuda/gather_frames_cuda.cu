// CUDA kernels of gather_frames. One launch makes both pathways of up to kMaxClips clips of any sizes: what differs
// between clips is a table in the kernel's arguments, so that nothing is copied to the device and a CUDA graph can
// capture the call.
//
// What bounds it is memory: a 16-bit output is two to three times as large as the source pixels under it. Resizing one
// output value directly takes four byte loads and three interpolations; to stay below the memory's time, the work is
// separable instead. A block makes `rows` output rows of one frame in two stages with one barrier between them:
//   1. Source rows are mixed vertically into shared memory as float: four consecutive bytes per thread and row, from
//      coalesced 4-byte words (rows of RGB pixels begin at any byte, so wider words would not line up).
//   2. Values are mixed horizontally, normalised, cast, and written 16 bytes (8 for uint8) per thread, to the Fast
//      frame and, where it is one, to the Slow frame. A thread keeps its columns for all its rows, and with them its
//      offsets and weights in registers. A float of padding after every 32 spreads its strided reads over the banks.
// Weights are fractions of a running mean, v += (pixel - v) * fraction, which for two taps is a + (b - a) w; a constant
// image stays exactly constant for any number of taps. float64, and what does not fit (sides above kStagedSide pixels,
// filters wider than shared memory), takes a plain kernel with one thread per output pixel.

#include <algorithm>

#include "cuda_utils.cuh"
#include "slowfast/gather_frames.h"
#include "slowfast/gather_frames_math.h"

namespace slowfast {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;               // on a multiprocessor, of the kernel without antialiasing
constexpr int kSharedBytes = 48 * 1024;  // what a block gets without asking for more
constexpr int kMaxClips = 32;            // the arguments of a kernel may have 4096 bytes
constexpr int64_t kStagedSide = 16384;   // ResizeAxis<int32_t> is exact up to here
constexpr int64_t kMaxGridX = 0x7FFFFFFF;

struct Clip {
  const uint8_t* frames;
  int64_t stride_t, stride_h, stride_w, stride_c;
  int64_t count, height, width, resized_height, resized_width, top, left;
  bool flip, dense;  // dense: the bytes of a row are adjacent
};

struct Output {
  void* data;
  int64_t stride_n, stride_c, stride_t, stride_h;
  int64_t frames;
};

// How the staged kernel cuts a frame into blocks.
struct Tiling {
  int rows = 0, columns = 0;  // output pixels
  int row_tiles = 0, column_tiles = 0;
  int pitch = 0;  // floats of one mixed row, padding included
  int taps = 0;   // the most horizontal taps of any clip

  int64_t shared_bytes() const {
    return sizeof(float) * (static_cast<int64_t>(rows) * pitch + columns) +
           sizeof(float) * static_cast<int64_t>(columns) * taps;
  }
};

struct Arguments {
  const int64_t* indices;
  int64_t index_stride_n, index_stride_t;
  Output fast, slow;
  int64_t height, width;
  bool planar, linspace, antialias;
  bool wide;  // rows of both outputs are aligned for the widest stores
  float scale[3], shift[3];
  double scale_wide[3], shift_wide[3];
  Tiling tiling;
  Clip clips[kMaxClips];
};
static_assert(sizeof(Arguments) <= 4096, "the arguments of a kernel may have 4096 bytes");

// The values that a thread writes at once.
template <typename T>
struct alignas(sizeof(T) == 1 ? 8 : 16) Pack {
  static constexpr int kSize = sizeof(T) == 1 ? 8 : 16 / sizeof(T);
  T values[kSize];
};

SF_HOST_DEVICE inline int padded(int i) { return i + (i >> 5); }

__device__ inline int64_t source_frame(const Arguments& a, const Clip& clip, int64_t n, int64_t t) {
  const int64_t index = a.indices[n * a.index_stride_n + t * a.index_stride_t];
  return index < 0 ? 0 : index >= clip.count ? clip.count - 1 : index;
}

struct Four {
  float values[4];

  __device__ void mix(const Four& other, float fraction) {
    for (int k = 0; k < 4; ++k) values[k] += (other.values[k] - values[k]) * fraction;
  }
};

// Bytes `begin + i` to `begin + i + 3` of a source row of RGB pixels as floats; `begin` is where the block's columns
// begin. Those from `length` on are never used, and the whole row bounds what may be read.
__device__ inline Four load_four(const Clip& clip, const uint8_t* row, int first_column, int i, int length) {
  Four result;
  if (clip.dense) {
    const uint8_t* bytes = row + 3 * first_column + i;
    const unsigned offset = static_cast<unsigned>(reinterpret_cast<uintptr_t>(bytes) & 3);
    const uint8_t* word = bytes - offset;
    if (word >= row && word + 8 <= row + 3 * clip.width) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(word);
      const uint32_t four = __funnelshift_r(words[0], words[1], 8 * offset);
      for (int k = 0; k < 4; ++k) result.values[k] = static_cast<float>((four >> (8 * k)) & 0xFF);
      return result;
    }
  }
  for (int k = 0; k < 4; ++k) {
    const int pixel = first_column + (i + k) / 3, channel = (i + k) % 3;
    result.values[k] = i + k < length ? static_cast<float>(row[pixel * clip.stride_w + channel * clip.stride_c]) : 0.0f;
  }
  return result;
}

template <typename T>
__device__ inline void store(const Output& output, int64_t offset, const Pack<T>& pack, int count, bool wide) {
  T* to = static_cast<T*>(output.data) + offset;
  if (wide && count == Pack<T>::kSize) {
    *reinterpret_cast<Pack<T>*>(to) = pack;
  } else {
    for (int j = 0; j < Pack<T>::kSize; ++j)
      if (j < count) to[j] = pack.values[j];
  }
}

// kManyTaps: some axis may have more than two taps; what only that needs would cost the others registers.
template <typename T, bool kManyTaps>
__global__ void __launch_bounds__(kThreads, kManyTaps ? 2 : kBlocks)
    gather_frames_forward_kernel(const __grid_constant__ Arguments a) {
  constexpr int kSize = Pack<T>::kSize;
  SF_DYNAMIC_SHARED(float, mixed);                                                     // [rows, pitch]
  float* fractions = mixed + a.tiling.rows * a.tiling.pitch;                           // [columns, taps]
  int* firsts = reinterpret_cast<int*>(fractions + a.tiling.columns * a.tiling.taps);  // [columns]

  const int64_t n = blockIdx.y;
  const Clip& clip = a.clips[n];
  const int column_tile = static_cast<int>(blockIdx.x) % a.tiling.column_tiles;
  const int row_tile = static_cast<int>(blockIdx.x) / a.tiling.column_tiles % a.tiling.row_tiles;
  const int64_t t = static_cast<int>(blockIdx.x) / a.tiling.column_tiles / a.tiling.row_tiles;
  const int thread = static_cast<int>(threadIdx.x), width = static_cast<int>(a.width);
  const int x0 = column_tile * a.tiling.columns, y0 = row_tile * a.tiling.rows;
  const int columns = std::min(a.tiling.columns, width - x0),
            rows = std::min(a.tiling.rows, static_cast<int>(a.height) - y0);

  const ResizeAxis<int32_t> horizontal{static_cast<int32_t>(clip.width), static_cast<int32_t>(clip.resized_width),
                                       a.antialias};
  const int taps = horizontal.taps();
  const int leftmost = static_cast<int>(clip.left) + (clip.flip ? width - x0 - columns : x0);  // in resized pixels
  const int first_column = horizontal.first(leftmost);
  const int end_column = std::min(horizontal.first(leftmost + columns - 1) + taps, static_cast<int>(clip.width));
  const int length = 3 * (end_column - first_column);

  for (int x = thread; x < columns; x += kThreads) {
    const int position = leftmost + (clip.flip ? columns - 1 - x : x);
    const int first = horizontal.first(position);
    int sum = 0;
    for (int k = 0; k < taps; ++k) {
      const int weight = horizontal.raw_weight(position, first + k);
      sum += weight;
      fractions[x * taps + k] = static_cast<float>(weight) / static_cast<float>(sum);
    }
    firsts[x] = 3 * (first - first_column);
  }

  // Stage 1: the threads of a row take four values each, and again until the row is done.
  const int per_row = kThreads / a.tiling.rows, mixed_row = thread / per_row;
  if (mixed_row < rows) {
    const ResizeAxis<int32_t> vertical{static_cast<int32_t>(clip.height), static_cast<int32_t>(clip.resized_height),
                                       a.antialias};
    const int position = static_cast<int>(clip.top) + y0 + mixed_row;
    const int first = vertical.first(position), row_taps = vertical.taps();
    const int second = row_taps > 1 ? vertical.raw_weight(position, first + 1) : 0;
    const int two = vertical.raw_weight(position, first) + second;
    const float fraction = static_cast<float>(second) / static_cast<float>(two);
    const uint8_t* row = clip.frames + source_frame(a, clip, n, t) * clip.stride_t + first * clip.stride_h;
    float* to = mixed + mixed_row * a.tiling.pitch;
    for (int i = 4 * (thread % per_row); i < length; i += 4 * per_row) {
      Four sum = load_four(clip, row, first_column, i, length);
      if (second) sum.mix(load_four(clip, row + clip.stride_h, first_column, i, length), fraction);
      for (int k = 2, weights = two; kManyTaps && k < row_taps; ++k) {
        const int weight = vertical.raw_weight(position, first + k);
        if (!weight) break;  // the frame's last row: there is none below
        weights += weight;
        sum.mix(load_four(clip, row + k * clip.stride_h, first_column, i, length),
                static_cast<float>(weight) / static_cast<float>(weights));
      }
      for (int k = 0; k < 4; ++k) to[padded(i + k)] = sum.values[k];
    }
  }
  __syncthreads();

  // Stage 2: a unit is kSize values that are adjacent in memory, of one channel or of interleaved pixels.
  const int line = a.planar ? columns : 3 * columns, units_in_line = (line + kSize - 1) / kSize;
  const int units = a.planar ? 3 * units_in_line : units_in_line, lanes = kThreads / units;
  const int unit = thread % units, lane = thread / units;
  if (lane >= lanes) return;
  const int begin = unit % units_in_line * kSize, channel = a.planar ? unit / units_in_line : begin % 3;
  const int count = std::min(kSize, line - begin);
  unsigned near_far[kSize];  // places in a mixed row, 16 bits each
  float fraction[kSize], scale[3], shift[3];
  for (int c = 0; c < 3; ++c) {  // those of value j are scale[j % 3] and shift[j % 3]
    scale[c] = a.scale[a.planar ? channel : (channel + c) % 3];
    shift[c] = a.shift[a.planar ? channel : (channel + c) % 3];
  }
  const auto column_of = [&](int j) { return a.planar ? begin + j : (begin + j) / 3; };
  const auto first_of = [&](int j) { return firsts[column_of(j)] + (a.planar ? channel : (channel + j) % 3); };
  for (int j = 0; j < kSize; ++j) {
    fraction[j] = j < count && taps > 1 ? fractions[column_of(j) * taps + 1] : 0;
    const int first = j < count ? first_of(j) : 0;
    near_far[j] = padded(first) | padded(fraction[j] != 0 ? first + 3 : first) << 16;
  }
  const int64_t slow_t = slow_frame_of(t, a.fast.frames, a.slow.frames, a.linspace);
  const int64_t start = (a.planar ? channel * a.fast.stride_c + x0 : 3 * static_cast<int64_t>(x0)) + begin;
  const int64_t slow_start = (a.planar ? channel * a.slow.stride_c + x0 : 3 * static_cast<int64_t>(x0)) + begin;

  for (int row = lane; row < rows; row += lanes) {
    const float* from = mixed + row * a.tiling.pitch;
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      float value = from[near_far[j] & 0xFFFF];
      value += (from[near_far[j] >> 16] - value) * fraction[j];
      if (kManyTaps && j < count) {
#pragma unroll 1
        for (int k = 2; k < taps; ++k) {
          const float next = fractions[column_of(j) * taps + k];
          if (next == 0) break;  // the frame's last column
          value += (from[padded(first_of(j) + 3 * k)] - value) * next;
        }
      }
      pack.values[j] = to_output<T>(value * scale[j % 3] + shift[j % 3]);
    }
    const int64_t y = y0 + row;
    store(a.fast, n * a.fast.stride_n + t * a.fast.stride_t + y * a.fast.stride_h + start, pack, count, a.wide);
    if (slow_t >= 0)
      store(a.slow, n * a.slow.stride_n + slow_t * a.slow.stride_t + y * a.slow.stride_h + slow_start, pack, count,
            a.wide);
  }
}

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
    const uint8_t* frame = clip.frames + source_frame(a, clip, n, t) * clip.stride_t;
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
        const uint8_t* pixel = frame + (first_row + k) * clip.stride_h + (first_column + l) * clip.stride_w;
        const A fraction = static_cast<A>(weight) / static_cast<A>(column_weights);
        for (int c = 0; c < 3; ++c) mixed[c] += (static_cast<A>(pixel[c * clip.stride_c]) - mixed[c]) * fraction;
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
  SF_CHECK(f.dtype == DType::kUInt8 && f.ndim == 4 && f.size(3) == 3, "gather_frames: clip ", n,
           " is not uint8 [T, H, W, 3]");
  SF_CHECK(f.size(0) > 0 && f.size(1) > 0 && f.size(2) > 0, "gather_frames: clip ", n, " has no frames");
  SF_CHECK(clip.top >= 0 && clip.left >= 0 && clip.top + p.fast.size(3) <= clip.resized_height &&
               clip.left + p.fast.size(4) <= clip.resized_width,
           "gather_frames: the crop is not inside the resized frame of clip ", n);
  return {f.as<const uint8_t>(),
          f.stride(0),
          f.stride(1),
          f.stride(2),
          f.stride(3),
          f.size(0),
          f.size(1),
          f.size(2),
          clip.resized_height,
          clip.resized_width,
          clip.top,
          clip.left,
          clip.flip,
          f.stride(2) == 3 && f.stride(3) == 1};
}

// The tiling whose blocks fit into shared memory, with as many rows as possible; false if there is none.
bool make_tiling(Arguments* a, int64_t clips, int pack) {
  int64_t taps = 1;
  for (int64_t n = 0; n < clips; ++n) {
    const Clip& clip = a->clips[n];
    for (int64_t side : {clip.height, clip.width, clip.resized_height, clip.resized_width})
      if (side > kStagedSide) return false;
    taps = std::max(taps, ResizeAxis<int64_t>{clip.width, clip.resized_width, a->antialias}.taps());
  }
  const auto up = [&](int64_t columns) { return (columns + pack - 1) / pack * pack; };
  const int64_t most = kThreads / 3 * pack;  // so that every unit of a row has a thread
  const int64_t widest = up((a->width + (a->width + most - 1) / most - 1) / ((a->width + most - 1) / most));
  for (int rows = 8; rows >= 1; rows /= 2) {
    for (int64_t columns = widest;; columns = up(columns / 2)) {
      int64_t pixels = 0;
      for (int64_t n = 0; n < clips; ++n) {
        const Clip& clip = a->clips[n];
        const int64_t reached = columns * clip.width / clip.resized_width + taps + 1;
        pixels = std::max(pixels, std::min(reached, clip.width));
      }
      Tiling& tiling = a->tiling;
      tiling.rows = rows;
      tiling.columns = static_cast<int>(columns);
      tiling.row_tiles = static_cast<int>((a->height + rows - 1) / rows);
      tiling.column_tiles = static_cast<int>((a->width + columns - 1) / columns);
      tiling.pitch = padded(static_cast<int>(3 * pixels + 3)) + 1;
      tiling.taps = static_cast<int>(taps);
      if (tiling.shared_bytes() <= kSharedBytes) return true;
      if (columns <= pack) break;
    }
  }
  return false;
}

bool is_aligned(const TensorView& view, int64_t bytes) {
  const int64_t element = size_of(view.dtype);
  for (int dim = 0; dim < 4; ++dim) {
    if (dim == 1 && view.stride(1) == 1) continue;  // interleaved channels
    if (view.stride(dim) * element % bytes) return false;
  }
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0;
}

template <typename T>
void launch(Arguments* a, int64_t clips, bool aligned, void* stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (make_tiling(a, clips, Pack<T>::kSize)) {
      a->wide = aligned;
      const Tiling& tiling = a->tiling;
      const int64_t blocks = a->fast.frames * tiling.row_tiles * tiling.column_tiles;
      SF_CHECK(blocks <= kMaxGridX, "gather_frames: ", a->fast.frames, " frames are too many for one launch");
      const auto kernel = a->antialias ? gather_frames_forward_kernel<T, true> : gather_frames_forward_kernel<T, false>;
      SF_LAUNCH(kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(clips)), dim3(kThreads),
                tiling.shared_bytes(), stream, *a);
      return;
    }
  }
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
  const int64_t bytes = p.fast.dtype == DType::kUInt8 ? 8 : 16;
  const bool aligned = is_aligned(p.fast, bytes) && is_aligned(p.slow, bytes);
  for (int64_t first = 0; first < p.fast.size(0); first += kMaxClips) {
    const int64_t clips = std::min<int64_t>(kMaxClips, p.fast.size(0) - first);
    for (int64_t n = 0; n < clips; ++n) a.clips[n] = clip_of(p, first + n);
    const int64_t element = size_of(p.fast.dtype);
    a.indices = p.indices.as<const int64_t>() + first * p.indices.stride(0);
    a.fast.data = p.fast.as<uint8_t>() + first * p.fast.stride(0) * element;
    a.slow.data = p.slow.numel() ? p.slow.as<uint8_t>() + first * p.slow.stride(0) * element : nullptr;
    if (p.fast.dtype == DType::kUInt8) {
      launch<uint8_t>(&a, clips, aligned, stream);
    } else {
      dispatch_floating_cuda(p.fast.dtype, "gather_frames",
                             [&](auto tag) { launch<typename decltype(tag)::type>(&a, clips, aligned, stream); });
    }
  }
}

}  // namespace slowfast
