// The GPUs of this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace megalodon::cuda {

// "NVIDIA H100 80GB HBM3 (sm_90)" for each. Throws std::runtime_error with the driver's reason where none can
// be used: no driver, too old a driver, no GPU.
std::vector<std::string> devices();

// What is queued on a stream from now on runs after what is queued on the other by now; both are
// cudaStream_t, as integers. Throws std::runtime_error.
void wait(std::uintptr_t stream, std::uintptr_t other);

}  // namespace megalodon::cuda
