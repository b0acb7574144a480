// The matrix product of packed blocks: a tile of C stays in registers while A's elements are broadcast against B's
// vectors. Written with the compilers' vector extension, once, and instantiated per instruction set.

#include <algorithm>

#include "slowfast/block_product.h"
#include "slowfast/macros.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(SF_NO_MULTIVERSION)
#define SF_X86_LEVELS 1
#endif

namespace slowfast {
namespace {

#if defined(__GNUC__)
template <typename T, int kBytes>
struct Vector {
  typedef T type __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  static constexpr int kLanes = kBytes / sizeof(T);
};
#else
// Without the extension a vector is one element, and the compiler is left to vectorise what it can.
template <typename T, int>
struct Vector {
  using type = T;
  static constexpr int kLanes = 1;
};
#endif

// kRows x kPanels vectors of C, over all segments.
template <typename T, int kBytes, int kRows, int kPanels, bool kRowMajor>
SF_INLINE void tile(const BlockProduct<T>& p, int64_t row, int64_t panel) {
  using V = typename Vector<T, kBytes>::type;
  constexpr int kLanes = Vector<T, kBytes>::kLanes;
  V sum[kRows][kPanels] = {};
  const int64_t depth = p.depth, a_stride = p.a_stride, b_stride = p.b_stride, b_panel = p.b_panel;
  for (int64_t s = 0; s < p.segments; ++s) {
    const T* SF_RESTRICT a = p.a + s * p.a_segment + row * (kRowMajor ? a_stride : 1);
    const T* SF_RESTRICT b = p.b + s * p.b_segment + panel * b_panel;
    for (int64_t k = 0; k < depth; ++k, b += b_stride) {
      V column[kPanels];
      for (int j = 0; j < kPanels; ++j) column[j] = *reinterpret_cast<const V*>(b + j * b_panel);
      for (int i = 0; i < kRows; ++i) {
        const T value = kRowMajor ? a[i * a_stride + k] : a[k * a_stride + i];
        for (int j = 0; j < kPanels; ++j) sum[i][j] += value * column[j];
      }
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kPanels; ++j) {
      V* c = reinterpret_cast<V*>(p.c + (row + i) * p.c_stride + (panel + j) * kLanes);
      *c = p.accumulate ? *c + sum[i][j] : sum[i][j];
    }
}

// Panels go three at a time; what is left over is a pair, or two pairs (4 = 2 + 2), or a single one.
struct PanelGroup {
  int64_t first, count;

  PanelGroup(int64_t panels, int64_t group) : first(3 * group), count(std::min<int64_t>(3, panels - first)) {
    if (panels % 3 != 1 || panels == 1) return;
    if (panels - first == 4) count = 2;
    if (panels - first == 1) first -= 1, count = 2;
  }
};

// The smaller of A and B is gone through in the inner loop, so that it is the one which stays in the cache.
template <typename T, int kBytes, int kRows, bool kRowMajor>
SF_INLINE void all_tiles(const BlockProduct<T>& p) {
  const int64_t groups = (p.panels + 2) / 3, row_tiles = (p.rows + kRows - 1) / kRows;
  const bool rows_outside = p.rows > p.panels * Vector<T, kBytes>::kLanes;
  for (int64_t i = 0; i < groups * row_tiles; ++i) {
    const PanelGroup group(p.panels, rows_outside ? i % groups : i / row_tiles);
    const int64_t row = (rows_outside ? i / groups : i % row_tiles) * kRows;
    if (group.count == 3)
      tile<T, kBytes, kRows, 3, kRowMajor>(p, row, group.first);
    else if (group.count == 2)
      tile<T, kBytes, kRows, 2, kRowMajor>(p, row, group.first);
    else
      tile<T, kBytes, kRows, 1, kRowMajor>(p, row, group.first);
  }
}

template <typename T, int kBytes, int kRows>
SF_INLINE void product(const BlockProduct<T>& p) {
  static_assert(kRowTile % kRows == 0 && Vector<T, kBytes>::kLanes <= kMaxLanes);
  if (p.a_row_major)
    all_tiles<T, kBytes, kRows, true>(p);
  else
    all_tiles<T, kBytes, kRows, false>(p);
}

// Tiles that fill the registers: 32 of 64 bytes (AVX-512), 16 of 32 bytes (AVX2), and 16 (SSE2) or 32 (NEON) of 16.
template <typename T>
void product_base(const BlockProduct<T>& p) {
  product<T, 16, 4>(p);
}

#if defined(SF_X86_LEVELS)
template <typename T>
__attribute__((target("avx2,fma"))) void product_avx2(const BlockProduct<T>& p) {
  product<T, 32, 4>(p);
}

template <typename T>
__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))) void product_avx512(const BlockProduct<T>& p) {
  product<T, 64, 8>(p);
}
#endif

template <typename T>
BlockProductKernel<T> choose() {
#if defined(SF_X86_LEVELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    return {"avx512", 64 / sizeof(T), product_avx512<T>};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", 32 / sizeof(T), product_avx2<T>};
#endif
  return {"base", Vector<T, 16>::kLanes, product_base<T>};
}

}  // namespace

template <typename T>
const BlockProductKernel<T>& block_product_kernel() {
  static const BlockProductKernel<T> kernel = choose<T>();
  return kernel;
}

template const BlockProductKernel<float>& block_product_kernel<float>();
template const BlockProductKernel<double>& block_product_kernel<double>();

}  // namespace slowfast
