// Whether an eager call of a framework's arrays goes straight to the core. It is asked at every call, and in
// Python took longer than a small kernel.
#include "bindings.h"

namespace megalodon::bindings {
namespace {

bool is_true(py::handle object) {
  const int truth = PyObject_IsTrue(object.ptr());
  if (truth < 0) throw py::error_already_set();
  return truth == 1;
}

long as_long(py::handle object) {
  const long value = PyLong_AsLong(object.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

// Arrays of exactly `plain_types` on a device that has kernels, in a call that nothing observes.
class Gate {
 public:
  // observers() give something true where somebody observes; modes() gives how many observing modes are in
  // force, a recording being one; a tangent level of 0 or more, an attribute of `forward_ad`, stands for
  // forward-mode differentiation. records_gradients() tells whether calls are recorded for a backward pass.
  Gate(py::tuple plain_types, py::tuple observers, py::function modes, py::object forward_ad,
       py::function records_gradients, bool has_cuda)
      : plain_types_(std::move(plain_types)),
        observers_(std::move(observers)),
        modes_(std::move(modes)),
        forward_ad_(std::move(forward_ad)),
        records_gradients_(std::move(records_gradients)),
        has_cuda_(has_cuda) {}

  bool is_observed() const {
    const bool recording = Recording::current() != nullptr;
    if (as_long(modes_()) > static_cast<long>(recording)) return true;
    for (const py::handle observer : observers_) {
      if (is_true(observer())) return true;
    }
    return as_long(py::getattr(forward_ad_, level_, unknown_)) >= 0;
  }

  // The first array, which is not None, stands for the place of all.
  bool lets_through(const py::tuple& arrays) const {
    for (const py::handle array : arrays) {
      if (!array.is_none() && !is_plain(array)) return false;
    }
    const py::handle first = arrays[0];
    const bool on_gpu = has_cuda_ && Recording::current() == nullptr;
    const bool here =
        is_true(py::getattr(first, is_cpu_)) || (on_gpu && is_true(py::getattr(first, is_cuda_)));
    return here && !is_observed();
  }

  bool wants_gradients(const py::tuple& arrays) const {
    if (!is_true(records_gradients_())) return false;
    for (const py::handle array : arrays) {
      if (!array.is_none() && is_true(py::getattr(array, requires_grad_))) return true;
    }
    return false;
  }

 private:
  bool is_plain(py::handle array) const {
    for (const py::handle type : plain_types_) {
      if (type.ptr() == py::type::handle_of(array).ptr()) return true;
    }
    return false;
  }

  py::tuple plain_types_, observers_;
  py::function modes_;
  py::object forward_ad_;
  py::function records_gradients_;
  bool has_cuda_;
  py::int_ unknown_ = 0;
  py::str level_ = "_current_level", is_cpu_ = "is_cpu", is_cuda_ = "is_cuda",
          requires_grad_ = "requires_grad";
};

}  // namespace

void register_gate(py::module_& module) {
  using namespace py::literals;
  py::class_<Gate>(module, "Gate", "Whether an eager call of a framework's arrays goes straight to the core.")
      .def(py::init<py::tuple, py::tuple, py::function, py::object, py::function, bool>(), "plain_types"_a,
           "observers"_a, "modes"_a, "forward_ad"_a, "records_gradients"_a, "has_cuda"_a)
      .def("is_observed", &Gate::is_observed,
           "Whether something must see calls as the framework's operators.")
      .def("lets_through", &Gate::lets_through, "arrays"_a,
           "Whether the core can be called on the arrays as it is; the first is not None.")
      .def("wants_gradients", &Gate::wants_gradients, "arrays"_a,
           "Whether the call is to be recorded for backward.");
}

}  // namespace megalodon::bindings
