// gather_frames where every output pixel comes from two source rows and two columns: all but shrinking with antialias.
//
// What bounds it is memory: a 16-bit output is two to three times as large as the source pixels under it. To stay below
// the memory's time there must be few instructions for each value, so the work is separable. A block makes a tile of
// one frame:
//   1. The source pixels under the tile go to shared memory as words of four bytes (the last one is waste). Rows of RGB
//   pixels begin at any byte, so this is also where they are aligned.
//   2. A warp walks down a strip of output rows. A lane has four columns, whose weights stay in registers. For each
//      source row it mixes two words horizontally, with integer weights, exactly; and for each output row it mixes the
//      two source rows that it holds in registers, casts, and writes to the Fast frame and, where it is one, to the
//      Slow frame. Interleaved pixels take the way through shared memory to be written in whole lines.
// A constant image stays exactly constant: the weights of a column always have the same sum, and two equal rows have no
// difference to mix in.
#pragma once

#include "gather_frames.cuh"

namespace slowfast {
namespace {

#ifndef TWO_TAPS_ROWS
#define TWO_TAPS_ROWS 16
#endif
#ifndef TWO_TAPS_WARPS
#define TWO_TAPS_WARPS 4
#endif
#ifndef TWO_TAPS_BLOCKS
#define TWO_TAPS_BLOCKS 7
#endif
constexpr int kWarps = TWO_TAPS_WARPS;     // of a block: one or two beside each other, and strips below each other
constexpr int kStripRows = TWO_TAPS_ROWS;  // output rows of a warp
constexpr int kLanePixels = 4;             // in two groups of two adjacent ones
constexpr int kWarpPixels = 32 * kLanePixels;
#ifndef TWO_TAPS_BATCH
#define TWO_TAPS_BATCH 4
#endif
constexpr int kBatch = TWO_TAPS_BATCH;  // of four pixels that a thread has under way to shared memory
constexpr int kMaxGridY = 65535;

// Which two source pixels make pixel i of a resized axis, as ResizeAxis says for two taps. The weights are integers,
// of 2 * resized.
struct TwoTaps {
  int source, resized;
  float unit;  // 1 / (2 * resized)

  __device__ TwoTaps(int source_, int resized_)
      : source(source_), resized(resized_), unit(0.5f / static_cast<float>(resized_)) {}

  // The first pixel; *second becomes the weight of the next one, 0 where there is none.
  __device__ int first(int i, int* second) const {
    const int numerator = std::max(source * (2 * i + 1) - resized, 0), whole = 2 * resized;
    int quotient = static_cast<int>(static_cast<float>(numerator) * unit);  // wrong by one at most
    int rest = numerator - quotient * whole;
    if (rest < 0) {
      --quotient;
      rest += whole;
    }
    if (rest >= whole) {
      ++quotient;
      rest -= whole;
    }
    *second = quotient + 1 < source ? rest : 0;
    return quotient;
  }

  __device__ int first(int i) const {
    int second;
    return first(i, &second);
  }
};

// What the block's threads look up.
struct RowEntry {
  int staged;      // where the first of its two source rows is; the other is the next one
  float odd_part;  // the weight of that of the two that is at an odd place
};
struct ColumnEntry {
  unsigned word;     // of its first pixel in a staged row
  unsigned weights;  // 16 bits for each of the two pixels; their sum is the same for all columns, and at most 2^15
};

// Twelve bytes on their way to shared memory, in the four aligned words that they are in.
struct FourPixels {
  uint32_t words[4];
  unsigned skipped;  // bits in front

  __device__ void load(const uint8_t* bytes) {
    const unsigned offset = static_cast<unsigned>(reinterpret_cast<uintptr_t>(bytes) & 3);
    skipped = 8 * offset;
    for (int i = 0; i < 4; ++i) words[i] = __ldg(reinterpret_cast<const uint32_t*>(bytes - offset) + i);
  }

  // Three bytes, and a fourth that means nothing, in each word.
  __device__ uint4 pixels() const {
    const uint32_t a = __funnelshift_r(words[0], words[1], skipped), b = __funnelshift_r(words[1], words[2], skipped),
                   c = __funnelshift_r(words[2], words[3], skipped);
    return make_uint4(a, __funnelshift_r(a, b, 24), __funnelshift_r(b, c, 16), c >> 8);
  }
};

template <typename T, bool kPlanar>
__global__ void __launch_bounds__(32 * kWarps, TWO_TAPS_BLOCKS)
    gather_frames_two_taps_forward_kernel(const __grid_constant__ Arguments a) {
  const Tiling& tiling = a.tiling;
  const int lane = static_cast<int>(threadIdx.x), across = static_cast<int>(blockDim.y);
  const int warp = static_cast<int>(threadIdx.y + blockDim.y * threadIdx.z), thread = 32 * warp + lane;
  SF_DYNAMIC_SHARED(uint32_t, pixels);  // [staged_rows, pitch]
  ColumnEntry* column_table = reinterpret_cast<ColumnEntry*>(pixels + tiling.staged_rows * tiling.pitch);
  int64_t* row_offsets = reinterpret_cast<int64_t*>(column_table + kWarpPixels * across);  // [staged_rows]
  RowEntry* row_table = reinterpret_cast<RowEntry*>(row_offsets + tiling.staged_rows);     // [rows]
  Pack<T, 2>* exchange = reinterpret_cast<Pack<T, 2>*>(row_table + tiling.rows);           // [kWarps, 3, 64]

  const unsigned n = blockIdx.z, t = blockIdx.y, tiles = static_cast<unsigned>(tiling.column_tiles);
  const Clip& clip = a.clips[n];
  const unsigned row_tile = tiles == 1 ? blockIdx.x : blockIdx.x / tiles;
  const int x0 = static_cast<int>(blockIdx.x - row_tile * tiles) * tiling.columns;
  const int y0 = static_cast<int>(row_tile) * tiling.rows;
  const int width = static_cast<int>(a.width);
  const int columns = std::min(tiling.columns, width - x0),
            rows = std::min(tiling.rows, static_cast<int>(a.height) - y0);

  const int64_t index = source_frame(a, clip, n, t);
  const TwoTaps vertical(clip.height, clip.resized_height), horizontal(clip.width, clip.resized_width);
  const int top = clip.top + y0;  // in resized pixels
  const int leftmost = clip.left + (clip.flip ? width - x0 - columns : x0);
  const int first_row = vertical.first(top), first_column = horizontal.first(leftmost);
  const bool adjacent = clip.height <= clip.resized_height;  // else each output row has two staged rows of its own
#pragma unroll 1
  for (int x = thread; x < kWarpPixels * across; x += 32 * kWarps) {
    const int inside = std::min(x, columns - 1);
    int second;
    const int first = horizontal.first(leftmost + (clip.flip ? columns - 1 - inside : inside), &second);
    column_table[x] = {
        static_cast<unsigned>(first - first_column),
        static_cast<unsigned>(clip.column_factor) *
            (static_cast<unsigned>(2 * horizontal.resized - second) + (static_cast<unsigned>(second) << 16))};
  }
#pragma unroll 1
  for (int y = thread; y < rows; y += 32 * kWarps) {
    int second;
    const int first = vertical.first(top + y, &second), staged = adjacent ? first - first_row : 2 * y;
    row_table[y] = {staged, vertical.unit * static_cast<float>(staged & 1 ? 2 * vertical.resized - second : second)};
  }

  const int staged_rows = adjacent ? vertical.first(top + rows - 1) + 2 - first_row : 2 * rows;
#pragma unroll 1
  for (int staged = thread; staged < staged_rows; staged += 32 * kWarps) {
    const int row = adjacent ? first_row + staged : vertical.first(top + staged / 2) + staged % 2;
    row_offsets[staged] = std::min(row, clip.height - 1) * clip.stride_h;
  }
  __syncthreads();

  const uint8_t* frame = clip.frames + index * clip.stride_t;
  const int staged_columns = horizontal.first(leftmost + columns - 1) + 2 - first_column;
  // A thread copies the same four columns of all rows, or of each `beside`-th.
  constexpr int kThreadsOfBlock = 32 * kWarps;
  const int quads = (staged_columns + 3) / 4, beside = std::max(kThreadsOfBlock / quads, 1);
  for (int quad = thread % quads; quad < quads && thread / quads < beside; quad += kThreadsOfBlock) {
    const int column = first_column + 4 * quad;
    uint32_t* to = pixels + 4 * quad;
    if (clip.dense && column > 0 && 3 * column + 16 <= 3 * clip.width) {  // the words lie inside the row
#pragma unroll 1
      for (int first = thread / quads; first < staged_rows; first += kBatch * beside) {
        FourPixels fours[kBatch];
        for (int i = 0; i < kBatch; ++i)
          if (first + i * beside < staged_rows) fours[i].load(frame + row_offsets[first + i * beside] + 3 * column);
        for (int i = 0; i < kBatch; ++i)
          if (first + i * beside < staged_rows)
            *reinterpret_cast<uint4*>(to + (first + i * beside) * tiling.pitch) = fours[i].pixels();
      }
    } else {
#pragma unroll 1
      for (int staged = thread / quads; staged < staged_rows; staged += beside) {
#pragma unroll 1
        for (int i = 0; i < std::min(4, clip.width - column); ++i) {
          const uint8_t* from = frame + row_offsets[staged] + (column + i) * clip.stride_w;
          to[staged * tiling.pitch + i] = static_cast<uint32_t>(from[0]) |
                                          static_cast<uint32_t>(from[clip.stride_c]) << 8 |
                                          static_cast<uint32_t>(from[2 * clip.stride_c]) << 16;
        }
      }
    }
  }
  __syncthreads();

  const int begin = static_cast<int>(threadIdx.z) * tiling.strip_rows;
  if (begin >= rows) return;
  const RowEntry *entry = row_table + begin, *end = row_table + std::min(begin + tiling.strip_rows, rows);
  int next = entry->staged;  // the next source row to mix
  const int warp_x = kWarpPixels * static_cast<int>(threadIdx.y);
  const uint32_t* from[kLanePixels];  // in that row
  unsigned weights[kLanePixels];
  for (int p = 0; p < kLanePixels; ++p) {
    const ColumnEntry column = column_table[warp_x + 64 * (p / 2) + 2 * lane + p % 2];
    from[p] = pixels + next * tiling.pitch + column.word;
    weights[p] = column.weights;
  }
  // A dot product of bytes and weights is an integer below 2^23. Added to the bits of 2^23 it makes those of a float,
  // for which `scale` and `shift` normalise. Since the weights are as large as they may be, 2^23 costs the shift no
  // accuracy.
  constexpr unsigned kBits = 0x4B000000;
  float scale[3], shift[3];
  for (int c = 0; c < 3; ++c) {
    scale[c] = a.scale[c] / static_cast<float>(2 * horizontal.resized * clip.column_factor);
    shift[c] = fmaf(-8388608.0f, scale[c], a.shift[c]);
  }
  const auto mix_columns = [&](float (&mixed)[3 * kLanePixels]) {
    for (int p = 0; p < kLanePixels; ++p) {
      const uint32_t left = from[p][0], right = from[p][1];
      from[p] += tiling.pitch;
      const uint32_t red_green = __byte_perm(left, right, 0x5140), blue = __byte_perm(left, right, 0x0062);
      const unsigned sums[3] = {__dp2a_lo(weights[p], red_green, kBits), __dp2a_hi(weights[p], red_green, kBits),
                                __dp2a_lo(weights[p], blue, kBits)};
      for (int c = 0; c < 3; ++c) mixed[3 * p + c] = fmaf(__uint_as_float(sums[c]), scale[c], shift[c]);
    }
  };

  // Where the lane writes: pairs of pixels of each channel, or fours of interleaved values.
  constexpr int kPlanes = kPlanar ? 3 : 1, kParts = kPlanar ? 2 : 3, kSize = kPlanar ? 2 : 4;
  const int count = (kPlanar ? 1 : 3) * (columns - warp_x) - kSize * lane;  // values from there on
  const unsigned slow_frames = static_cast<unsigned>(a.slow.frames);
  const int64_t slow_t = slow_frame_of(t, static_cast<unsigned>(a.fast.frames), slow_frames, a.linspace);
  const auto start = [&](const Output& output, int64_t frame_index) {
    return static_cast<T*>(output.data) + n * output.stride_n + frame_index * output.stride_t +
           (y0 + begin) * output.stride_h + (kPlanar ? 1 : 3) * (x0 + warp_x) + kSize * lane;
  };
  T* fast = start(a.fast, t);
  T* slow = slow_t >= 0 ? start(a.slow, slow_t) : nullptr;
  exchange += warp * 3 * kWarpPixels / 2;

  float even[3 * kLanePixels], odd[3 * kLanePixels];  // two source rows that follow each other, mixed
  for (; entry < end; ++entry) {
    for (; next <= entry->staged + 1; ++next) {
      if (next & 1)
        mix_columns(odd);
      else
        mix_columns(even);
    }
    T values[3 * kLanePixels];
    for (int i = 0; i < 3 * kLanePixels; ++i) values[i] = to_output<T>(even[i] + (odd[i] - even[i]) * entry->odd_part);

    Pack<T, kSize> packs[kPlanes][kParts];
    if constexpr (kPlanar) {
      for (int c = 0; c < 3; ++c)
        for (int part = 0; part < kParts; ++part) packs[c][part] = {{values[6 * part + c], values[6 * part + 3 + c]}};
    } else {
      for (int i = 0; i < 3 * kLanePixels / 2; ++i)
        exchange[96 * (i / 3) + 3 * lane + i % 3] = {{values[2 * i], values[2 * i + 1]}};
      __syncwarp();
      for (int part = 0; part < kParts; ++part)
        packs[0][part] = reinterpret_cast<const Pack<T, kSize>*>(exchange)[32 * part + lane];
      __syncwarp();
    }
    if (a.wide) {
      for (int plane = 0; plane < kPlanes; ++plane)
        for (int part = 0, along = 0; part < kParts; ++part, along += 32 * kSize) {
          if (along >= count) continue;
          *reinterpret_cast<Pack<T, kSize>*>(fast + plane * a.fast.stride_c + along) = packs[plane][part];
          if (slow) *reinterpret_cast<Pack<T, kSize>*>(slow + plane * a.slow.stride_c + along) = packs[plane][part];
        }
    } else {
      for (int plane = 0; plane < kPlanes; ++plane)
        for (int part = 0, along = 0; part < kParts; ++part, along += 32 * kSize)
          for (int j = 0; j < kSize; ++j) {
            if (along + j >= count) continue;
            fast[plane * a.fast.stride_c + along + j] = packs[plane][part].values[j];
            if (slow) slow[plane * a.slow.stride_c + along + j] = packs[plane][part].values[j];
          }
    }
    fast += a.fast.stride_h;
    if (slow) slow += a.slow.stride_h;
  }
}

// How many warps of a block are beside each other, the others being below.
inline int warps_across(const Tiling& tiling) { return tiling.columns > kWarpPixels ? 2 : 1; }

// Shared memory of a block in bytes.
template <typename T>
int64_t two_taps_shared_bytes(const Tiling& tiling, bool planar) {
  return sizeof(uint32_t) * static_cast<int64_t>(tiling.staged_rows) * tiling.pitch +
         sizeof(ColumnEntry) * kWarpPixels * warps_across(tiling) + sizeof(int64_t) * tiling.staged_rows +
         sizeof(RowEntry) * tiling.rows + (planar ? 0 : sizeof(T) * kWarps * 3 * kWarpPixels);
}

// Launches the kernel, with the largest tiles that fit into shared memory; false if it cannot make this output.
template <typename T>
bool launch_two_taps(Arguments* a, int64_t clips, void* stream) {
  if (a->fast.frames > kMaxGridY) return false;
  for (int64_t n = 0; n < clips; ++n) {
    const Clip& clip = a->clips[n];
    for (int side : {clip.height, clip.width, clip.resized_height, clip.resized_width})
      if (side > kStagedSide) return false;
    if (a->antialias && (clip.height > clip.resized_height || clip.width > clip.resized_width)) return false;
  }
  // Then all lanes write whole packs or nothing.
  a->wide = a->width * (a->planar ? 1 : 3) % (a->planar ? 2 : 4) == 0 &&
            are_aligned(*a, sizeof(T), (a->planar ? 2 : 4) * sizeof(T));
  Tiling& tiling = a->tiling;
  const int64_t widest = 2 * kWarpPixels, tiles = (a->width + widest - 1) / widest;
  for (tiling.columns = static_cast<int>((a->width + tiles - 1) / tiles + 7) / 8 * 8; tiling.columns >= 8;
       tiling.columns = tiling.columns / 2 / 8 * 8) {
    const int strips = kWarps / warps_across(tiling);
    for (int strip_rows = kStripRows; strip_rows >= 1; strip_rows /= 2) {
      tiling.strip_rows = strip_rows;
      tiling.rows = strips * strip_rows;
      int pixels = 0, staged_rows = 0;
      for (int64_t n = 0; n < clips; ++n) {
        const Clip& clip = a->clips[n];
        pixels = std::max(pixels, tiling.columns * clip.width / clip.resized_width + 3);
        staged_rows = std::max(staged_rows, clip.height > clip.resized_height
                                                ? 2 * tiling.rows
                                                : tiling.rows * clip.height / clip.resized_height + 3);
      }
      tiling.pitch = (pixels + 3) / 4 * 4;
      tiling.staged_rows = (staged_rows + 1) / 2 * 2;  // which aligns what comes after it
      const int64_t shared_bytes = two_taps_shared_bytes<T>(tiling, a->planar);
      if (shared_bytes > kSharedBytes) continue;
      tiling.row_tiles = static_cast<int>((a->height + tiling.rows - 1) / tiling.rows);
      tiling.column_tiles = static_cast<int>((a->width + tiling.columns - 1) / tiling.columns);
      const auto kernel =
          a->planar ? gather_frames_two_taps_forward_kernel<T, true> : gather_frames_two_taps_forward_kernel<T, false>;
      SF_LAUNCH(kernel,
                dim3(static_cast<unsigned>(tiling.row_tiles * tiling.column_tiles),
                     static_cast<unsigned>(a->fast.frames), static_cast<unsigned>(clips)),
                dim3(32, static_cast<unsigned>(warps_across(tiling)), static_cast<unsigned>(strips)), shared_bytes,
                stream, *a);
      return true;
    }
  }
  return false;
}

}  // namespace
}  // namespace slowfast
