// The compiled module: the list of what it holds.
#include "bindings.h"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  using namespace megalodon;
  module.doc() = "Kernels of megalodon_core. Use megalodon_core.ops; this module is its engine room.";
  pybind11::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyErr_SetString(error.kind() == Error::Kind::type ? PyExc_TypeError : PyExc_ValueError, error.what());
    }
  });
  bindings::register_frontend(module);
  bindings::register_runtime(module);
  bindings::register_cema(module);
  bindings::register_timestep_norm(module);
  bindings::register_chunk_attention(module);
  bindings::register_few_row_linear(module);
  bindings::register_residual(module);
}
