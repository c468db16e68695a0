// What the drivers and the kernels of one instruction set agree on: plain data and a table of functions.
#pragma once
#include <cstdint>
#include "dtype.h"
#include "rule.h"

namespace ssl {

// As torch.set_float32_matmul_precision has it: what float32 may lose where that makes it faster. The kernels of the
// vector units lose nothing and ignore it.
enum class Precision : int { highest, high, medium };

// A set of embeddings as the caller has it: several tensors [rows, width], one below the other.
struct Part {
  const void* data;
  void* grad;      // contiguous [rows, width]; the backward pass only, null where nobody asks
  int64_t rows;
  int64_t stride;  // elements from row to row; columns are contiguous
};

// One side of the matrix: a set of embeddings, packed, and what a sweep makes of it. T is float or double.
template <class T> struct Side {
  const Part* parts;
  int64_t part_count;
  int64_t rows;
  int64_t first, padded;  // rows [first, first + padded), whole panels, are packed: all of them, or a window
  T* z;                   // rows, [chunks][padded][panel]: left operand, and right operand of the gradient's products;
                          // empty where the kernels pack rows in another way
  T* zt;                  // what else the products read, as the kernels' own pack lays it out
  T* norm;                // [padded]
  // forward: sum of what the row's (or column's) entries give, and their maximum so far; null: nobody asks
  double* sum;
  T* top;
  // backward: G_ij = 2^(t_ij - shift) (weight_i + weight_j), or 2^(t_ij - neg2_i) weight_i + 2^(t_ij - neg2_j) weight_j
  const T* weight;  // [padded]
  const T* neg2;    // [padded]
  // sum_j G_ij z_j, a panel of row i at g + (i - first) * g_row + chunk * g_chunk, or in the gradient of its part, where
  // it begins with the part's first row. Null: nobody asks
  T* g;
  int64_t g_row, g_chunk;
  bool g_in_parts;
  T* gt;            // what else a sweep adds up for g, as the kernels lay it out
};

// One reduction of a matrix of logits, x its rows and y its columns: one and the same for a set against itself, where
// the walk visits the upper triangle and every tile serves both sides. Logits live in base 2 here:
// t_ij = scale2 * z_i . z_j + bias2, so that every exponential is one exp2.
template <class T> struct Sweep {
  Side<T>*x, *y;
  DType dtype;
  Precision precision;
  bool normalize;
  bool wide_gradients;  // in T, not in dtype
  int64_t width, chunks;  // chunks: panels along the width
  Rule rule;
  T scale;
  T scale2, scale2_low;  // their sum is the scale: its rounding alone would cost a float 1e-5 where logits reach 200
  T bias2;
  T shift;
  bool running;  // a running maximum instead of the fixed shift
  bool gradient;    // a gradient is to come, and wants its memory
  bool rows_alone;  // nothing is reduced over columns
  T* pos;        // the positives' products: [rows / period - 1, rows] of a set against itself, else [rows]; or null
  const T* dpos;  // the gradient of the positives' logits, as pos
  double* slope;  // softplus: sum of G_ij over each row
  T* entries;     // [x.padded, y.padded]: what a fixed shift makes of each, left by forward for backward; or null
  bool self() const { return x == y; }
};

// What the kernels want of the driver for a problem. It depends on the problem alone, never on the number of threads:
// the blocks decide the order of the additions.
struct Layout {
  int64_t block_x, block_y;  // rows of a block of the walk on either side, whole panels
  int64_t scratch;           // elements of each thread's scratch memory
};
struct Memory {
  int64_t z, zt, gt;  // elements of these three of a side
};

template <class T> struct Kernels {
  typedef void Block(const Sweep<T>&, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch);
  int64_t panel;
  bool keeps_entries;  // of a small matrix, where it is asked for them
  Layout (*layout)(const Sweep<T>&);
  Memory (*memory)(const Sweep<T>&, const Side<T>&);
  void (*pack)(const Sweep<T>&, const Side<T>&, int64_t first_panel, int64_t last_panel);
  Block* forward;   // sums, maxima, positives
  Block* backward;  // the gradient of both sides, from their weights
  Block* attend;    // the sums of rows and, under a fixed shift, their gradient before it is divided by them
  Block* softplus;  // the sums of rows over softplus(t) and the gradient of both sides
  // rows [i0, i1) of a side: the positives' part, the gradient through the normalisation; returns sum_i z_i . dz_i
  // (unscaled)
  double (*finish)(const Sweep<T>&, const Side<T>&, int64_t i0, int64_t i1);
};

struct Streams;   // streams.h
struct PointIsa;  // points.h

struct Isa {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  const Streams* streams;
  const PointIsa* points;
};

const Isa& isa_portable();
#ifdef SSL_HAVE_AVX2
const Isa& isa_avx2();
#endif
#ifdef SSL_HAVE_AVX_VNNI
const Isa& isa_avx_vnni();
#endif
#ifdef SSL_HAVE_AVX512
const Isa& isa_avx512();
#endif
#ifdef SSL_HAVE_VNNI
const Isa& isa_vnni();
#endif
#ifdef SSL_HAVE_AMX
bool amx_usable();  // on a processor with AVX-512: does it have AMX, and may this process use it
const Isa& isa_amx();
#endif

}  // namespace ssl
