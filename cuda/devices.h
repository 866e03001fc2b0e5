// The GPUs of this machine.
#pragma once

#include <string>
#include <vector>

namespace megalodon::cuda {

// "NVIDIA H100 80GB HBM3 (sm_90)" for each. Throws std::runtime_error with the driver's reason where none can
// be used: no driver, too old a driver, no GPU.
std::vector<std::string> devices();

}  // namespace megalodon::cuda
