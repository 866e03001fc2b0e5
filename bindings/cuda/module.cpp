// The compiled module of the CUDA backend: the operators of _core over other kernels.
#include <pybind11/stl.h>

#include "bindings.h"
#include "devices.h"
#include "errors.h"

PYBIND11_MODULE(_cuda, module, pybind11::mod_gil_not_used()) {
  using namespace megalodon;
  module.doc() = "CUDA kernels of megalodon_core. Use megalodon_core.ops; this module is its engine room.";
  bindings::translate_errors();
  pybind11::module_::import("megalodon_core._core");  // has the type Frontend
  module.attr("architectures") = MEGALODON_CUDA_ARCHITECTURES;
  module.def("devices", &cuda::devices,
             "The GPUs that can be used; raises RuntimeError where there are none.");
  module.def("wait", &cuda::wait, pybind11::arg("stream"), pybind11::arg("other"),
             "What is queued on a stream from now on runs after what is queued on the other.");
  bindings::register_cema(module);
  bindings::register_timestep_norm(module);
  bindings::register_chunk_attention(module);
  bindings::register_residual(module);
}
