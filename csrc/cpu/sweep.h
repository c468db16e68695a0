// What the driver and the kernels of one instruction set agree on: plain data and a table of functions.
#pragma once
#include <cstdint>

namespace ssl {

enum class DType : int { f32, f64, bf16, f16 };

// As torch.set_float32_matmul_precision has it: what float32 may lose where that makes it faster. The kernels of the
// vector units lose nothing and ignore it.
enum class Precision : int { highest, high, medium };

// A set of embeddings as the caller has it: several tensors [rows, width], one below the other.
struct Part {
  const void* data;
  void* grad;      // contiguous [rows, width], the backward pass only
  int64_t rows;
  int64_t stride;  // elements from row to row; columns are contiguous
};

// Rows and columns of one sample: (column - row) % period == 0. The diagonal is left out, the others are positives.
struct SameSample {
  int64_t period;
  // Is any such entry in rows [i0, i1) x columns [j0, j1)?
  bool touches(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const int64_t lowest = j0 - i1 + 1, highest = j1 - 1 - i0;
    return floor(highest) >= lowest;
  }
  // The first such column at or after j0.
  int64_t first(int64_t i, int64_t j0) const { return j0 + modulo(i - j0); }
  int64_t modulo(int64_t d) const { return ((d % period) + period) % period; }
  int64_t floor(int64_t d) const { return d - modulo(d); }
};

// One reduction of a set of embeddings against itself. T is float or double. Logits live in base 2 here:
// t_ij = scale2 * z_i . z_j, so that every exponential is one exp2.
template <class T> struct SelfLse {
  const Part* parts;
  int64_t part_count;
  DType dtype;
  Precision precision;
  bool normalize;
  bool with_gradient;  // the backward pass is to come, and wants its memory
  int64_t rows, padded, width, chunks;  // padded: whole panels; chunks: panels along the width
  SameSample same;
  T scale2, scale2_low;  // their sum is the scale: its rounding alone would cost a float 1e-5 where logits reach 200
  T shift;
  bool running;  // a running maximum instead of the fixed shift
  T* z;          // rows, [chunks][padded][panel]: left operand, and right operand of the gradient's products
  T* zt;         // what else the products read, as the kernels' own pack lays it out
  T* norm;       // [rows]
  // forward: sum and maximum of each row so far, and the positives' products z_i . z_p [rows / period - 1, rows]
  double* sum;
  T* top;
  T* pos;
  T scale;
  // backward: G_ij = 2^(t_ij - shift) (weight_i + weight_j), or 2^(t_ij - neg2_i) weight_i + 2^(t_ij - neg2_j) weight_j
  const T* weight;  // [padded]
  const T* neg2;    // [padded]
  const T* dpos;    // [rows / period - 1, rows]
  T* g;             // sum_j G_ij z_j, as z; what the kernels' layout adds to it comes behind
};

// What the kernels want of the driver for a problem. It depends on the problem alone, never on the number of threads:
// the block decides the order of the additions.
struct Layout {
  int64_t block;     // rows of a block of the walk, whole panels
  int64_t zt, g;     // elements of these two
  int64_t scratch;   // elements of each thread's scratch memory
};

template <class T> struct Kernels {
  int64_t panel;
  Layout (*layout)(const SelfLse<T>&);
  void (*pack)(const SelfLse<T>&, int64_t first_panel, int64_t last_panel);
  void (*forward)(const SelfLse<T>&, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch);
  void (*backward)(const SelfLse<T>&, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch);
  // rows [i0, i1): the positives' part, the gradient through the normalisation; returns sum_i z_i . dz_i (unscaled)
  double (*finish)(const SelfLse<T>&, int64_t i0, int64_t i1);
};

struct Streams;  // streams.h

struct Isa {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  const Streams* streams;
};

const Isa& isa_portable();
#ifdef SSL_HAVE_AVX2
const Isa& isa_avx2();
#endif
#ifdef SSL_HAVE_AVX512
const Isa& isa_avx512();
#endif
#ifdef SSL_HAVE_AMX
bool amx_usable();  // on a processor with AVX-512: does it have AMX, and may this process use it
const Isa& isa_amx();
#endif

}  // namespace ssl
