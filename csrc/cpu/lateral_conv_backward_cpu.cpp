// CPU backward of the lateral convolution, in both forms of the op (see lateral_conv_concat.h).
//
// The gradient of the convolution's output is never stored: it is computed from what the forward kept as each block is
// loaded. The gradient of fast is in gather form: a block of a Fast frame sums the output frames that read it, as one
// matrix product. The gradient of weight is a sum over all positions: they are split into parts, in a way that depends
// on the shapes only, and the parts are added in their order. So there are no atomics, and the bits are the same for
// any number of threads.

#include "lateral_conv_concat_blocks.h"
#include "slowfast/lateral_conv_concat.h"

namespace slowfast {
namespace {

template <typename T>
struct Backward {
  using Acc = accumulator_t<T>;

  const LateralConvBackwardParams& p;
  LateralTaps taps;
  bool channels_last, frames_in_place;
  const BlockProductKernel<Acc>& kernel;
  int64_t fast_channels, channels, kernel_size;
  Blocks blocks;

  // By output channel: the gradient is grad * scale, or grad + add + multiply * (conv - centre).
  Acc *scale, *add, *multiply, *centre;

  // Gradient of fast.
  Acc* weights;  // channels-last: per tap, panels of Fast channels [Co][lanes]; else per tap [Cf][Co]
  Acc* fast_workspace;
  int64_t fast_slots, grads_size, product_size;

  // Gradient of weight. A unit is a part of the blocks for a group of output channels.
  static constexpr int64_t kMaxGroup = 96;
  bool weight_frames_in_place;
  Blocks weight_blocks;
  int64_t parts, groups, group, padded_rows, weight_slots, frames_size, columns_size, part_size;
  Acc* weight_parts;  // [part][group of channels][tap][Cf, padded][group] and [group] sums of the gradient
  Acc* weight_workspace;

  Backward(const LateralConvBackwardParams& p, int num_threads, Workspace<Acc>& workspace)
      : p(p),
        taps(p.weight, p.alpha, p.grad.size(2)),
        channels_last(is_channels_last(p.fast)),
        frames_in_place(channels_last && has_frames_in_place<T>(p.fast)),
        kernel(block_product_kernel<Acc>()),
        fast_channels(p.weight.size(1)),
        channels(p.weight.size(0)),
        kernel_size(p.weight.size(2)),
        blocks(p.grad, std::clamp<int64_t>(32768 / (fast_channels * kernel_size), 48, 128),
               channels_last ? kRowTile : kernel.lanes),
        weight_frames_in_place(has_rows_in_place<T>(p.fast, channels_last)),
        weight_blocks(p.grad, weight_frames_in_place ? 128 : blocks.size, kernel.lanes) {
    scale = workspace.take(channels);
    add = workspace.take(channels);
    multiply = workspace.take(channels);
    centre = workspace.take(channels);

    fast_slots = p.grad_fast.given() ? slots_for(blocks.count(), num_threads) : 0;
    const int64_t padded_fast = round_up(fast_channels, channels_last ? kernel.lanes : kRowTile);
    weights = workspace.take(fast_slots > 0 ? kernel_size * padded_fast * channels : 0);
    grads_size = round_up(taps.window() * blocks.size * channels, 16);
    product_size = padded_fast * blocks.size;
    fast_workspace = workspace.take(fast_slots * (grads_size + product_size));

    groups = divide_up(channels, kMaxGroup);
    group = round_up(divide_up(channels, groups), kernel.lanes);
    groups = divide_up(channels, group);
    parts = std::clamp<int64_t>(262144 / (fast_channels * kernel_size * channels), 1, 16);
    parts = p.grad_weight.given() ? std::min(parts, weight_blocks.count()) : 0;
    padded_rows = round_up(fast_channels, kRowTile);
    part_size = (kernel_size * padded_rows + 1) * group;
    weight_parts = workspace.take(parts * groups * part_size);
    weight_slots = parts > 0 ? slots_for(parts * groups, num_threads) : 0;
    frames_size =
        weight_frames_in_place ? 0 : round_up((kernel_size * fast_channels + kRowTile) * weight_blocks.size, 16);
    columns_size = weight_blocks.size * group;
    weight_workspace = workspace.take(weight_slots * (frames_size + 2 * columns_size));
  }

  int64_t fast_panels() const { return divide_up(fast_channels, kernel.lanes); }
};

// The gradient of the convolution's output, channels [first, first + count) of a block of frame t, without the factor
// `scale` unless asked for: [position][stride] if channels-last, else panels of rows (channel).
template <typename T, typename Acc>
SF_INLINE void load_grads(const Backward<T>& b, const Block& block, int64_t first, int64_t count, bool scaled, Acc* x,
                          int64_t stride) {
  const TensorView grad = channels_of(b.p.grad, first, count), output = channels_of(b.p.output, first, count),
                   conv = channels_of(b.p.conv, first, count);
  const Acc *scale = b.scale + first, *add = b.add + first, *multiply = b.multiply + first, *centre = b.centre + first;
  const bool even = is_even(grad) && is_even(output) && is_even(conv);
  const Matrix<Acc> to{x, 1, stride};
  const Panels<Acc> panels{x, count, b.kernel.lanes};
  for_each_run(even, grad.size(4), block.begin, block.end,
               [&](int64_t offset, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA {
                 const auto store = [&](const auto& function, const auto&... from) SF_INLINE_LAMBDA {
                   if (b.channels_last)
                     for_each_by_channel(count, length, function, to.at(0, offset), from...);
                   else
                     for_each_in_panels(count, length, offset, function, panels, 0, from...);
                 };
                 const auto g = matrix_at<const T>(grad, block.n, block.t, h, w);
                 if (conv.given()) {
                   const auto centred = [=](int64_t c) SF_INLINE_LAMBDA {
                     const Acc a = add[c], m = multiply[c], mean = centre[c];
                     return [=](Acc& to, const T& g, const T& z)
                                SF_INLINE_LAMBDA { to = static_cast<Acc>(g) + (a + m * (static_cast<Acc>(z) - mean)); };
                   };
                   store(centred, g, matrix_at<const T>(conv, block.n, block.t, h, w));
                 } else if (output.given()) {
                   const auto rectified = [=](int64_t c) SF_INLINE_LAMBDA {
                     const Acc a = scaled ? scale[c] : Acc(1);
                     return [=](Acc& to, const T& g, const T& y)
                                SF_INLINE_LAMBDA { to = static_cast<Acc>(y) <= 0 ? Acc(0) : static_cast<Acc>(g) * a; };
                   };
                   store(rectified, g, matrix_at<const T>(output, block.n, block.t, h, w));
                 } else {
                   const auto plain = [=](int64_t c) SF_INLINE_LAMBDA {
                     const Acc a = scaled ? scale[c] : Acc(1);
                     return [=](Acc& to, const T& g) SF_INLINE_LAMBDA { to = static_cast<Acc>(g) * a; };
                   };
                   store(plain, g);
                 }
               });
  if (!b.channels_last) clear_tail(panels, block.count());
}

// ---- gradient of fast

template <typename T>
SF_INLINE void pack_weights_template(const Backward<T>& b, int64_t begin, int64_t end) {
  const Weight<T> weight(b.p.weight);
  const int64_t lanes = b.kernel.lanes;
  for (int64_t k = begin; k < end; ++k) {
    if (b.channels_last) {
      auto* to = b.weights + k * b.fast_panels() * b.channels * lanes;
      for (int64_t panel = 0; panel < b.fast_panels(); ++panel)
        pack_panel(to, panel, b.channels, b.fast_channels, lanes,
                   [&](int64_t row, int64_t column) SF_INLINE_LAMBDA { return weight(row, column, k); });
    } else {
      for (int64_t c = 0; c < b.fast_channels; ++c)
        for (int64_t o = 0; o < b.channels; ++o)
          b.weights[(k * b.fast_channels + c) * b.channels + o] = weight(o, c, k);
    }
  }
}

// Unit (n, t, block): that block of all Fast frames that t owns.
template <typename T>
SF_INLINE void grad_fast_template(const Backward<T>& b, int64_t slot, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const bool last = b.channels_last;
  const int64_t channels = b.channels, size = b.blocks.size, lanes = b.kernel.lanes;
  Acc* grads = b.fast_workspace + slot * (b.grads_size + b.product_size);
  Acc* product = grads + b.grads_size;
  const TensorView& out = b.p.grad_fast;
  const int64_t product_stride = last ? b.fast_panels() * lanes : size;
  const Matrix<const Acc> from{product, last ? 1 : product_stride, last ? product_stride : 1};
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = b.blocks[unit];
    const int64_t oldest = std::max<int64_t>(0, block.t - b.taps.window() + 1);
    for (int64_t t = oldest; t <= block.t; ++t) {
      Acc* frame = grads + (t - oldest) * size * channels;
      load_grads(b, Block{block.n, t, block.begin, block.end}, 0, channels, true, frame, channels);
    }
    for (int64_t frame = b.taps.owned(block.t); frame < b.taps.owned(block.t + 1); ++frame) {
      const int64_t first = b.taps.first_reader(frame), readers = b.taps.end_reader(frame) - first;
      if (readers > 0) {
        const int64_t tap = b.taps.tap(first, frame);  // of the first reader; it falls by alpha for each one after it
        BlockProduct<Acc> p;
        p.depth = channels, p.segments = readers, p.a_row_major = true;
        p.c = product, p.c_stride = product_stride, p.accumulate = false;
        const Acc* first_grads = grads + (first - oldest) * size * channels;
        if (last) {
          const int64_t tap_size = b.fast_panels() * channels * lanes;
          p.rows = block.count(), p.panels = b.fast_panels();
          p.a = first_grads, p.a_stride = channels, p.a_segment = size * channels;
          p.b = b.weights + tap * tap_size, p.b_stride = lanes, p.b_panel = channels * lanes;
          p.b_segment = -b.taps.alpha * tap_size;
        } else {
          const int64_t tap_size = b.fast_channels * channels;
          p.rows = b.fast_channels, p.panels = divide_up(block.count(), lanes);
          p.a = b.weights + tap * tap_size, p.a_stride = channels, p.a_segment = -b.taps.alpha * tap_size;
          p.b = first_grads, p.b_stride = lanes, p.b_panel = channels * lanes, p.b_segment = size * channels;
        }
        b.kernel.run(p);
      }
      for_each_run(is_even(out), out.size(4), block.begin, block.end,
                   [&](int64_t offset, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA {
                     const auto to = matrix_at<T>(out, block.n, frame, h, w);
                     if (readers > 0)
                       for_each(
                           b.fast_channels, length, [](T& y, const Acc& x) SF_INLINE_LAMBDA { y = T(x); }, to,
                           from.at(0, offset));
                     else
                       for_each(b.fast_channels, length, [](T& y) SF_INLINE_LAMBDA { y = T(Acc(0)); }, to);
                   });
    }
  }
}

// ---- gradient of weight

// Panels of positions [row: channel][lane: position] -> panels of channels [row: position][lane: channel].
template <typename Acc>
SF_INLINE void transpose(const Panels<Acc>& from, const Panels<Acc>& to, int64_t channels, int64_t positions) {
  for (int64_t p = 0; p < positions; p += from.lanes) {
    const int64_t count = std::min(from.lanes, positions - p);
    for (int64_t first = 0; first < channels; first += to.lanes) {
      const Acc* SF_RESTRICT x = from.row(first, p / from.lanes);
      Acc* SF_RESTRICT y = to.row(p, first / to.lanes);
      for (int64_t lane = 0; lane < std::min(to.lanes, channels - first); ++lane)
        for (int64_t i = 0; i < count; ++i) y[i * to.lanes + lane] = x[lane * from.lanes + i];
    }
  }
}

// Unit (part, group): the sum over the blocks of a part, for a group of output channels. The depth of the matrix
// product is positions: frames [Cf][position] by columns, the output's gradients in panels of channels. (Rows of a
// group's whole width would be a power of two apart and keep pushing each other out of the first-level cache.)
template <typename T>
SF_INLINE void grad_weight_template(const Backward<T>& b, int64_t slot, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const Blocks& blocks = b.weight_blocks;
  const int64_t size = blocks.size, lanes = b.kernel.lanes, rows_size = b.padded_rows * b.group;
  Acc* frames = b.weight_workspace + slot * (b.frames_size + 2 * b.columns_size);
  Acc* scratch = frames + b.frames_size;
  const Panels<Acc> columns{scratch + b.columns_size, size, lanes};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit / b.groups, first = unit % b.groups * b.group;
    const int64_t count = std::min(b.group, b.channels - first), panels = divide_up(count, lanes);
    Acc* total = b.weight_parts + unit * b.part_size;
    Acc* sums = total + b.kernel_size * rows_size;
    std::fill(total, total + b.part_size, Acc(0));
    std::fill(columns.data, columns.data + b.columns_size, Acc(0));  // channels past the last stay zero
    for (int64_t i = blocks.count() * part / b.parts; i < blocks.count() * (part + 1) / b.parts; ++i) {
      const Block block = blocks[i];
      if (b.channels_last) {
        for (int64_t panel = 0; panel < panels; ++panel)
          load_grads(b, block, first + panel * lanes, std::min(lanes, count - panel * lanes), false,
                     columns.row(0, panel), lanes);
      } else {
        load_grads(b, block, first, count, false, scratch, lanes);
        transpose(Panels<Acc>{scratch, count, lanes}, columns, count, block.count());
      }
      if (b.p.grad_shift.given()) {
        for (int64_t c = 0; c < count; ++c) {
          Acc sum = 0;
          for (int64_t p = 0; p < block.count(); ++p) sum += columns.row(p, c / lanes)[c % lanes];
          sums[c] += sum;
        }
      }
      const int64_t first_tap = b.taps.first_tap(block.t);
      const TensorView& fast = b.p.fast;
      BlockProduct<Acc> p;
      p.rows = b.fast_channels, p.panels = panels, p.a_row_major = !b.channels_last;
      p.b = columns.data, p.b_stride = lanes, p.b_panel = size * lanes, p.c_stride = b.group, p.accumulate = true;
      p.depth = block.count(), p.segments = 1, p.a_segment = 0, p.b_segment = 0;
      int64_t tap_stride;
      if (b.weight_frames_in_place) {
        p.a = fast.as<const Acc>() + block.n * fast.stride(0) + b.taps.fast_frame(block.t, first_tap) * fast.stride(2) +
              block.begin * fast.stride(4);
        p.a_stride = fast.stride(b.channels_last ? 4 : 1), tap_stride = fast.stride(2);
      } else {
        load_frames<T>(fast, b.taps, block, size, b.channels_last, size, frames);
        p.a = frames, p.a_stride = b.channels_last ? b.fast_channels : size, tap_stride = b.fast_channels * size;
      }
      for (int64_t k = first_tap; k < b.taps.end_tap(block.t); ++k, p.a += tap_stride) {
        p.c = total + k * rows_size;
        b.kernel.run(p);
      }
    }
  }
}

// Adds the parts, applies the factor `scale`, and takes from the same sums the gradients of scale (the product of
// weight and its unscaled gradient: conv is linear in weight) and shift.
template <typename T>
SF_INLINE void join_parts_template(const Backward<T>& b, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  constexpr int64_t kMaxGroup = Backward<T>::kMaxGroup;
  const LateralConvBackwardParams& p = b.p;
  const TensorView& out = p.grad_weight;
  const Weight<T> weight(p.weight);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * b.group, count = std::min(b.group, b.channels - first);
    const Acc* parts = b.weight_parts + group * b.part_size;
    const int64_t part_stride = b.groups * b.part_size;
    Acc grad_scale[kMaxGroup] = {};
    for (int64_t row = 0; row <= b.kernel_size * b.padded_rows; ++row) {
      const int64_t k = row / b.padded_rows, f = row % b.padded_rows;
      if (k < b.kernel_size && f >= b.fast_channels) continue;
      Acc sum[kMaxGroup] = {};
      for (int64_t part = 0; part < b.parts; ++part)
        for (int64_t c = 0; c < b.group; ++c) sum[c] += parts[part * part_stride + row * b.group + c];
      for (int64_t c = 0; c < count; ++c) {
        const int64_t o = first + c;
        if (k == b.kernel_size) {
          if (p.grad_shift.given()) p.grad_shift.as<Acc>()[o] = sum[c];
        } else {
          grad_scale[c] += weight(o, f, k) * sum[c];
          out.as<T>()[o * out.stride(0) + f * out.stride(1) + k * out.stride(2)] = T(sum[c] * b.scale[o]);
        }
      }
    }
    if (p.grad_scale.given()) std::copy(grad_scale, grad_scale + count, p.grad_scale.as<Acc>() + first);
  }
}

#define SF_BACKWARD_KERNELS(T, MULTIVERSION)                                                      \
  MULTIVERSION void pack_weights(const Backward<T>& b, int64_t begin, int64_t end) {              \
    pack_weights_template(b, begin, end);                                                         \
  }                                                                                               \
  MULTIVERSION void grad_fast(const Backward<T>& b, int64_t slot, int64_t begin, int64_t end) {   \
    grad_fast_template(b, slot, begin, end);                                                      \
  }                                                                                               \
  MULTIVERSION void grad_weight(const Backward<T>& b, int64_t slot, int64_t begin, int64_t end) { \
    grad_weight_template(b, slot, begin, end);                                                    \
  }                                                                                               \
  MULTIVERSION void join_parts(const Backward<T>& b, int64_t begin, int64_t end) { join_parts_template(b, begin, end); }
SF_BACKWARD_KERNELS(float, SF_MULTIVERSION)
SF_BACKWARD_KERNELS(double, )
SF_BACKWARD_KERNELS(bfloat16, SF_MULTIVERSION)
#undef SF_BACKWARD_KERNELS

template <typename T>
void fill_vectors(const Backward<T>& b) {
  using Acc = accumulator_t<T>;
  const LateralConvBackwardParams& p = b.p;
  const double count = static_cast<double>(p.grad.size(0) * p.grad.size(2) * positions_of(p.grad));
  for (int64_t c = 0; c < b.channels; ++c) {
    b.scale[c] = p.scale.given() ? p.scale.as<const Acc>()[c] : Acc(1);
    const double mean = p.conv.given() ? p.mean.as<const double>()[c] : 0;
    const double multiply = p.conv.given() ? 2 * p.grad_var.as<const double>()[c] / count : 0;
    b.centre[c] = static_cast<Acc>(mean);
    b.multiply[c] = static_cast<Acc>(multiply);
    // What rounding takes from the mean goes into the constant.
    const double constant = p.conv.given() ? p.grad_mean.as<const double>()[c] / count : 0;
    b.add[c] = static_cast<Acc>(constant + multiply * (b.centre[c] - mean));
  }
}

}  // namespace

int64_t lateral_conv_backward_workspace_cpu(const LateralConvBackwardParams& p, int num_threads) {
  int64_t size = 0;
  dispatch_floating(p.grad.dtype, "lateral_conv_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace<accumulator_t<T>> workspace{nullptr};
    Backward<T>(p, num_threads, workspace);
    size = workspace.used;
  });
  return size;
}

void lateral_conv_backward_cpu(const LateralConvBackwardParams& p, void* data, int num_threads) {
  dispatch_floating(p.grad.dtype, "lateral_conv_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace<accumulator_t<T>> workspace{static_cast<accumulator_t<T>*>(data)};
    const Backward<T> b(p, num_threads, workspace);
    fill_vectors(b);
    if (p.grad_fast.given() && p.grad_fast.numel() > 0) {
      parallel_for(b.kernel_size, 1, num_threads, [&](int64_t begin, int64_t end) { pack_weights(b, begin, end); });
      parallel_slots(b.blocks.count(), b.fast_slots, num_threads,
                     [&](int64_t slot, int64_t begin, int64_t end) { grad_fast(b, slot, begin, end); });
    }
    if (p.grad_weight.given()) {
      parallel_slots(b.parts * b.groups, b.weight_slots, num_threads,
                     [&](int64_t slot, int64_t begin, int64_t end) { grad_weight(b, slot, begin, end); });
      parallel_for(b.groups, 1, num_threads, [&](int64_t begin, int64_t end) { join_parts(b, begin, end); });
    }
  });
}

}  // namespace slowfast
