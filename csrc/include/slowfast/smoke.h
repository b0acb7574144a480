// smoke: the smallest CUDA kernel, which shows that this build can launch on this machine.
#pragma once

#include <cstdint>
#include <string>

namespace slowfast {

int cuda_device_count();
// Adds one to `count` int64 values at the device address `data`, on the given device and stream.
void smoke_increment_cuda(void* data, int64_t count, int device, void* stream);

}  // namespace slowfast
