// The one place that knows which compiler is reading: portability macros shared by every kernel.
#pragma once

#if defined(__CUDACC__)
#define SF_HOST_DEVICE __host__ __device__
#else
#define SF_HOST_DEVICE
#endif

#if defined(_MSC_VER)
#define SF_RESTRICT __restrict
#define SF_INLINE __forceinline
#define SF_INLINE_LAMBDA
#else
#define SF_RESTRICT __restrict__
#define SF_INLINE inline __attribute__((always_inline))
// Between a lambda's parameters and its body: [&](int i) SF_INLINE_LAMBDA { ... }
#define SF_INLINE_LAMBDA __attribute__((always_inline))
#endif

// SF_MULTIVERSION void f(...): compiled for several x86-64 levels, the best one for this processor is taken when the
// library is loaded. It works on plain functions only, so a kernel is a template marked SF_INLINE (inlined into each
// version) behind one SF_MULTIVERSION function per dtype. Elsewhere (arm64, other compilers) it is an ordinary
// function.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(__CUDACC__) && !defined(SF_NO_MULTIVERSION)
#define SF_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SF_MULTIVERSION
#endif
