// TensorView: what a kernel sees of a tensor. It owns nothing; strides are in elements.
#pragma once

#include <cstdint>

#include "slowfast/dtype.h"

namespace slowfast {

constexpr int kMaxDims = 6;

struct TensorView {
  void* data = nullptr;  // nullptr: an optional tensor that was not given
  DType dtype = DType::kFloat32;
  int ndim = 0;
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};

  bool given() const { return data != nullptr || ndim > 0; }
  int64_t size(int dim) const { return sizes[dim]; }
  int64_t stride(int dim) const { return strides[dim]; }
  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < ndim; ++i) count *= sizes[i];
    return count;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace slowfast
