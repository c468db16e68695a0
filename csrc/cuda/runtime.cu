// What the machine has of CUDA.
#include "api.h"
#include "device.h"

namespace ssl::cuda {
namespace {

__global__ void nothing() {}

}  // namespace

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == 0 ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == 0 ? version : 0;
}

int runs_here() {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&nothing));
  cudaGetLastError();  // whatever it was is not to be found by others
  return code;
}

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace ssl::cuda
