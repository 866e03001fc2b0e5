// A non-owning view of an array that belongs to the caller's framework.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "megalodon/dtype.h"

namespace megalodon {

enum class DeviceType : std::int32_t { cpu = 1, cuda = 2 };  // numbered as in DLPack

struct Device {
  DeviceType type = DeviceType::cpu;
  std::int32_t index = 0;

  bool operator==(const Device&) const = default;
};

inline constexpr int kMaxRank = 8;

// Sizes and strides are in elements. A default-constructed Tensor stands for an argument that was not given.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::float32;
  Device device;
  int rank = -1;
  bool writeable = false;
  std::array<std::int64_t, kMaxRank> sizes{};
  std::array<std::int64_t, kMaxRank> strides{};

  bool defined() const { return rank >= 0; }
  std::int64_t size(int axis) const { return sizes[static_cast<std::size_t>(axis < 0 ? axis + rank : axis)]; }
  std::int64_t stride(int axis) const {
    return strides[static_cast<std::size_t>(axis < 0 ? axis + rank : axis)];
  }
  std::int64_t numel() const;
  bool is_contiguous() const;
  bool is_aligned() const;  // to its own elements

  // Gives axes of one element, whose strides mean nothing, those of a dense array.
  void normalize_strides();

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

std::string shape_string(const Tensor& tensor);
std::string device_string(Device device);

}  // namespace megalodon
