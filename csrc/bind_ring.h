// Queues of rows.
#pragma once
#include "bind.h"
#include "cpu/ring.h"

namespace ssl {

inline void bind_ring(py::module_& m) {
  m.def(
      "enqueue",
      [](Address queue, int64_t size, int64_t queue_stride, int queue_dtype, Address rows, int64_t count,
         int64_t rows_stride, int rows_dtype, int64_t width, Address at, bool normalize, bool wrap, int threads) {
        py::gil_scoped_release release;
        enqueue({pointer<void>(queue), size, queue_stride, DType(queue_dtype), pointer<void>(rows), count, rows_stride,
                 DType(rows_dtype), width, pointer<int64_t>(at), normalize, wrap, threads});
      },
      "writes a batch into a ring and advances its pointer");
}

}  // namespace ssl
