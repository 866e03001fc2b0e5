#include "recording.h"

#include <cstring>
#include <string>
#include <utility>

#include "bindings.h"

namespace megalodon::bindings {
namespace {

thread_local Recording* under_way = nullptr;

struct Copy {
  Tensor source, target;
};

void copy_elements(const Copy& op, int) {
  std::memcpy(op.target.data, op.source.data,
              static_cast<std::size_t>(op.source.numel() * item_size(op.source.dtype)));
}

void copy(const Frontend& frontend, Queue threads, py::handle source, py::handle target) {
  Call call("copy", frontend, threads);
  const Copy op{call.required_input("source", source), call.required_input("target", target)};
  if (op.target.dtype != op.source.dtype || op.target.rank != op.source.rank ||
      op.target.sizes != op.source.sizes) {
    throw Error(Error::Kind::value, call.op(), "target",
                std::string(name(op.source.dtype)) + " of shape " + shape_string(op.source),
                std::string(name(op.target.dtype)) + " of shape " + shape_string(op.target));
  }
  call.output_in_place("target", target, op.target);
  call.run(copy_elements, op, nullptr);
}

}  // namespace

Recording* Recording::current() { return under_way; }

Recording::~Recording() { stop(); }

void Recording::start() {
  if (under_way != nullptr) {
    throw Error(Error::Kind::value, "Recording", "start", "no other recording under way in this thread",
                "one");
  }
  under_way = this;
}

void Recording::stop() {
  if (under_way == this) under_way = nullptr;
}

void Recording::add(Kernel kernel, py::object arrays) {
  kernels_.push_back(std::move(kernel));
  arrays_.append(std::move(arrays));
}

void Recording::replay(int threads) const {
  check_queue("Recording", threads);
  const py::gil_scoped_release release;
  for (const Kernel& kernel : kernels_) kernel(threads);
}

void register_recording(py::module_& module) {
  using namespace py::literals;
  py::class_<Recording>(module, "Recording",
                        "Calls of the core that are run again without Python, on the same memory.")
      .def(py::init<>())
      .def("start", &Recording::start, "Note what this thread calls from now on.")
      .def("stop", &Recording::stop)
      .def("replay", &Recording::replay, py::arg(kQueueName), "Run the calls again, in their order.");
  module.def("is_recording", [] { return Recording::current() != nullptr; });
  module.def("copy", &copy, "frontend"_a, py::arg(kQueueName), "source"_a, "target"_a);
}

}  // namespace megalodon::bindings
