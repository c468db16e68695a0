// The element types that come in, by the codes that Python passes.
#pragma once

namespace ssl {

enum class DType : int { f32, f64, bf16, f16 };

}  // namespace ssl
