// The Python module: one translation unit, since pybind11's headers take a compiler ten seconds.
#include "bind_across.h"
#include "bind_aligned.h"
#include "bind_averaging.h"
#include "bind_distances.h"
#include "bind_ring.h"
#include "bind_views.h"
#include "bind_within.h"
#include "cpu/fresh_pages.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "ssl_kernels: compiled kernels, called through ssl_kernels.backends";
  ssl::bind_aligned(m);
  ssl::bind_averaging(m);
  ssl::bind_distances(m);
  ssl::bind_ring(m);
  ssl::bind_views(m);
  ssl::bind_within(m);
  ssl::bind_across(m);

  m.def("isas", &ssl::isas, "instruction sets built in and runnable here, best first");
  m.def("isa", &ssl::isa, "the instruction set in use");
  m.def("use_isa", [](const std::string& name) { ssl::use_isa(name.c_str()); }, "run another of isas()");
  m.def(
      "ask_for_pages",
      [](ssl::Address data, int64_t bytes, int threads) {
        py::gil_scoped_release release;
        ssl::for_ranges(threads, bytes, [&](int64_t begin, int64_t end) {
          ssl::ask_for_pages(ssl::pointer<char>(data) + begin, end - begin);
        });
      },
      "before all of a tensor is written that may be new");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
