// CPU kernels of the training form's second step: one pass that normalises, rectifies and concatenates, and its
// backward, one pass as well. Channels-last tensors are walked by blocks of positions, others by channel.

#include <cmath>
#include <limits>

#include "lateral_conv_concat_blocks.h"
#include "slowfast/lateral_conv_concat.h"

namespace slowfast {
namespace {

// A part of a tensor: channels [first, first + channels), frames [t, end_t), positions [begin, end) of clip n.
struct Part {
  int64_t n, first, channels, t, end_t, begin, end;
};

struct Parts {
  bool channels_last;
  int64_t channels;
  Blocks blocks;

  explicit Parts(const TensorView& view)
      : channels_last(is_channels_last(view)), channels(view.size(1)), blocks(view, 256, 1) {}
  int64_t count() const { return channels_last ? blocks.count() : blocks.clips * channels; }
  Part operator[](int64_t index) const {
    if (!channels_last) return {index / channels, index % channels, 1, 0, blocks.frames, 0, blocks.positions};
    const Block block = blocks[index];
    return {block.n, 0, channels, block.t, block.t + 1, block.begin, block.end};
  }
};

template <typename T>
struct Norm {
  using Acc = accumulator_t<T>;

  const TensorView& mean;
  const TensorView& var;
  Acc *inverse, *scale, *shift;  // 1 / sqrt(var + eps); conv * scale + shift
  Acc least;                     // 0 for a ReLU, else -infinity

  template <typename Params>
  Norm(const Params& p, Workspace<Acc>& workspace)
      : mean(p.mean), var(p.var), least(p.relu ? Acc(0) : -std::numeric_limits<Acc>::infinity()) {
    const int64_t channels = p.conv.size(1);
    inverse = workspace.take(channels);
    scale = workspace.take(channels);
    shift = workspace.take(channels);
    if (workspace.data == nullptr) return;
    for (int64_t c = 0; c < channels; ++c) {
      const Acc gamma = p.gamma.given() ? p.gamma.template as<const Acc>()[c] : Acc(1);
      const Acc beta = p.beta.given() ? p.beta.template as<const Acc>()[c] : Acc(0);
      inverse[c] = static_cast<Acc>(1 / std::sqrt(var.as<const double>()[c] + p.eps));
      scale[c] = inverse[c] * gamma;
      shift[c] = static_cast<Acc>(beta - mean.as<const double>()[c] * scale[c]);
    }
  }
};

template <typename T>
SF_INLINE void norm_concat_template(const LateralNormConcatParams& p, const Norm<T>& norm, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const int64_t slow_channels = p.slow.size(1);
  const Parts parts(p.output);
  const Acc least = norm.least;
  for (int64_t i = begin; i < end; ++i) {
    const Part part = parts[i];
    const int64_t slow_count = std::clamp<int64_t>(slow_channels - part.first, 0, part.channels);
    const int64_t count = part.channels - slow_count, first = std::max<int64_t>(part.first - slow_channels, 0);
    const TensorView to_slow = channels_of(p.output, part.first, slow_count);
    const TensorView to = channels_of(p.output, slow_channels + first, count), from = channels_of(p.conv, first, count);
    const Acc *scale = norm.scale + first, *shift = norm.shift + first;
    for (int64_t t = part.t; t < part.end_t; ++t) {
      if (slow_count > 0)
        write_slow<T>(channels_of(p.slow, part.first, slow_count), channels_of(p.residual, part.first, slow_count),
                      to_slow, part.n, t, part.begin, part.end);
      if (count == 0) continue;
      for_each_run(is_even(from) && is_even(to), to.size(4), part.begin, part.end,
                   [&](int64_t, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA {
                     const auto epilogue = [=](int64_t c) SF_INLINE_LAMBDA {
                       const Acc a = scale[c], b = shift[c];
                       return [=](T& y, const T& x) SF_INLINE_LAMBDA {
                         const Acc value = static_cast<Acc>(x) * a + b;
                         y = T(value < least ? least : value);
                       };
                     };
                     for_each_by_channel(count, length, epilogue, matrix_at<T>(to, part.n, t, h, w),
                                         matrix_at<const T>(from, part.n, t, h, w));
                   });
    }
  }
}

// One row of a channel: writes the gradient of conv through the normalisation alone (mean and var held fixed) and adds
// to `sums` the rectified gradient g, and to `products` g * (conv - mean). In double, as PyTorch: both may nearly
// cancel, and an error in them changes all gradients of the channel the same way, so that it does not average out.
template <bool kDense, typename T, typename Acc>
SF_INLINE void norm_backward_row(int64_t length, Acc scale, Acc shift, double mean, Acc least, Matrix<const T> g,
                                 Matrix<const T> z, Matrix<T> out, double& sums, double& products) {
  constexpr int64_t kStrip = 16;  // elements side by side are summed apart, so that the sums are vectors
  double strip_sums[kStrip] = {}, strip_products[kStrip] = {};
  for (int64_t begin = 0; begin < length; begin += kStrip) {
    const int64_t count = std::min(kStrip, length - begin);
    const auto step = [&](int64_t i) SF_INLINE_LAMBDA {
      const int64_t q = begin + i;
      const Acc x = static_cast<Acc>(z.data[kDense ? q : q * z.position]);
      const Acc grad = static_cast<Acc>(g.data[kDense ? q : q * g.position]);
      const Acc rectified = x * scale + shift <= least ? Acc(0) : grad;
      out.data[kDense ? q : q * out.position] = T(rectified * scale);
      strip_sums[i] += rectified;
      strip_products[i] += static_cast<double>(rectified) * (static_cast<double>(x) - mean);
    };
    if (count == kStrip) {
#pragma GCC ivdep
      for (int64_t i = 0; i < kStrip; ++i) step(i);
    } else {
      for (int64_t i = 0; i < count; ++i) step(i);
    }
  }
  for (int64_t i = 0; i < kStrip; ++i) sums += strip_sums[i], products += strip_products[i];
}

// Sums are kept by part: all_sums[part][2][channels of the part].
template <typename T>
SF_INLINE void norm_backward_template(const LateralNormBackwardParams& p, const Norm<T>& norm, double* all_sums,
                                      int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const Parts parts(p.conv);
  const Acc least = norm.least;
  for (int64_t i = begin; i < end; ++i) {
    const Part part = parts[i];
    const int64_t channels = part.channels;
    const TensorView grad = channels_of(p.grad, part.first, channels), conv = channels_of(p.conv, part.first, channels),
                     out = channels_of(p.grad_conv, part.first, channels);
    const Acc *scale = norm.scale + part.first, *shift = norm.shift + part.first;
    const double* mean = norm.mean.template as<const double>() + part.first;
    double* sums = all_sums + i * 2 * channels;
    double* products = sums + channels;
    std::fill(sums, sums + 2 * channels, 0.0);
    const bool even = is_even(grad) && is_even(conv) && is_even(out);
    const auto run = [&](int64_t t, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA {
      const auto g = matrix_at<const T>(grad, part.n, t, h, w), z = matrix_at<const T>(conv, part.n, t, h, w);
      const auto to = matrix_at<T>(out, part.n, t, h, w);
      if (parts.channels_last && g.channel == 1) {
        for (int64_t q = 0; q < length; ++q)
#pragma GCC ivdep
          for (int64_t c = 0; c < channels; ++c) {
            const Acc x = static_cast<Acc>(z.data[q * z.position + c]);
            const Acc gradient = static_cast<Acc>(g.data[q * g.position + c]);
            const Acc rectified = x * scale[c] + shift[c] <= least ? Acc(0) : gradient;
            to.data[q * to.position + c] = T(rectified * scale[c]);
            sums[c] += rectified;
            products[c] += static_cast<double>(rectified) * (static_cast<double>(x) - mean[c]);
          }
        return;
      }
      const bool dense = g.position == 1 && z.position == 1 && to.position == 1;
      for (int64_t c = 0; c < channels; ++c) {
        if (dense)
          norm_backward_row<true, T, Acc>(length, scale[c], shift[c], mean[c], least, g.at(c, 0), z.at(c, 0),
                                          to.at(c, 0), sums[c], products[c]);
        else
          norm_backward_row<false, T, Acc>(length, scale[c], shift[c], mean[c], least, g.at(c, 0), z.at(c, 0),
                                           to.at(c, 0), sums[c], products[c]);
      }
    };
    for (int64_t t = part.t; t < part.end_t; ++t)
      for_each_run(even, out.size(4), part.begin, part.end,
                   [&](int64_t, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA { run(t, h, w, length); });
  }
}

template <typename T>
void join_sums(const LateralNormBackwardParams& p, const Norm<T>& norm, const double* all_sums) {
  using Acc = accumulator_t<T>;
  const Parts parts(p.conv);
  const int64_t channels = p.conv.size(1), per_part = parts.channels_last ? channels : 1;
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, product = 0;
    for (int64_t i = parts.channels_last ? 0 : c; i < parts.count(); i += parts.channels_last ? 1 : channels) {
      const double* part = all_sums + i * 2 * per_part + (parts.channels_last ? c : 0);
      sum += part[0], product += part[per_part];
    }
    const double inverse = norm.inverse[c], scale = norm.scale[c];
    p.grad_beta.as<Acc>()[c] = static_cast<Acc>(sum);
    p.grad_gamma.as<Acc>()[c] = static_cast<Acc>(product * inverse);
    p.grad_mean.as<double>()[c] = -sum * scale;
    p.grad_var.as<double>()[c] = -0.5 * product * scale * inverse * inverse;
  }
}

#define SF_NORM_KERNELS(T, MULTIVERSION)                                                                             \
  MULTIVERSION void norm_concat(const LateralNormConcatParams& p, const Norm<T>& norm, int64_t begin, int64_t end) { \
    norm_concat_template(p, norm, begin, end);                                                                       \
  }                                                                                                                  \
  MULTIVERSION void norm_backward(const LateralNormBackwardParams& p, const Norm<T>& norm, double* sums,             \
                                  int64_t begin, int64_t end) {                                                      \
    norm_backward_template(p, norm, sums, begin, end);                                                               \
  }
SF_NORM_KERNELS(float, SF_MULTIVERSION)
SF_NORM_KERNELS(double, )
SF_NORM_KERNELS(bfloat16, SF_MULTIVERSION)
#undef SF_NORM_KERNELS

}  // namespace

int64_t lateral_norm_workspace_cpu(const TensorView& conv) {
  const Parts parts(conv);
  const int64_t sums = parts.count() * 2 * (parts.channels_last ? conv.size(1) : 1);  // double
  return 3 * round_up(conv.size(1), 16) + sums * static_cast<int64_t>(sizeof(double) / sizeof(float));
}

void lateral_norm_concat_cpu(const LateralNormConcatParams& p, void* data, int num_threads) {
  if (p.output.numel() == 0) return;
  dispatch_floating(p.conv.dtype, "lateral_norm_concat", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace<accumulator_t<T>> workspace{static_cast<accumulator_t<T>*>(data)};
    const Norm<T> norm(p, workspace);
    parallel_for(Parts(p.output).count(), 1, num_threads,
                 [&](int64_t begin, int64_t end) { norm_concat(p, norm, begin, end); });
  });
}

void lateral_norm_backward_cpu(const LateralNormBackwardParams& p, void* data, int num_threads) {
  dispatch_floating(p.conv.dtype, "lateral_norm_concat_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace<accumulator_t<T>> workspace{static_cast<accumulator_t<T>*>(data)};
    const Norm<T> norm(p, workspace);
    double* sums = reinterpret_cast<double*>(workspace.take(0));
    parallel_for(Parts(p.conv).count(), 1, num_threads,
                 [&](int64_t begin, int64_t end) { norm_backward(p, norm, sums, begin, end); });
    join_sums(p, norm, sums);
  });
}

}  // namespace slowfast
