// Which frames of the Fast pathway the taps of a lateral connection reach, shared by the CPU and CUDA kernels.
#pragma once

#include "slowfast/tensor_view.h"

namespace slowfast {

// Output frame t reads fast frame t * alpha + k - K / 2 through tap k.
struct LateralTaps {
  int64_t kernel_size, alpha, slow_frames;

  LateralTaps(const TensorView& weight, int64_t alpha, int64_t slow_frames)
      : kernel_size(weight.size(2)), alpha(alpha), slow_frames(slow_frames) {}

  SF_HOST_DEVICE SF_INLINE int64_t fast_frames() const { return alpha * slow_frames; }
  SF_HOST_DEVICE SF_INLINE int64_t fast_frame(int64_t t, int64_t k) const { return t * alpha + k - kernel_size / 2; }
  SF_HOST_DEVICE SF_INLINE int64_t tap(int64_t t, int64_t frame) const { return frame + kernel_size / 2 - t * alpha; }

  // Taps [first, end) of output frame t fall on frames that exist; never none.
  SF_HOST_DEVICE SF_INLINE int64_t first_tap(int64_t t) const { return most(0, kernel_size / 2 - t * alpha); }
  SF_HOST_DEVICE SF_INLINE int64_t end_tap(int64_t t) const {
    return least(kernel_size, fast_frames() + kernel_size / 2 - t * alpha);
  }

  // Output frames [first, end) read a fast frame; none where alpha > K leaves it out.
  SF_HOST_DEVICE SF_INLINE int64_t first_reader(int64_t frame) const {
    const int64_t past = frame + kernel_size / 2 - kernel_size;  // reads by tap K would start at past / alpha
    return past < 0 ? 0 : past / alpha + 1;
  }
  SF_HOST_DEVICE SF_INLINE int64_t end_reader(int64_t frame) const {
    return least(slow_frames, (frame + kernel_size / 2) / alpha + 1);
  }

  // Fast frames [owned(t), owned(t + 1)) partition the clip so that their readers are t and earlier frames only.
  SF_HOST_DEVICE SF_INLINE int64_t owned(int64_t t) const {
    return t >= slow_frames ? fast_frames() : most(0, t * alpha - kernel_size / 2);
  }
  // How many output frames, t and those before it, read the frames that t owns.
  SF_HOST_DEVICE SF_INLINE int64_t window() const { return (kernel_size - 1) / alpha + 1; }

 private:
  SF_HOST_DEVICE SF_INLINE static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  SF_HOST_DEVICE SF_INLINE static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
};

// Channels [first, first + count) of a 5-D tensor.
inline TensorView channels_of(TensorView view, int64_t first, int64_t count) {
  if (!view.given()) return view;
  view.data = static_cast<char*>(view.data) + first * view.stride(1) * size_of(view.dtype);
  view.sizes[1] = count;
  return view;
}

}  // namespace slowfast
