// One call of an operator: where its kernels are queued and the workspace they share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "common/device.cuh"
#include "kernels.h"
#include "megalodon/tensor.h"

namespace megalodon::cuda {

struct Blocks {
  std::int64_t x = 1;  // at most 2^31 - 1
  std::int64_t y = 1;  // at most 65535
};

constexpr std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// Of shared memory for `count` elements, as SharedMemory hands it out.
template <class T>
constexpr std::int64_t shared_size(std::int64_t count) {
  return divide_up(count * static_cast<std::int64_t>(sizeof(T)), 16) * 16;
}

// An operator is one function of its descriptor and a Run. It runs twice: dry, when it only adds up its
// workspace, and for real. So the size and the use of the workspace are stated once.
class Run {
 public:
  Run() : dry_(true) {}
  Run(Stream stream, Workspace workspace) : stream_(stream), given_(workspace) {}

  std::int64_t workspace_bytes() const { return used_; }

  // Uninitialized; every kernel of the call sees it.
  template <class T>
  Global<T> workspace(std::int64_t count) {
    // A dry run has addresses too, so that what is present in a run is present in both.
    char* start = dry_ ? reinterpret_cast<char*>(kAlignment) : static_cast<char*>(given_.data);
    T* part = reinterpret_cast<T*>(start + used_);
    used_ += divide_up(count * static_cast<std::int64_t>(sizeof(T)), kAlignment) * kAlignment;
    if (!dry_ && used_ > given_.bytes) throw LaunchError("the workspace is smaller than workspace_bytes");
    return span(part, 0, count, "workspace");
  }

  // Queues a kernel of `threads` per block, a multiple of 32.
  template <class... P, class... A>
  void launch(void (*kernel)(P...), Blocks blocks, int threads, std::int64_t shared_bytes, const A&... args) {
    if (!dry_) queue(kernel, blocks, threads, shared_bytes, args...);
  }

  template <class T>
  static Global<T> span(T* data, std::int64_t low, std::int64_t high, const char* memory) {
#if defined(__CUDACC__)
    static_cast<void>(low), static_cast<void>(high), static_cast<void>(memory);
    return data;
#else
    return {data, low, high, memory};
#endif
  }

 private:
  static constexpr std::int64_t kAlignment = 256;

#if defined(__CUDACC__)
  template <class... P, class... A>
  void queue(void (*kernel)(P...), Blocks blocks, int threads, std::int64_t shared_bytes, const A&... args) {
    constexpr std::int64_t unasked = 48 * 1024;  // more has to be asked for
    if (shared_bytes > unasked) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
    }
    const dim3 grid(static_cast<unsigned>(blocks.x), static_cast<unsigned>(blocks.y));
    kernel<<<grid, static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes),
             static_cast<cudaStream_t>(stream_)>>>(args...);
    check(cudaGetLastError());
  }

  static void check(cudaError_t status) {
    if (status != cudaSuccess) throw LaunchError(cudaGetErrorString(status));
  }
#else
  template <class... P, class... A>
  void queue(void (*kernel)(P...), Blocks blocks, int threads, std::int64_t shared_bytes, const A&... args) {
    simt::launch({blocks.x, blocks.y}, threads, shared_bytes, [&] { kernel(args...); });
  }
#endif

  Stream stream_ = nullptr;
  Workspace given_;
  std::int64_t used_ = 0;
  bool dry_ = false;
};

// The elements of a tensor, null where it is absent.
template <class T>
Global<T> elements(const Tensor& tensor, const char* memory) {
  if (!tensor.defined()) return {};
  std::int64_t low = 0, high = tensor.numel() > 0 ? 1 : 0;
  for (int axis = 0; high > 0 && axis < tensor.rank; ++axis) {
    const std::int64_t reach = (tensor.size(axis) - 1) * tensor.stride(axis);
    (reach < 0 ? low : high) += reach;
  }
  return Run::span(tensor.as<T>(), low, high, memory);
}

}  // namespace megalodon::cuda
