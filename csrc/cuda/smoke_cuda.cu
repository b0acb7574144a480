// The smoke kernel: one thread per value.

#include "cuda_utils.cuh"
#include "slowfast/smoke.h"

namespace slowfast {
namespace {

__global__ void smoke_increment_kernel(int64_t* data, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) data[i] += 1;
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver or no device is an answer, not an error to keep
    return 0;
  }
  return count;
}

void smoke_increment_cuda(void* data, int64_t count, int device, void* stream) {
  if (count == 0) return;
  const DeviceGuard guard(device);
  const int threads = 256;
  const unsigned blocks = static_cast<unsigned>((count + threads - 1) / threads);
  SF_LAUNCH(smoke_increment_kernel, blocks, threads, 0, stream, static_cast<int64_t*>(data), count);
}

}  // namespace slowfast
