// The core's errors as Python's.
#pragma once

#include <pybind11/pybind11.h>

#include "megalodon/error.h"

namespace megalodon::bindings {

inline void translate_errors() {
  pybind11::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyErr_SetString(error.kind() == Error::Kind::type ? PyExc_TypeError : PyExc_ValueError, error.what());
    }
  });
}

}  // namespace megalodon::bindings
