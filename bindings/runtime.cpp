#include <pybind11/stl.h>

#include <cstdlib>

#include <omp.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "bindings.h"

namespace megalodon::bindings {
namespace {

py::dict build_info() {
  using namespace py::literals;
  return py::dict("version"_a = MEGALODON_VERSION, "compiler"_a = MEGALODON_COMPILER,
                  "openmp"_a = MEGALODON_OPENMP, "build_type"_a = MEGALODON_BUILD_TYPE);
}

// Large blocks come from the heap like small ones, and the heap is not cut back.
bool keep_freed_memory() {
#if defined(__GLIBC__)
  return mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, -1) == 1;
#else
  return false;
#endif
}

}  // namespace

void register_runtime(py::module_& module) {
  module.def("isa", [] { return cpu::kernels().isa; }, "The instruction set in use.");
  module.def("available_isas", &cpu::available_isas, "Instruction sets of this build that this CPU runs.");
  module.def("set_isa", &cpu::set_isa, py::arg("name"), "Use another available instruction set.");
  module.def("last_isa", &cpu::last_isa, "The set that ran this thread's most recent kernel, or ''.");
  module.def("max_threads", [] { return omp_get_max_threads(); }, "OpenMP's default number of threads.");
  module.def("keep_freed_memory", &keep_freed_memory, "Let malloc keep what is freed; whether it can.");
  module.def("build_info", &build_info, "Version, compiler and options of this build.");
  py::dict dtypes;
  for (int i = 0; i < kDTypeCount; ++i) dtypes[name(static_cast<DType>(i))] = i;
  module.attr("dtypes") = dtypes;
  module.attr("max_rank") = kMaxRank;
  module.attr("thread_limit") = kMaxThreads;
}

}  // namespace megalodon::bindings
