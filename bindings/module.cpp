// The compiled module: the list of what it holds.
#include "bindings.h"
#include "errors.h"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  using namespace megalodon;
  module.doc() = "Kernels of megalodon_core. Use megalodon_core.ops; this module is its engine room.";
  bindings::translate_errors();
  bindings::register_frontend(module);
  bindings::register_dlpack(module);
  bindings::register_runtime(module);
  bindings::register_cema(module);
  bindings::register_timestep_norm(module);
  bindings::register_chunk_attention(module);
  bindings::register_few_row_linear(module);
  bindings::register_residual(module);
  bindings::register_silu(module);
  bindings::register_recording(module);
  bindings::register_gate(module);
}
