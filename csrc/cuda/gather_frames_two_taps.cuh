// gather_frames where every output pixel comes from two source rows and two columns: all but shrinking with antialias.
//
// What bounds it is memory: a 16-bit output is two to three times as large as the source pixels under it. To stay below
// the memory's time there must be few instructions for each value, so the work is separable. A block makes a tile of
// one frame:
//   1. The source pixels under the tile go to shared memory as words of four bytes, the last one being waste. Rows of
//      RGB pixels begin at any byte, so this is also where they are aligned; and YUV pixels become RGB.
//   2. A warp walks down a strip of output rows. A lane has four columns, whose weights stay in registers. For each
//      source row it mixes two words horizontally, with integer weights, exactly; and for each output row it mixes the
//      two source rows that it holds in registers, casts, and writes to the Fast frame and, where it is one, to the
//      Slow frame. Interleaved pixels take the way through shared memory to be written in whole lines.
// A constant image stays exactly constant: the weights of a column always have the same sum, and two equal rows have no
// difference to mix in.
#pragma once

#include "gather_frames.cuh"
#include "gather_frames_yuv.cuh"

namespace slowfast {
namespace {

constexpr int kWarps = 4;       // of a block: one or two beside each other, and strips below each other
constexpr int kBlocks = 7;      // on a multiprocessor, for which registers and shared memory suffice
constexpr int kStripRows = 16;  // output rows of a warp, to make up for the preparations
constexpr int kLanePixels = 4;  // in two groups of two adjacent ones
constexpr int kWarpPixels = 32 * kLanePixels;
constexpr int kThreadsOfBlock = 32 * kWarps;
constexpr int kBatch = 4;  // of four pixels, that a thread has under way to shared memory
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

// The tile of a block in resized pixels, and the source pixels under it.
struct Tile {
  int x0, y0, columns, rows;  // in the output
  TwoTaps vertical, horizontal;
  int top, leftmost;  // in the resized frame, where `leftmost` is the last column of a flipped tile
  int first_row, first_column;
  bool adjacent;  // staged rows follow each other in the frame; else each output row has two staged rows of its own
  int staged_rows, staged_columns;

  __device__ Tile(const Arguments& a, const Clip& clip)
      : vertical(clip.height, clip.resized_height), horizontal(clip.width, clip.resized_width) {
    const unsigned across = static_cast<unsigned>(a.tiling.column_tiles);
    const unsigned row_tile = across == 1 ? blockIdx.x : blockIdx.x / across;
    const int width = static_cast<int>(a.width), height = static_cast<int>(a.height);
    x0 = static_cast<int>(blockIdx.x - row_tile * across) * a.tiling.columns;
    y0 = static_cast<int>(row_tile) * a.tiling.rows;
    columns = std::min(a.tiling.columns, width - x0);
    rows = std::min(a.tiling.rows, height - y0);
    top = clip.top + y0;
    leftmost = clip.left + (clip.flip ? width - x0 - columns : x0);
    first_row = vertical.first(top);
    first_column = horizontal.first(leftmost) & (clip.chroma ? ~3 : ~0);  // where words of luma may begin
    adjacent = clip.height <= clip.resized_height;
    staged_rows = adjacent ? vertical.first(top + rows - 1) + 2 - first_row : 2 * rows;
    staged_columns = horizontal.first(leftmost + columns - 1) + 2 - first_column;
  }
};

// A block's shared memory; what the threads look up is made once.
template <typename T>
struct Shared {
  uint32_t* pixels;         // [staged_rows, pitch]
  ColumnEntry* columns;     // [pixels of all warps beside each other]
  int64_t* row_offsets;     // [staged_rows], in a frame
  int64_t* chroma_offsets;  // the same of chroma; nothing for RGB
  RowEntry* rows;           // [rows]
  Pack<T, 2>* exchange;     // [kWarps, 3, kWarpPixels / 2], for interleaved pixels

  __device__ Shared(void* memory, const Tiling& tiling, int beside, bool yuv) : pixels(static_cast<uint32_t*>(memory)) {
    columns = reinterpret_cast<ColumnEntry*>(pixels + tiling.staged_rows * tiling.pitch);
    row_offsets = reinterpret_cast<int64_t*>(columns + kWarpPixels * beside);
    chroma_offsets = row_offsets + tiling.staged_rows;
    rows = reinterpret_cast<RowEntry*>(chroma_offsets + (yuv ? tiling.staged_rows : 0));
    exchange = reinterpret_cast<Pack<T, 2>*>(rows + tiling.rows);
  }
};

template <typename T>
__device__ void make_tables(const Clip& clip, const Tile& tile, const Shared<T>& shared, int columns, int thread) {
#pragma unroll 1
  for (int x = thread; x < columns; x += kThreadsOfBlock) {
    const int inside = std::min(x, tile.columns - 1);
    int second;
    const int first = tile.horizontal.first(tile.leftmost + (clip.flip ? tile.columns - 1 - inside : inside), &second);
    const unsigned weight = static_cast<unsigned>(second);
    shared.columns[x] = {static_cast<unsigned>(first - tile.first_column),
                         clip.column_factor * (2 * tile.horizontal.resized - weight + (weight << 16))};
  }
#pragma unroll 1
  for (int y = thread; y < tile.rows; y += kThreadsOfBlock) {
    int second;
    const int first = tile.vertical.first(tile.top + y, &second);
    const int staged = tile.adjacent ? first - tile.first_row : 2 * y;
    const int odd_weight = staged & 1 ? 2 * tile.vertical.resized - second : second;
    shared.rows[y] = {staged, tile.vertical.unit * static_cast<float>(odd_weight)};
  }
#pragma unroll 1
  for (int staged = thread; staged < tile.staged_rows; staged += kThreadsOfBlock) {
    const int row =
        std::min(tile.adjacent ? tile.first_row + staged : tile.vertical.first(tile.top + staged / 2) + staged % 2,
                 clip.height - 1);
    shared.row_offsets[staged] = row * clip.stride_h;
    if (clip.chroma) shared.chroma_offsets[staged] = row / 2 * clip.chroma_h;
  }
}

// A thread copies the same four columns of all rows, or of each `beside`-th.
template <typename T>
__device__ void stage_pixels(const Clip& clip, const uint8_t* frame, const Tile& tile, const Shared<T>& shared,
                             int pitch, int thread) {
  const int quads = (tile.staged_columns + 3) / 4, beside = std::max(kThreadsOfBlock / quads, 1);
  for (int quad = thread % quads; quad < quads && thread / quads < beside; quad += kThreadsOfBlock) {
    const int column = tile.first_column + 4 * quad;
    uint32_t* to = shared.pixels + 4 * quad;
    if (clip.dense && column > 0 && 3 * column + 16 <= 3 * clip.width) {  // the words lie inside the row
#pragma unroll 1
      for (int first = thread / quads; first < tile.staged_rows; first += kBatch * beside) {
        FourPixels fours[kBatch];
        for (int i = 0; i < kBatch; ++i) {
          const int staged = first + i * beside;
          if (staged < tile.staged_rows) fours[i].load(frame + shared.row_offsets[staged] + 3 * column);
        }
        for (int i = 0; i < kBatch; ++i) {
          const int staged = first + i * beside;
          if (staged < tile.staged_rows) *reinterpret_cast<uint4*>(to + staged * pitch) = fours[i].pixels();
        }
      }
    } else {
#pragma unroll 1
      for (int staged = thread / quads; staged < tile.staged_rows; staged += beside) {
#pragma unroll 1
        for (int i = 0; i < std::min(4, clip.width - column); ++i) {
          to[staged * pitch + i] = rgb_pixel(clip, frame + shared.row_offsets[staged], column + i);
        }
      }
    }
  }
}

template <typename T>
__device__ void stage_yuv_pixels(const Clip& clip, const uint8_t* luma, const uint8_t* chroma, const Tile& tile,
                                 const Shared<T>& shared, int pitch, int thread) {
  const int quads = (tile.staged_columns + 3) / 4, beside = std::max(kThreadsOfBlock / quads, 1);
  const auto row = [&](int staged) {
    return YuvRow{luma + shared.row_offsets[staged], chroma + shared.chroma_offsets[staged]};
  };
  for (int quad = thread % quads; quad < quads && thread / quads < beside; quad += kThreadsOfBlock) {
    const int column = tile.first_column + 4 * quad;
    uint32_t* to = shared.pixels + 4 * quad;
    if (YuvRow::has_words(clip, column)) {
#pragma unroll 1
      for (int first = thread / quads; first < tile.staged_rows; first += kBatch * beside) {
        FourYuvPixels fours[kBatch];
        for (int i = 0; i < kBatch; ++i) {
          const int staged = first + i * beside;
          if (staged < tile.staged_rows) fours[i].load(clip, row(staged), column);
        }
        for (int i = 0; i < kBatch; ++i) {
          const int staged = first + i * beside;
          if (staged < tile.staged_rows) *reinterpret_cast<uint4*>(to + staged * pitch) = fours[i].pixels(clip.colour);
        }
      }
    } else {
#pragma unroll 1
      for (int staged = thread / quads; staged < tile.staged_rows; staged += beside) {
#pragma unroll 1
        for (int i = 0; i < std::min(4, clip.width - column); ++i)
          to[staged * pitch + i] = row(staged).pixel(clip, column + i);
      }
    }
  }
}

template <typename T, bool kPlanar>
__global__ void __launch_bounds__(kThreadsOfBlock, kBlocks)
    gather_frames_two_taps_forward_kernel(const __grid_constant__ Arguments a) {
  const Tiling& tiling = a.tiling;
  const int lane = static_cast<int>(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.y + blockDim.y * threadIdx.z), thread = 32 * warp + lane;
  SF_DYNAMIC_SHARED(uint4, memory);
  const unsigned n = blockIdx.z, t = blockIdx.y;
  const Clip& clip = a.clips[n];
  const Shared<T> shared(memory, tiling, static_cast<int>(blockDim.y), clip.chroma != nullptr);
  const int64_t index = source_frame(a, clip, n, t);
  const Tile tile(a, clip);
  make_tables(clip, tile, shared, kWarpPixels * static_cast<int>(blockDim.y), thread);
  __syncthreads();
  const uint8_t* frame = clip.frames + index * clip.stride_t;
  if (clip.chroma) {
    stage_yuv_pixels(clip, frame, clip.chroma + index * clip.chroma_t, tile, shared, tiling.pitch, thread);
  } else {
    stage_pixels(clip, frame, tile, shared, tiling.pitch, thread);
  }
  __syncthreads();

  const int begin = static_cast<int>(threadIdx.z) * tiling.strip_rows;
  if (begin >= tile.rows) return;
  const RowEntry *entry = shared.rows + begin, *end = shared.rows + std::min(begin + tiling.strip_rows, tile.rows);
  int next = entry->staged;  // the next source row to mix
  const int warp_x = kWarpPixels * static_cast<int>(threadIdx.y);
  const uint32_t* from[kLanePixels];  // in that row
  unsigned weights[kLanePixels];
  for (int p = 0; p < kLanePixels; ++p) {
    const ColumnEntry column = shared.columns[warp_x + 64 * (p / 2) + 2 * lane + p % 2];
    from[p] = shared.pixels + next * tiling.pitch + column.word;
    weights[p] = column.weights;
  }
  // A dot product of bytes and weights is an integer below 2^23. Added to the bits of 2^23 it makes those of a float,
  // for which `scale` and `shift` normalise. Since the weights are as large as they may be, 2^23 costs the shift no
  // accuracy.
  constexpr unsigned kBits = 0x4B000000;
  float scale[3], shift[3];
  for (int c = 0; c < 3; ++c) {
    scale[c] = a.scale[c] / static_cast<float>(2 * tile.horizontal.resized * clip.column_factor);
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
  const int count = (kPlanar ? 1 : 3) * (tile.columns - warp_x) - kSize * lane;  // values from there on
  const unsigned slow_frames = static_cast<unsigned>(a.slow.frames);
  const int64_t slow_t = slow_frame_of(t, static_cast<unsigned>(a.fast.frames), slow_frames, a.linspace);
  const auto start = [&](const Output& output, int64_t frame_index) {
    return static_cast<T*>(output.data) + n * output.stride_n + frame_index * output.stride_t +
           (tile.y0 + begin) * output.stride_h + (kPlanar ? 1 : 3) * (tile.x0 + warp_x) + kSize * lane;
  };
  T* fast = start(a.fast, t);
  T* slow = slow_t >= 0 ? start(a.slow, slow_t) : nullptr;
  Pack<T, 2>* exchange = shared.exchange + warp * 3 * kWarpPixels / 2;

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
int64_t two_taps_shared_bytes(const Tiling& tiling, bool planar, bool yuv) {
  return sizeof(uint32_t) * static_cast<int64_t>(tiling.staged_rows) * tiling.pitch +
         sizeof(ColumnEntry) * kWarpPixels * warps_across(tiling) +
         sizeof(int64_t) * (yuv ? 2 : 1) * tiling.staged_rows + sizeof(RowEntry) * tiling.rows +
         (planar ? 0 : sizeof(T) * kWarps * 3 * kWarpPixels);
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
  const bool yuv = a->clips[0].chroma;  // and so are the others
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
        pixels =
            std::max(pixels, std::min(tiling.columns * clip.width / clip.resized_width, clip.width) + (yuv ? 6 : 3));
        staged_rows = std::max(staged_rows, clip.height > clip.resized_height
                                                ? 2 * tiling.rows
                                                : tiling.rows * clip.height / clip.resized_height + 3);
      }
      tiling.pitch = (pixels + 3) / 4 * 4;
      tiling.staged_rows = (staged_rows + 1) / 2 * 2;  // which aligns what comes after it
      const int64_t shared_bytes = two_taps_shared_bytes<T>(tiling, a->planar, yuv);
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
