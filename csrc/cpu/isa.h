// Which instruction set runs.
#pragma once
#include <vector>
#include "sweep.h"

namespace ssl {

const Isa& current_isa();

// The instruction sets built in and runnable here, best first; and the one in use.
std::vector<const char*> isas();
const char* isa();
void use_isa(const char* name);  // throws std::invalid_argument

template <class T> const Kernels<T>& kernels_of(const Isa& isa);
template <> inline const Kernels<float>& kernels_of<float>(const Isa& isa) { return isa.f32; }
template <> inline const Kernels<double>& kernels_of<double>(const Isa& isa) { return isa.f64; }

}  // namespace ssl
