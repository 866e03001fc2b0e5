// How arrays cross the boundary between Python and the core.
#pragma once

#include <pybind11/pybind11.h>

#include "dlpack.h"
#include "megalodon/tensor.h"

namespace megalodon::bindings {

namespace py = pybind11;

// What the core knows of an array framework, made by its module in megalodon_core/frontends.
//
// describe(op, argument, array, strided) -> description gives any array of the framework, if need be as a
// copy that is dense in its last axis and, unless `strided`, contiguous; it raises for arrays that have no
// description. A description is the tuple
//     (array, address, dtype, device_type, device_index, writeable, shape, strides in elements)
// whose array owns the memory. allocate(shape, dtype) makes an uninitialized output, as a description or as
// an array of one of `direct_types`. Instances of exactly these types are read without Python where nothing
// is unusual about them; their type offers DLPack's exchange table. allocate_like(array) makes an output of
// the shape and type of one of them, faster than allocate does.
class Frontend {
 public:
  Frontend(py::type array_type, py::function describe, py::function allocate, const py::tuple& direct_types,
           py::object allocate_like);

  // The array as it is, or an undefined Tensor where only describe() can tell. A `fresh` array comes from
  // allocate() and needs no look at what DLPack does not tell.
  Tensor read_directly(py::handle array, bool strided, bool fresh = false) const;
  // An array of the framework by describe(), whose result is appended to `owners`. Throws for other objects.
  Tensor read(const char* op, const char* argument, const char* first_argument, py::handle array,
              bool strided, py::list& owners) const;
  // A new array, and the Python object that the caller is to be given.
  Tensor allocate(const char* op, const char* argument, DType dtype, int rank, const std::int64_t* sizes,
                  py::object& array) const;
  // The same of the shape and type of `like`, which was read directly from `source`: the shorter way.
  Tensor allocate_like(const char* op, const char* argument, const Tensor& like, py::handle source,
                       py::object& array) const;

 private:
  Tensor checked_output(const char* op, const char* argument, DType dtype, int rank,
                        const std::int64_t* sizes, py::object& array) const;
  bool is_plain(py::handle array, const Tensor& tensor) const;

  py::type array_type_;
  py::function describe_;
  py::function allocate_;
  py::tuple direct_types_;
  py::object allocate_like_;
  const dlpack::ExchangeTable* table_ = nullptr;
  py::str is_neg_ = "is_neg", untyped_storage_ = "untyped_storage", data_ptr_ = "data_ptr",
          nbytes_ = "nbytes";
};

}  // namespace megalodon::bindings
