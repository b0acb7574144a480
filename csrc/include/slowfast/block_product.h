// block_product: the matrix product of small packed blocks that fit a processor's caches, which the convolution's
// forward and backward are made of. One implementation per instruction set; the best is chosen at run time.
#pragma once

#include <cstdint>

namespace slowfast {

// C[row][column] (+)= sum over segments s and depth k of A[s][row][k] * B[s][k][column]
//
//   A[s][row][k]                  a[s * a_segment + row * a_stride + k], or k * a_stride + row if not a_row_major
//   B[s][k][panel * lanes + lane] b[s * b_segment + panel * b_panel + k * b_stride + lane]
//   C[row][column]                c[row * c_stride + column]
//
// Whole tiles are computed: A must be readable, and C writable, up to a multiple of kRowTile rows.
template <typename T>
struct BlockProduct {
  int64_t rows, depth, segments, panels;
  bool a_row_major;
  const T* a;
  int64_t a_stride, a_segment;
  const T* b;
  int64_t b_stride, b_panel, b_segment;
  T* c;
  int64_t c_stride;
  bool accumulate;
};

// Every kernel's number of rows per tile divides it.
constexpr int64_t kRowTile = 8;
constexpr int64_t kMaxLanes = 16;

template <typename T>
struct BlockProductKernel {
  const char* instruction_set;
  int64_t lanes;  // columns of a panel
  void (*run)(const BlockProduct<T>&);
};

// The best kernel for this processor; T is float or double.
template <typename T>
const BlockProductKernel<T>& block_product_kernel();

}  // namespace slowfast
