#pragma once
#include "sweep.h"

namespace ssl {

const Isa& current_isa();

template <class T> const Kernels<T>& kernels_of(const Isa& isa);
template <> inline const Kernels<float>& kernels_of<float>(const Isa& isa) { return isa.f32; }
template <> inline const Kernels<double>& kernels_of<double>(const Isa& isa) { return isa.f64; }

}  // namespace ssl
