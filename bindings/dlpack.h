// The part of DLPack's C interface (1.3) that reads an array: from its Python object in tens of nanoseconds
// by the table that a type offers as `__dlpack_c_exchange_api__`, or from the capsule that `__dlpack__`
// gives. Layouts as in the DLPack specification.
#pragma once

#include <cstdint>
#include <optional>

#include "megalodon/tensor.h"

namespace megalodon::bindings::dlpack {

struct Device {
  std::int32_t type;
  std::int32_t index;
};

enum TypeCode : std::uint8_t { kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6 };

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Array {
  void* data;
  Device device;
  std::int32_t rank;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

// Nothing for a type that no operator has.
std::optional<DType> dtype_of(DataType type);

inline constexpr std::uint32_t kMajorVersion = 1;

struct ExchangeTable {
  std::uint32_t major;
  std::uint32_t minor;
  ExchangeTable* previous;
  void* allocate;
  void* own;
  void* to_python;
  // Describes a Python object that stays the owner; 0, or -1 with a Python exception set. May be null.
  int (*view)(void* object, Array* array);
  void* stream;
};

}  // namespace megalodon::bindings::dlpack
