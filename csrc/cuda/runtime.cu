// What the machine has of CUDA.
#include "api.h"
#include "device.h"

namespace ssl::cuda {

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == 0 ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == 0 ? version : 0;
}

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace ssl::cuda
