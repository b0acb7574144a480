// gather_frames with filters of any number of taps: shrinking with antialias.
//
// The work is separable. A block makes `rows` output rows of one frame in two stages with one barrier between them:
//   1. Source rows are mixed vertically into shared memory as float: four consecutive bytes per thread and row, from
//      coalesced 4-byte words (rows of RGB pixels begin at any byte, so wider words would not line up). Or four YUV
//      pixels, which become RGB here.
//   2. Values are mixed horizontally, normalised, cast, and written 16 bytes (8 for uint8) per thread, to the Fast
//      frame and, where it is one, to the Slow frame. A thread keeps its columns for all its rows, and with them its
//      offsets in registers. A float of padding after every 32 spreads its strided reads over the banks.
// Weights are fractions of a running mean, v += (pixel - v) * fraction, so that a constant image stays exactly constant
// for any number of taps.
#pragma once

#include "gather_frames.cuh"
#include "gather_frames_yuv.cuh"

namespace slowfast {
namespace {

constexpr int kFilterThreads = 256;

// The values that a thread writes at once.
template <typename T>
constexpr int kWideSize = sizeof(T) == 1 ? 8 : 16 / sizeof(T);

SF_HOST_DEVICE inline int padded(int i) { return i + (i >> 5); }

template <int kSize>
struct Floats {
  float values[kSize];

  __device__ void mix(const Floats& other, float fraction) {
    for (int k = 0; k < kSize; ++k) values[k] += (other.values[k] - values[k]) * fraction;
  }
};

// Writes the first `count` values of the pack; if `wide`, count is its size, or more, or there is nothing to write.
template <typename T, int kSize>
__device__ inline void store(T* to, const Pack<T, kSize>& pack, int count, bool wide) {
  if (wide) {
    if (count > 0) *reinterpret_cast<Pack<T, kSize>*>(to) = pack;
  } else {
#pragma unroll
    for (int j = 0; j < kSize; ++j)
      if (j < count) to[j] = pack.values[j];
  }
}

// Bytes `begin + i` to `begin + i + 3` of a source row of RGB pixels as floats; `begin` is where the block's columns
// begin. Those from `length` on are never used, and the whole row bounds what may be read.
__device__ inline Floats<4> load_four(const Clip& clip, const uint8_t* row, int first_column, int i, int length) {
  Floats<4> result;
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

// The red, green and blue values of pixels `column` to `column + 3`, a multiple of 4; 0 behind the row's end.
__device__ inline Floats<12> load_four_pixels(const Clip& clip, const YuvRow& row, int column) {
  uint32_t words[4] = {};
  if (YuvRow::has_words(clip, column)) {
    FourYuvPixels four;
    four.load(clip, row, column);
    const uint4 pixels = four.pixels(clip.colour);
    words[0] = pixels.x, words[1] = pixels.y, words[2] = pixels.z, words[3] = pixels.w;
  } else {
    for (int i = 0; i < 4; ++i)
      if (column + i < clip.width) words[i] = row.pixel(clip, column + i);
  }
  Floats<12> result;
  for (int k = 0; k < 12; ++k) result.values[k] = static_cast<float>(words[k / 3] >> 8 * (k % 3) & 0xFF);
  return result;
}

template <typename T>
__global__ void __launch_bounds__(kFilterThreads, 2)
    gather_frames_filter_forward_kernel(const __grid_constant__ Arguments a) {
  constexpr int kSize = kWideSize<T>;
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

  const ResizeAxis<int32_t> horizontal{clip.width, clip.resized_width, a.antialias};
  const int taps = horizontal.taps();
  const int leftmost = clip.left + (clip.flip ? width - x0 - columns : x0);       // in resized pixels
  const int first_column = horizontal.first(leftmost) & (clip.chroma ? ~3 : ~0);  // where words of luma may begin
  const int end_column = std::min(horizontal.first(leftmost + columns - 1) + taps, clip.width);
  const int length = 3 * (end_column - first_column);

  for (int x = thread; x < columns; x += kFilterThreads) {
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
  const int per_row = kFilterThreads / a.tiling.rows, mixed_row = thread / per_row;
  if (mixed_row < rows) {
    const ResizeAxis<int32_t> vertical{clip.height, clip.resized_height, a.antialias};
    const int position = clip.top + y0 + mixed_row;
    const int first = vertical.first(position), row_taps = vertical.taps();
    const int second = row_taps > 1 ? vertical.raw_weight(position, first + 1) : 0;
    const int two = vertical.raw_weight(position, first) + second;
    const float fraction = static_cast<float>(second) / static_cast<float>(two);
    const auto mix = [&](const auto& load) {
      auto sum = load(first);
      if (second) sum.mix(load(first + 1), fraction);
      for (int k = 2, weights = two; k < row_taps; ++k) {
        const int weight = vertical.raw_weight(position, first + k);
        if (!weight) break;  // the frame's last row: there is none below
        weights += weight;
        sum.mix(load(first + k), static_cast<float>(weight) / static_cast<float>(weights));
      }
      return sum;
    };
    const int64_t index = source_frame(a, clip, n, t);
    const uint8_t *frame = clip.frames + index * clip.stride_t, *chroma = clip.chroma + index * clip.chroma_t;
    float* to = mixed + mixed_row * a.tiling.pitch;
    if (clip.chroma) {
      for (int i = 12 * (thread % per_row); i < length; i += 12 * per_row) {
        const Floats<12> sum = mix([&](int row) {
          return load_four_pixels(clip, {frame + row * clip.stride_h, chroma + row / 2 * clip.chroma_h},
                                  first_column + i / 3);
        });
        for (int k = 0; k < 12; ++k) to[padded(i + k)] = sum.values[k];
      }
    } else {
      for (int i = 4 * (thread % per_row); i < length; i += 4 * per_row) {
        const Floats<4> sum =
            mix([&](int row) { return load_four(clip, frame + row * clip.stride_h, first_column, i, length); });
        for (int k = 0; k < 4; ++k) to[padded(i + k)] = sum.values[k];
      }
    }
  }
  __syncthreads();

  // Stage 2: a unit is kSize values that are adjacent in memory, of one channel or of interleaved pixels.
  const int line = a.planar ? columns : 3 * columns, units_in_line = (line + kSize - 1) / kSize;
  const int units = a.planar ? 3 * units_in_line : units_in_line, lanes = kFilterThreads / units;
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
    Pack<T, kSize> pack;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      float value = from[near_far[j] & 0xFFFF];
      value += (from[near_far[j] >> 16] - value) * fraction[j];
      if (j < count) {
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
    store(static_cast<T*>(a.fast.data) + n * a.fast.stride_n + t * a.fast.stride_t + y * a.fast.stride_h + start, pack,
          count, a.wide);
    if (slow_t >= 0)
      store(static_cast<T*>(a.slow.data) + n * a.slow.stride_n + slow_t * a.slow.stride_t + y * a.slow.stride_h +
                slow_start,
            pack, count, a.wide);
  }
}

inline int64_t filter_shared_bytes(const Tiling& tiling) {
  return sizeof(float) * (static_cast<int64_t>(tiling.rows) * tiling.pitch + tiling.columns) +
         sizeof(float) * static_cast<int64_t>(tiling.columns) * tiling.taps;
}

// The tiling whose blocks fit into shared memory, with as many rows as possible; false if there is none.
inline bool make_filter_tiling(Arguments* a, int64_t clips, int pack) {
  int64_t taps = 1;
  for (int64_t n = 0; n < clips; ++n) {
    const Clip& clip = a->clips[n];
    for (int side : {clip.height, clip.width, clip.resized_height, clip.resized_width})
      if (side > kStagedSide) return false;
    taps = std::max(taps, ResizeAxis<int64_t>{clip.width, clip.resized_width, a->antialias}.taps());
  }
  const bool yuv = a->clips[0].chroma;  // and so are the others
  const auto up = [&](int64_t columns) { return (columns + pack - 1) / pack * pack; };
  const int64_t most = kFilterThreads / 3 * pack;  // so that every unit of a row has a thread
  const int64_t widest = up((a->width + (a->width + most - 1) / most - 1) / ((a->width + most - 1) / most));
  for (int rows = 8; rows >= 1; rows /= 2) {
    for (int64_t columns = widest;; columns = up(columns / 2)) {
      int64_t pixels = 0;
      for (int64_t n = 0; n < clips; ++n) {
        const Clip& clip = a->clips[n];
        const int64_t reached = columns * clip.width / clip.resized_width + taps + (yuv ? 4 : 1);
        pixels = std::max(pixels, std::min<int64_t>(reached, clip.width));
      }
      Tiling& tiling = a->tiling;
      tiling.rows = rows;
      tiling.columns = static_cast<int>(columns);
      tiling.row_tiles = static_cast<int>((a->height + rows - 1) / rows);
      tiling.column_tiles = static_cast<int>((a->width + columns - 1) / columns);
      tiling.pitch = padded(static_cast<int>(3 * pixels + (yuv ? 9 : 3))) + 1;  // and what threads write at once
      tiling.taps = static_cast<int>(taps);
      if (filter_shared_bytes(tiling) <= kSharedBytes) return true;
      if (columns <= pack) break;
    }
  }
  return false;
}

// Launches the kernel; false if it cannot make this output.
template <typename T>
bool launch_filter(Arguments* a, int64_t clips, void* stream) {
  if (!make_filter_tiling(a, clips, kWideSize<T>)) return false;
  const int64_t line = a->width * (a->planar ? 1 : 3);
  const Tiling& tiling = a->tiling;
  const int64_t blocks = a->fast.frames * tiling.row_tiles * tiling.column_tiles;
  if (blocks > 0x7FFFFFFF) return false;
  a->wide = line % kWideSize<T> == 0 && are_aligned(*a, sizeof(T), kWideSize<T> * sizeof(T));
  SF_LAUNCH(gather_frames_filter_forward_kernel<T>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(clips)),
            dim3(kFilterThreads), filter_shared_bytes(tiling), stream, *a);
  return true;
}

}  // namespace
}  // namespace slowfast
