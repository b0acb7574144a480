// What every CUDA launcher needs: a device guard, error checks, and SF_LAUNCH, the one way kernels are launched.
#pragma once

#include <cuda_runtime.h>

#include "slowfast/check.h"

namespace slowfast {

// Makes `device` current for the lifetime of the guard. Nothing in csrc/ allocates device memory or synchronises.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ != device) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  static void check(cudaError_t status, const char* what) {
    SF_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
  }

 private:
  int previous_ = 0;
};

}  // namespace slowfast

// Launches go through one macro, so that csrc/testing/cuda_on_cpu can run the same .cu file on the CPU. A kernel with
// several template arguments is passed in parentheses.
#ifndef SF_LAUNCH
#define SF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                          \
  do {                                                                                     \
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    slowfast::DeviceGuard::check(cudaGetLastError(), "launch of " #kernel);                \
  } while (false)
// A block's dynamic shared memory as an array of T; once per kernel.
#define SF_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char sf_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(sf_dynamic_shared)
#endif
