// CPU forward kernels of lateral_conv_concat: the inference form, and the training form's convolution with statistics.
//
// Each block of positions is one matrix product, weight x frames (see lateral_conv_concat_blocks.h). While its result
// is in the cache it is scaled, shifted, rectified and written next to the Slow channels, or measured and written as it
// is.

#include <limits>

#include "lateral_conv_concat_blocks.h"
#include "slowfast/lateral_conv_concat.h"

namespace slowfast {
namespace {

template <typename T>
struct Forward {
  using Acc = accumulator_t<T>;

  TensorView slow, residual, slow_output;  // not given when only the convolution is wanted
  TensorView fast, weight, output;         // output: the lateral channels
  LateralTaps taps;
  bool channels_last;
  const BlockProductKernel<Acc>& kernel;
  bool frames_in_place;
  int64_t fast_channels, channels, depth;  // depth: of the matrix product, K Cf
  Blocks blocks;
  int64_t slots;

  Acc *scale = nullptr, *shift = nullptr;
  Acc least;                     // 0 for a ReLU, else -infinity
  double* statistics = nullptr;  // [block][2][Co]: mean and sum of squared deviations
  Acc* weights;                  // channels-last: panels of output channels [K Cf][lanes]; else [Co][K Cf]
  Acc* slot_workspace;
  int64_t frames_size, product_size;  // per slot

  Forward(const TensorView& fast, const TensorView& weight, const TensorView& output, int64_t alpha, int num_threads,
          bool with_statistics, bool relu, Workspace<Acc>& workspace)
      : fast(fast),
        weight(weight),
        output(output),
        taps(weight, alpha, output.size(2)),
        channels_last(is_channels_last(output)),
        kernel(block_product_kernel<Acc>()),
        frames_in_place(channels_last && has_frames_in_place<T>(fast)),
        fast_channels(weight.size(1)),
        channels(weight.size(0)),
        depth(weight.size(1) * weight.size(2)),
        // The frames of a block take up to 128 KiB: a part of the second-level cache, for any number of channels.
        blocks(output, std::clamp<int64_t>((channels_last ? 32768 : 65536) / depth, 48, 512),
               channels_last ? kRowTile : kernel.lanes),
        slots(slots_for(blocks.count(), num_threads)),
        least(relu ? Acc(0) : -std::numeric_limits<Acc>::infinity()) {
    const int64_t padded = round_up(channels, channels_last ? kernel.lanes : kRowTile);
    frames_size = round_up(depth * blocks.size, 16);
    product_size = padded * blocks.size;
    if (with_statistics) {
      statistics = reinterpret_cast<double*>(
          workspace.take(blocks.count() * 2 * channels * static_cast<int64_t>(sizeof(double) / sizeof(Acc))));
    } else {
      scale = workspace.take(channels);
      shift = workspace.take(channels);
    }
    weights = workspace.take(padded * depth);
    slot_workspace = workspace.take(slots * (frames_size + product_size));
  }

  int64_t panels() const { return divide_up(channels, kernel.lanes); }
  int64_t product_stride() const { return channels_last ? panels() * kernel.lanes : blocks.size; }
};

template <typename T>
SF_INLINE void pack_weights_template(const Forward<T>& f, int64_t begin, int64_t end) {
  const Weight<T> weight(f.weight);
  const int64_t fast_channels = f.fast_channels;
  for (int64_t i = begin; i < end; ++i) {
    if (f.channels_last) {
      pack_panel(f.weights, i, f.depth, f.channels, f.kernel.lanes, [&](int64_t row, int64_t column) SF_INLINE_LAMBDA {
        return weight(column, row % fast_channels, row / fast_channels);
      });
    } else {
      for (int64_t k = 0; k < f.weight.size(2); ++k)
        for (int64_t c = 0; c < fast_channels; ++c) f.weights[i * f.depth + k * fast_channels + c] = weight(i, c, k);
    }
  }
}

template <typename Acc, typename T>
SF_INLINE void multiply(const Forward<T>& f, const Block& block, const Acc* frames, int64_t frame_stride,
                        Acc* product) {
  const int64_t first = f.taps.first_tap(block.t), count = f.taps.end_tap(block.t) - first, lanes = f.kernel.lanes;
  BlockProduct<Acc> p;
  p.a_row_major = true;
  p.c = product;
  p.c_stride = f.product_stride();
  p.accumulate = false;
  if (f.channels_last) {
    p.rows = block.count(), p.depth = f.fast_channels, p.segments = count, p.panels = f.panels();
    p.a = frames, p.a_stride = f.fast_channels, p.a_segment = frame_stride;
    p.b = f.weights + first * f.fast_channels * lanes;
    p.b_stride = lanes, p.b_panel = f.depth * lanes, p.b_segment = f.fast_channels * lanes;
  } else {
    p.rows = f.channels, p.depth = count * f.fast_channels, p.segments = 1, p.panels = divide_up(block.count(), lanes);
    p.a = f.weights + first * f.fast_channels, p.a_stride = f.depth, p.a_segment = 0;
    p.b = frames, p.b_stride = lanes, p.b_panel = p.depth * lanes, p.b_segment = 0;
  }
  f.kernel.run(p);
}

// Mean and sum of squared deviations of each channel of a block, about a value of that channel, so that nothing
// cancels. In double: an error in the mean would shift all gradients of the channel the same way.
template <typename Acc>
SF_INLINE void measure(bool channels_last, int64_t channels, int64_t count, const Acc* product, int64_t stride,
                       double* SF_RESTRICT mean, double* SF_RESTRICT deviation) {
  constexpr int kParts = 16;  // elements side by side are summed apart, so that the sums are vectors
  std::fill(mean, mean + channels, 0.0);
  std::fill(deviation, deviation + channels, 0.0);
  if (channels_last) {
    for (int64_t p = 1; p < count; ++p)
      for (int64_t c = 0; c < channels; ++c) {
        const double difference = static_cast<double>(product[p * stride + c]) - product[c];
        mean[c] += difference;
        deviation[c] += difference * difference;
      }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      double sums[kParts] = {}, squares[kParts] = {};
      const Acc* row = product + c * stride;
      const auto add = [&](int64_t p, int part) SF_INLINE_LAMBDA {
        const double difference = static_cast<double>(row[p]) - row[0];
        sums[part] += difference;
        squares[part] += difference * difference;
      };
      int64_t p = 0;
      for (; p + kParts <= count; p += kParts)
        for (int i = 0; i < kParts; ++i) add(p + i, i);
      for (; p < count; ++p) add(p, 0);
      for (int i = 0; i < kParts; ++i) mean[c] += sums[i], deviation[c] += squares[i];
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = mean[c];
    mean[c] = product[channels_last ? c : c * stride] + sum / count;
    deviation[c] = std::max(deviation[c] - sum * sum / count, 0.0);
  }
}

template <typename T>
SF_INLINE void forward_template(const Forward<T>& f, int64_t slot, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  Acc* frames = f.slot_workspace + slot * (f.frames_size + f.product_size);
  Acc* product = frames + f.frames_size;
  const int64_t stride = f.product_stride();
  const bool even = is_even(f.output);
  const Acc least = f.least, *scale = f.scale, *shift = f.shift;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = f.blocks[unit];
    const Acc* direct = f.frames_in_place ? frames_in_place<T>(f.fast, f.taps, block) : nullptr;
    if (direct == nullptr)
      load_frames<T>(f.fast, f.taps, block, f.blocks.size, f.channels_last, f.kernel.lanes, frames);
    const Acc* x = direct == nullptr ? frames : direct;
    multiply(f, block, x, direct == nullptr ? f.fast_channels * f.blocks.size : f.fast.stride(2), product);
    const Matrix<const Acc> from{product, f.channels_last ? 1 : stride, f.channels_last ? stride : 1};
    if (f.statistics != nullptr) {
      double* mean = f.statistics + unit * 2 * f.channels;
      measure(f.channels_last, f.channels, block.count(), product, stride, mean, mean + f.channels);
    }
    const auto write = [&](int64_t offset, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA {
      const auto to = matrix_at<T>(f.output, block.n, block.t, h, w);
      if (f.statistics != nullptr) {
        for_each(f.channels, length, [](T& y, const Acc& x) SF_INLINE_LAMBDA { y = T(x); }, to, from.at(0, offset));
      } else {
        const auto epilogue = [=](int64_t c) SF_INLINE_LAMBDA {
          const Acc a = scale[c], b = shift[c];
          return [=](T& y, const Acc& x) SF_INLINE_LAMBDA {
            const Acc value = x * a + b;
            y = T(value < least ? least : value);
          };
        };
        for_each_by_channel(f.channels, length, epilogue, to, from.at(0, offset));
      }
    };
    for_each_run(even, f.output.size(4), block.begin, block.end, write);
    // In a channels-last output the Slow channels lie between the lateral ones: write both while the page is at hand.
    if (f.slow_output.given() && f.channels_last)
      write_slow<T>(f.slow, f.residual, f.slow_output, block.n, block.t, block.begin, block.end);
  }
}

// One unit is one channel of one clip.
template <typename T>
SF_INLINE void slow_channels_template(const Forward<T>& f, int64_t begin, int64_t end) {
  const TensorView& out = f.slow_output;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / out.size(1), c = unit % out.size(1);
    for (int64_t t = 0; t < out.size(2); ++t)
      write_slow<T>(channels_of(f.slow, c, 1), channels_of(f.residual, c, 1), channels_of(out, c, 1), n, t, 0,
                    positions_of(out));
  }
}

// The blocks' statistics, joined in their order by Chan's formula.
template <typename T>
void join_statistics(const Forward<T>& f, TensorView mean, TensorView var, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    double count = 0, average = 0, deviation = 0;
    for (int64_t unit = 0; unit < f.blocks.count(); ++unit) {
      const double* part = f.statistics + unit * 2 * f.channels + c;
      const double more = static_cast<double>(f.blocks[unit].count()), difference = part[0] - average;
      const double share = more / (count + more);
      average += difference * share;
      deviation += part[f.channels] + difference * difference * count * share;
      count += more;
    }
    mean.as<double>()[c] = average;
    var.as<double>()[c] = count > 0 ? deviation / count : 0;
  }
}

#define SF_FORWARD_KERNELS(T, MULTIVERSION)                                                         \
  MULTIVERSION void pack_weights(const Forward<T>& f, int64_t begin, int64_t end) {                 \
    pack_weights_template(f, begin, end);                                                           \
  }                                                                                                 \
  MULTIVERSION void forward_blocks(const Forward<T>& f, int64_t slot, int64_t begin, int64_t end) { \
    forward_template(f, slot, begin, end);                                                          \
  }                                                                                                 \
  MULTIVERSION void slow_channels(const Forward<T>& f, int64_t begin, int64_t end) {                \
    slow_channels_template(f, begin, end);                                                          \
  }
SF_FORWARD_KERNELS(float, SF_MULTIVERSION)
SF_FORWARD_KERNELS(double, )
SF_FORWARD_KERNELS(bfloat16, SF_MULTIVERSION)
#undef SF_FORWARD_KERNELS

template <typename T>
void run(const Forward<T>& f, int num_threads) {
  parallel_for(f.channels_last ? f.panels() : f.channels, 1, num_threads,
               [&](int64_t begin, int64_t end) { pack_weights(f, begin, end); });
  parallel_slots(f.blocks.count(), f.slots, num_threads,
                 [&](int64_t slot, int64_t begin, int64_t end) { forward_blocks(f, slot, begin, end); });
}

template <typename T>
Forward<T> plan(const LateralConvConcatParams& p, int num_threads, Workspace<accumulator_t<T>>& workspace) {
  const int64_t slow_channels = p.slow.size(1);
  Forward<T> f(p.fast, p.weight, channels_of(p.output, slow_channels, p.weight.size(0)), p.alpha, num_threads, false,
               p.relu, workspace);
  f.slow = p.slow, f.residual = p.residual, f.slow_output = channels_of(p.output, 0, slow_channels);
  return f;
}

template <typename T>
Forward<T> plan(const LateralConvStatisticsParams& p, int num_threads, Workspace<accumulator_t<T>>& workspace) {
  return {p.fast, p.weight, p.conv, p.alpha, num_threads, true, false, workspace};
}

template <typename Params>
int64_t workspace_for(const Params& p, int num_threads) {
  int64_t size = 0;
  dispatch_floating(p.fast.dtype, "lateral_conv_concat", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace<accumulator_t<T>> workspace{nullptr};
    plan<T>(p, num_threads, workspace);
    size = workspace.used;
  });
  return size;
}

template <typename Acc>
void fill_vector(Acc* to, const TensorView& from, int64_t count, Acc otherwise) {
  if (from.given())
    std::copy(from.as<const Acc>(), from.as<const Acc>() + count, to);
  else
    std::fill(to, to + count, otherwise);
}

}  // namespace

int64_t lateral_conv_concat_workspace_cpu(const LateralConvConcatParams& p, int num_threads) {
  return workspace_for(p, num_threads);
}

void lateral_conv_concat_forward_cpu(const LateralConvConcatParams& p, void* data, int num_threads) {
  if (p.output.numel() == 0) return;
  dispatch_floating(p.fast.dtype, "lateral_conv_concat", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    Workspace<Acc> workspace{static_cast<Acc*>(data)};
    const Forward<T> f = plan<T>(p, num_threads, workspace);
    fill_vector(f.scale, p.scale, f.channels, Acc(1));
    fill_vector(f.shift, p.shift, f.channels, Acc(0));
    run(f, num_threads);
    if (!f.channels_last)
      parallel_for(p.slow.size(0) * p.slow.size(1), 1, num_threads,
                   [&](int64_t begin, int64_t end) { slow_channels(f, begin, end); });
  });
}

int64_t lateral_conv_statistics_workspace_cpu(const LateralConvStatisticsParams& p, int num_threads) {
  return workspace_for(p, num_threads);
}

void lateral_conv_statistics_cpu(const LateralConvStatisticsParams& p, void* data, int num_threads) {
  dispatch_floating(p.fast.dtype, "lateral_conv_statistics", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulator_t<T>;
    Workspace<Acc> workspace{static_cast<Acc*>(data)};
    const Forward<T> f = plan<T>(p, num_threads, workspace);
    if (p.conv.numel() > 0) run(f, num_threads);
    parallel_for(f.channels, 16, num_threads,
                 [&](int64_t begin, int64_t end) { join_statistics(f, p.mean, p.var, begin, end); });
  });
}

}  // namespace slowfast
