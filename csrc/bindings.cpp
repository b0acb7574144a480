// The only file that knows Python: it turns (pointer, dtype, sizes, strides) tuples into TensorViews and calls the
// kernels with the GIL released. No arithmetic here; checks for the user are in slowfast_ops/<op>/api.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "slowfast/check.h"
#include "slowfast/gather_frames.h"
#include "slowfast/lateral_conv_concat.h"
#include "slowfast/roi_align_3d.h"
#include "slowfast/temporal_gather.h"
#if defined(SLOWFAST_WITH_CUDA)
#include "slowfast/smoke.h"
#endif

#ifndef SLOWFAST_BUILD_INFO
#define SLOWFAST_BUILD_INFO "{}"
#endif

namespace py = pybind11;

namespace pybind11::detail {

// None -> a view that is not given(); else (data_ptr, dtype, sizes, strides), as slowfast_ops/_native.py makes it.
template <>
struct type_caster<slowfast::TensorView> {
  PYBIND11_TYPE_CASTER(slowfast::TensorView, const_name("TensorView"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 4) return false;
    const auto tuple = reinterpret_borrow<pybind11::tuple>(source);
    value.data = reinterpret_cast<void*>(tuple[0].cast<uintptr_t>());
    value.dtype = static_cast<slowfast::DType>(tuple[1].cast<int>());
    const auto sizes = tuple[2].cast<pybind11::tuple>(), strides = tuple[3].cast<pybind11::tuple>();
    value.ndim = static_cast<int>(sizes.size());
    if (value.ndim > slowfast::kMaxDims || strides.size() != sizes.size()) return false;
    for (int i = 0; i < value.ndim; ++i) {
      value.sizes[i] = sizes[i].cast<int64_t>();
      value.strides[i] = strides[i].cast<int64_t>();
    }
    return true;
  }
};

}  // namespace pybind11::detail

namespace {

using slowfast::TensorView;
using Released = py::call_guard<py::gil_scoped_release>;

// A clip's colour is what slowfast::YuvColour has, its geometry is (resized height, resized width, top, left).
std::vector<slowfast::GatherFramesClip> gather_frames_clips(const std::vector<TensorView>& frames,
                                                            const std::vector<TensorView>& chroma,
                                                            const std::vector<std::array<int16_t, 6>>& colour,
                                                            const std::vector<std::array<int64_t, 4>>& geometry,
                                                            const std::vector<bool>& flip, const TensorView& fast) {
  SF_CHECK(frames.size() == geometry.size() && frames.size() == flip.size() &&
               static_cast<int64_t>(frames.size()) == fast.size(0),
           "gather_frames: one geometry and one flip for each clip");
  SF_CHECK(chroma.size() == colour.size() && (chroma.empty() || chroma.size() == frames.size()),
           "gather_frames: chroma and colour for each clip, or for none");
  std::vector<slowfast::GatherFramesClip> clips;
  for (size_t n = 0; n < frames.size(); ++n) {
    const auto& g = geometry[n];
    const auto colours = chroma.empty() ? std::array<int16_t, 6>{} : colour[n];
    clips.push_back({frames[n],
                     chroma.empty() ? TensorView{} : chroma[n],
                     {colours[0], colours[1], colours[2], colours[3], colours[4], colours[5]},
                     g[0],
                     g[1],
                     g[2],
                     g[3],
                     flip[n]});
  }
  return clips;
}

void bind_gather_frames(py::module_& m) {
  using Doubles = std::array<double, 3>;
  using Colours = std::vector<std::array<int16_t, 6>>;
  using Windows = std::vector<std::array<int64_t, 4>>;
  m.def(
      "gather_frames_cpu",
      [](const std::vector<TensorView>& frames, const std::vector<TensorView>& chroma, const Colours& colour,
         const Windows& geometry, const std::vector<bool>& flip, TensorView indices, TensorView slow, TensorView fast,
         bool linspace, Doubles mean, Doubles std, bool antialias, TensorView firsts, TensorView weights,
         TensorView rows, TensorView rgb) {
        const auto clips = gather_frames_clips(frames, chroma, colour, geometry, flip, fast);
        slowfast::gather_frames_cpu({clips.data(),
                                     indices,
                                     slow,
                                     fast,
                                     linspace,
                                     {mean[0], mean[1], mean[2]},
                                     {std[0], std[1], std[2]},
                                     antialias,
                                     firsts,
                                     weights,
                                     rows,
                                     rgb});
      },
      Released());
#if defined(SLOWFAST_WITH_CUDA)
  m.def(
      "gather_frames_cuda",
      [](const std::vector<TensorView>& frames, const std::vector<TensorView>& chroma, const Colours& colour,
         const Windows& geometry, const std::vector<bool>& flip, TensorView indices, TensorView slow, TensorView fast,
         bool linspace, Doubles mean, Doubles std, bool antialias, int device, uintptr_t stream) {
        const auto clips = gather_frames_clips(frames, chroma, colour, geometry, flip, fast);
        slowfast::gather_frames_cuda({clips.data(),
                                      indices,
                                      slow,
                                      fast,
                                      linspace,
                                      {mean[0], mean[1], mean[2]},
                                      {std[0], std[1], std[2]},
                                      antialias,
                                      {},
                                      {},
                                      {},
                                      {}},
                                     device, reinterpret_cast<void*>(stream));
      },
      Released());
#endif
}

// (bins, spatial_scale, temporal_scale, sampling_ratio, aligned, pool), as slowfast_ops/roi_align_3d/native.py makes
// it.
slowfast::RoIAlign3DOptions roi_align_3d_options(const py::tuple& o) {
  const auto bins = o[0].cast<py::tuple>();
  return {{bins[0].cast<int64_t>(), bins[1].cast<int64_t>(), bins[2].cast<int64_t>()},
          o[1].cast<double>(),
          o[2].cast<double>(),
          o[3].cast<int64_t>(),
          o[4].cast<bool>(),
          o[5].cast<bool>()};
}

void bind_roi_align_3d(py::module_& m) {
  m.def("roi_align_3d_workspace_bytes_cpu",
        [](TensorView features, TensorView rois, const py::tuple& options, int num_threads) {
          return slowfast::roi_align_3d_workspace_bytes_cpu({features, rois, {}, {}, {}, roi_align_3d_options(options)},
                                                            num_threads);
        });
  for (const auto& [name, kernel] : {std::pair{"roi_align_3d_forward_cpu", &slowfast::roi_align_3d_forward_cpu},
                                     std::pair{"roi_align_3d_backward_cpu", &slowfast::roi_align_3d_backward_cpu}})
    m.def(name, [kernel = kernel](TensorView features, TensorView rois, TensorView output, TensorView argmax,
                                  TensorView workspace, const py::tuple& options, int num_threads) {
      const slowfast::RoIAlign3DParams params{features, rois, output, argmax, workspace, roi_align_3d_options(options)};
      const py::gil_scoped_release released;
      kernel(params, num_threads);
    });
#if defined(SLOWFAST_WITH_CUDA)
  m.def("roi_align_3d_workspace_bytes_cuda",
        [](TensorView features, TensorView rois, const py::tuple& options, bool backward) {
          return slowfast::roi_align_3d_workspace_bytes_cuda(
              {features, rois, {}, {}, {}, roi_align_3d_options(options)}, backward);
        });
  for (const auto& [name, kernel] : {std::pair{"roi_align_3d_forward_cuda", &slowfast::roi_align_3d_forward_cuda},
                                     std::pair{"roi_align_3d_backward_cuda", &slowfast::roi_align_3d_backward_cuda}})
    m.def(name, [kernel = kernel](TensorView features, TensorView rois, TensorView output, TensorView argmax,
                                  TensorView workspace, const py::tuple& options, int device, uintptr_t stream) {
      const slowfast::RoIAlign3DParams params{features, rois, output, argmax, workspace, roi_align_3d_options(options)};
      const py::gil_scoped_release released;
      kernel(params, device, reinterpret_cast<void*>(stream));
    });
#endif
}

void bind_temporal_gather(py::module_& m) {
  m.def(
      "temporal_gather_forward_cpu",
      [](TensorView input, TensorView indices, TensorView output, int num_threads) {
        slowfast::temporal_gather_forward_cpu({input, indices, output}, num_threads);
      },
      Released());
  m.def(
      "temporal_gather_backward_cpu",
      [](TensorView grad_output, TensorView indices, TensorView grad_input, int num_threads) {
        slowfast::temporal_gather_backward_cpu({grad_output, indices, grad_input}, num_threads);
      },
      Released());
#if defined(SLOWFAST_WITH_CUDA)
  m.def(
      "temporal_gather_forward_cuda",
      [](TensorView input, TensorView indices, TensorView output, int device, uintptr_t stream) {
        slowfast::temporal_gather_forward_cuda({input, indices, output}, device, reinterpret_cast<void*>(stream));
      },
      Released());
  m.def(
      "temporal_gather_backward_cuda",
      [](TensorView grad_output, TensorView indices, TensorView grad_input, int device, uintptr_t stream) {
        slowfast::temporal_gather_backward_cuda({grad_output, indices, grad_input}, device,
                                                reinterpret_cast<void*>(stream));
      },
      Released());
#endif
}

// The workspace of a kernel: a tensor that Python allocates once the kernel has said how large it must be.
struct Workspace {
  py::object tensor;
  void* data;

  Workspace(const py::function& allocate, int64_t size)
      : tensor(allocate(size)), data(reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>())) {}
};

void bind_lateral_conv_concat(py::module_& m) {
  m.def("lateral_conv_concat_forward_cpu", [](TensorView slow, TensorView fast, TensorView weight, TensorView scale,
                                              TensorView shift, TensorView residual, TensorView output, int64_t alpha,
                                              bool relu, const py::function& allocate, int num_threads) {
    const slowfast::LateralConvConcatParams params{slow, fast, weight, scale, shift, residual, output, alpha, relu};
    const Workspace workspace(allocate, slowfast::lateral_conv_concat_workspace_cpu(params, num_threads));
    py::gil_scoped_release released;
    slowfast::lateral_conv_concat_forward_cpu(params, workspace.data, num_threads);
  });
  m.def("lateral_conv_statistics_cpu",
        [](TensorView fast, TensorView weight, TensorView conv, TensorView mean, TensorView var, int64_t alpha,
           const py::function& allocate, int num_threads) {
          const slowfast::LateralConvStatisticsParams params{fast, weight, conv, mean, var, alpha};
          const Workspace workspace(allocate, slowfast::lateral_conv_statistics_workspace_cpu(params, num_threads));
          py::gil_scoped_release released;
          slowfast::lateral_conv_statistics_cpu(params, workspace.data, num_threads);
        });
  m.def("lateral_conv_backward_cpu",
        [](TensorView grad, TensorView output, TensorView scale, TensorView conv, TensorView mean, TensorView grad_mean,
           TensorView grad_var, TensorView fast, TensorView weight, TensorView grad_fast, TensorView grad_weight,
           TensorView grad_scale, TensorView grad_shift, int64_t alpha, const py::function& allocate, int num_threads) {
          const slowfast::LateralConvBackwardParams params{grad,        output,     scale,      conv,   mean,
                                                           grad_mean,   grad_var,   fast,       weight, grad_fast,
                                                           grad_weight, grad_scale, grad_shift, alpha};
          const Workspace workspace(allocate, slowfast::lateral_conv_backward_workspace_cpu(params, num_threads));
          py::gil_scoped_release released;
          slowfast::lateral_conv_backward_cpu(params, workspace.data, num_threads);
        });
  m.def("lateral_norm_concat_cpu", [](TensorView slow, TensorView conv, TensorView mean, TensorView var,
                                      TensorView gamma, TensorView beta, TensorView residual, TensorView output,
                                      double eps, bool relu, const py::function& allocate, int num_threads) {
    const slowfast::LateralNormConcatParams params{slow, conv, mean, var, gamma, beta, residual, output, eps, relu};
    const Workspace workspace(allocate, slowfast::lateral_norm_workspace_cpu(conv));
    py::gil_scoped_release released;
    slowfast::lateral_norm_concat_cpu(params, workspace.data, num_threads);
  });
  m.def("lateral_norm_backward_cpu",
        [](TensorView grad, TensorView conv, TensorView mean, TensorView var, TensorView gamma, TensorView beta,
           TensorView grad_conv, TensorView grad_mean, TensorView grad_var, TensorView grad_gamma, TensorView grad_beta,
           double eps, bool relu, const py::function& allocate, int num_threads) {
          const slowfast::LateralNormBackwardParams params{
              grad, conv, mean, var, gamma, beta, grad_conv, grad_mean, grad_var, grad_gamma, grad_beta, eps, relu};
          const Workspace workspace(allocate, slowfast::lateral_norm_workspace_cpu(conv));
          py::gil_scoped_release released;
          slowfast::lateral_norm_backward_cpu(params, workspace.data, num_threads);
        });
#if defined(SLOWFAST_WITH_CUDA)
  m.def("lateral_conv_concat_forward_cuda",
        [](TensorView slow, TensorView fast, TensorView weight, TensorView scale, TensorView shift, TensorView residual,
           TensorView output, int64_t alpha, bool relu, int device, uintptr_t stream) {
          const py::gil_scoped_release released;
          slowfast::lateral_conv_concat_forward_cuda({slow, fast, weight, scale, shift, residual, output, alpha, relu},
                                                     device, reinterpret_cast<void*>(stream));
        });
  m.def("lateral_conv_statistics_cuda",
        [](TensorView fast, TensorView weight, TensorView conv, TensorView mean, TensorView var, int64_t alpha,
           const py::function& allocate, int device, uintptr_t stream) {
          const slowfast::LateralConvStatisticsParams params{fast, weight, conv, mean, var, alpha};
          const Workspace workspace(allocate, slowfast::lateral_conv_statistics_workspace_cuda(params));
          const py::gil_scoped_release released;
          slowfast::lateral_conv_statistics_cuda(params, workspace.data, device, reinterpret_cast<void*>(stream));
        });
  m.def("lateral_conv_backward_cuda",
        [](TensorView grad, TensorView output, TensorView scale, TensorView conv, TensorView mean, TensorView grad_mean,
           TensorView grad_var, TensorView fast, TensorView weight, TensorView grad_fast, TensorView grad_weight,
           TensorView grad_scale, TensorView grad_shift, int64_t alpha, const py::function& allocate, int device,
           uintptr_t stream) {
          const slowfast::LateralConvBackwardParams params{grad,        output,     scale,      conv,   mean,
                                                           grad_mean,   grad_var,   fast,       weight, grad_fast,
                                                           grad_weight, grad_scale, grad_shift, alpha};
          const Workspace workspace(allocate, slowfast::lateral_conv_backward_workspace_cuda(params));
          const py::gil_scoped_release released;
          slowfast::lateral_conv_backward_cuda(params, workspace.data, device, reinterpret_cast<void*>(stream));
        });
  m.def("lateral_norm_concat_cuda",
        [](TensorView slow, TensorView conv, TensorView mean, TensorView var, TensorView gamma, TensorView beta,
           TensorView residual, TensorView output, double eps, bool relu, int device, uintptr_t stream) {
          const py::gil_scoped_release released;
          slowfast::lateral_norm_concat_cuda({slow, conv, mean, var, gamma, beta, residual, output, eps, relu}, device,
                                             reinterpret_cast<void*>(stream));
        });
  m.def("lateral_norm_backward_cuda",
        [](TensorView grad, TensorView conv, TensorView mean, TensorView var, TensorView gamma, TensorView beta,
           TensorView grad_conv, TensorView grad_mean, TensorView grad_var, TensorView grad_gamma, TensorView grad_beta,
           double eps, bool relu, const py::function& allocate, int device, uintptr_t stream) {
          const slowfast::LateralNormBackwardParams params{
              grad, conv, mean, var, gamma, beta, grad_conv, grad_mean, grad_var, grad_gamma, grad_beta, eps, relu};
          const Workspace workspace(allocate, slowfast::lateral_norm_backward_workspace_cuda(params));
          const py::gil_scoped_release released;
          slowfast::lateral_norm_backward_cuda(params, workspace.data, device, reinterpret_cast<void*>(stream));
        });
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of slowfast_ops; use the functions of slowfast_ops instead.";
  m.attr("build_info_json") = SLOWFAST_BUILD_INFO;
  bind_gather_frames(m);
  bind_lateral_conv_concat(m);
  bind_roi_align_3d(m);
  bind_temporal_gather(m);
#if defined(SLOWFAST_WITH_CUDA)
  m.def("cuda_device_count", &slowfast::cuda_device_count);
  m.def(
      "smoke_increment_cuda",
      [](TensorView values, int device, uintptr_t stream) {
        slowfast::smoke_increment_cuda(values.data, values.numel(), device, reinterpret_cast<void*>(stream));
      },
      Released());
#endif
}
