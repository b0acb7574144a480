// Lanes: 64 bytes of values that the compiler keeps in vector registers, of whatever width the instruction set has.
// Loops over plain arrays of this size are left to luck: once unrolled, the compiler may vectorise the wrong loop.
#pragma once

#include <cstdint>
#include <cstring>

#include "slowfast/dtype.h"

namespace slowfast {

template <typename A>
struct Lanes {
  static constexpr int kCount = 64 / sizeof(A);
  typedef A Half __attribute__((vector_size(32)));
  typedef decltype(Half() < Half()) Integers;  // as many, as wide; what a comparison gives

  Half low, high;

  SF_INLINE Lanes() : low{}, high{} {}
  SF_INLINE explicit Lanes(const A* from) {
    memcpy(&low, from, 32);
    memcpy(&high, from + kCount / 2, 32);
  }
  SF_INLINE explicit Lanes(const bfloat16* from) {
    static_assert(sizeof(A) == 4, "bfloat16 is summed in float");
    widen(from, low);
    widen(from + kCount / 2, high);
  }
  SF_INLINE void add(A factor, const Lanes& other) {
    low += factor * other.low;
    high += factor * other.high;
  }
  SF_INLINE void store(A* to) const {
    memcpy(to, &low, 32);
    memcpy(to + kCount / 2, &high, 32);
  }
  SF_INLINE void store(bfloat16* to) const {
    narrow(low, to);
    narrow(high, to + kCount / 2);
  }

 private:
  typedef uint16_t Words __attribute__((vector_size(16)));
  typedef uint32_t DoubleWords __attribute__((vector_size(32)));

  static SF_INLINE void widen(const bfloat16* from, Half& to) {
    Words words;
    memcpy(&words, from, 16);
    const DoubleWords bits = __builtin_convertvector(words, DoubleWords) << 16;
    memcpy(&to, &bits, 32);
  }
  // As bfloat16(float): to nearest even, and a NaN stays one.
  static SF_INLINE void narrow(const Half& from, bfloat16* to) {
    DoubleWords bits;
    memcpy(&bits, &from, 32);
    const DoubleWords rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const DoubleWords result = (bits & 0x7FFFFFFFu) > 0x7F800000u ? ((bits >> 16) | 0x40u) : rounded;
    const Words words = __builtin_convertvector(result, Words);
    memcpy(to, &words, 16);
  }
};

}  // namespace slowfast
