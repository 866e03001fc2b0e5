#include "devices.h"

#include <stdexcept>

namespace megalodon::cuda {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

}  // namespace

std::vector<std::string> devices() {
  int driver = 0;  // the newest CUDA that it runs
  check(cudaDriverGetVersion(&driver));
  if (driver == 0) throw std::runtime_error("there is no NVIDIA driver");
  int count = 0;
  check(cudaGetDeviceCount(&count));
  std::vector<std::string> names;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device));
    names.push_back(std::string(properties.name) + " (sm_" +
                    std::to_string(10 * properties.major + properties.minor) + ")");
  }
  return names;
}

void wait(std::uintptr_t stream, std::uintptr_t other) {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  const cudaError_t recorded = cudaEventRecord(event, reinterpret_cast<cudaStream_t>(other));
  const cudaError_t waiting = cudaStreamWaitEvent(reinterpret_cast<cudaStream_t>(stream), event, 0);
  check(cudaEventDestroy(event));  // its resources are freed when it has occurred
  check(recorded);
  check(waiting);
}

}  // namespace megalodon::cuda
