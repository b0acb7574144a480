// Arena: hands out pieces of a workspace.
#pragma once

#include <cstdint>

namespace slowfast {

// With no memory behind it, it only counts.
struct Arena {
  char* memory = nullptr;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    T* piece = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
};

}  // namespace slowfast
