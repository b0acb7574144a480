// Element types of tensors, and the dispatch from a run-time DType to a compile-time type.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "slowfast/check.h"
#include "slowfast/macros.h"

namespace slowfast {

// The numbers are shared with slowfast_ops/_native.py.
enum class DType : int { kUInt8 = 0, kInt64 = 1, kFloat16 = 2, kBFloat16 = 3, kFloat32 = 4, kFloat64 = 5 };

// bfloat16 storage; arithmetic happens in float.
struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  // Rounds to nearest even; a NaN stays a NaN.
  SF_HOST_DEVICE SF_INLINE explicit bfloat16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    uint32_t word;
    memcpy(&word, &value, sizeof(word));
    const uint32_t rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;  // would round a NaN up to infinity
    bits = static_cast<uint16_t>((word & 0x7FFFFFFFu) > 0x7F800000u ? ((word >> 16) | 0x40u) : rounded);
#endif
  }
  SF_HOST_DEVICE SF_INLINE operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, sizeof(value));
    return value;
  }
};

// float16 storage; arithmetic happens in float.
#if defined(__CUDACC__)
struct float16 {
  __half bits;

  float16() = default;
  SF_HOST_DEVICE SF_INLINE explicit float16(float value) : bits(__float2half_rn(value)) {}
  SF_HOST_DEVICE SF_INLINE operator float() const { return __half2float(bits); }
};
#elif defined(__FLT16_MAX__)
struct float16 {
  _Float16 bits;

  float16() = default;
  SF_INLINE explicit float16(float value) : bits(static_cast<_Float16>(value)) {}
  SF_INLINE operator float() const { return static_cast<float>(bits); }
};
#else  // a compiler without _Float16 (GCC before 12): float16 is written, never read
struct float16 {
  uint16_t bits;

  float16() = default;
  SF_HOST_DEVICE SF_INLINE explicit float16(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof(word));
    const uint32_t sign = (word >> 16) & 0x8000u, magnitude = word & 0x7FFFFFFFu;
    // Normal numbers: the exponent's bias goes from 127 to 15, and 13 bits are rounded off to nearest even.
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14: adding 0.5 makes the processor round at the last bit of a subnormal half.
    float shifted;
    memcpy(&shifted, &magnitude, sizeof(shifted));
    shifted += 0.5f;
    uint32_t subnormal;
    memcpy(&subnormal, &shifted, sizeof(subnormal));
    const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal - 0x3F000000u : normal;
    bits = static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
  }
};
#endif

// The type that sums of T are kept in.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
      return "uint8";
    case DType::kInt64:
      return "int64";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
  }
  return "unknown";
}

inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
      return 1;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

template <typename T>
struct TypeTag {
  using type = T;
};

// dispatch_floating(dtype, "op", [&](auto tag) { using T = typename decltype(tag)::type; ... });
template <typename Function>
void dispatch_floating(DType dtype, const char* op, const Function& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function(TypeTag<float>{});
    case DType::kFloat64:
      return function(TypeTag<double>{});
    case DType::kBFloat16:
      return function(TypeTag<bfloat16>{});
    default:
      SF_CHECK(false, op, ": the CPU kernels take float32, float64 or bfloat16, got ", name_of(dtype));
  }
}

#if defined(__CUDACC__) || defined(SF_CUDA_ON_CPU)
// The same for the CUDA kernels, which take float16 as well.
template <typename Function>
void dispatch_floating_cuda(DType dtype, const char* op, const Function& function) {
  if (dtype == DType::kFloat16) return function(TypeTag<float16>{});
  dispatch_floating(dtype, op, function);
}
#endif

}  // namespace slowfast
