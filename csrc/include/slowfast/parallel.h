// parallel_for: the only threading in the CPU kernels. The thread count comes from torch (torch.get_num_threads()),
// so a DataLoader worker with one thread stays on one. Work is split into `threads` fixed, contiguous ranges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace slowfast {

// function(begin, end) over [0, count), each range at least `grain` long. What a range computes must not depend on the
// split: results then have the same bits for any number of threads.
template <typename Function>
void parallel_for(int64_t count, int64_t grain, int threads, const Function& function) {
  if (count <= 0) return;
  const int64_t most = (count + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  const int used = static_cast<int>(std::min<int64_t>(std::max(threads, 1), most));
#if defined(_OPENMP)
  if (used > 1 && !omp_in_parallel()) {
    std::exception_ptr error = nullptr;
#pragma omp parallel num_threads(used)
    {
      const int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
      const int64_t begin = count * rank / team, end = count * (rank + 1) / team;
      try {
        if (begin < end) function(begin, end);
      } catch (...) {
#pragma omp critical
        error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  function(static_cast<int64_t>(0), count);
}

}  // namespace slowfast
