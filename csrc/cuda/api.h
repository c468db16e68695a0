// What the binding may ask of the kernels: addresses on the device and numbers, nothing of CUDA's headers nor of torch's.
//
// Every function launches on `stream` of the current device and returns CUDA's error code, 0 if all is well; none waits for
// the device, reads it, allocates on it or leaves an error behind, so a CUDA graph can hold all of them.
//
// "Reals" are double where operands are doubles, float elsewhere. Rows of a side are padded to a multiple of 256.
#pragma once
#include <cstddef>
#include <cstdint>
#include "dtype.h"

namespace ssl::cuda {

// A row's operands: one float16 an entry, two (float32 that stays exact: hi + lo), one double.
enum class Operands : int { half, split, doubles };

// A number on the device, or 1 (a scale) or 0 (a bias) where the pointer is null.
struct Number {
  const void* at;
  DType dtype;
};

struct Side {
  const void* units;    // operand rows as operands.h lays them, of this side's first row
  const float* factors;  // [padded] what a row was divided by; null: nothing
  const float* largest;  // the largest of them; null where factors are
  int rows, padded;
};

// The matrix of logits multiplier * scale * x_i . y_j. A set against itself has the same side twice. Which entries are
// negatives: in a set against itself those whose row and column are no multiple of `step` apart; otherwise all but
// (i, i + step), and there `step` is negative where the sides have changed places, y.rows or more without positives.
struct Matrix {
  Side x, y;
  Operands operands;
  int width;           // padded, a multiple of 64
  int64_t low_offset;  // elements from a row's operands to their low pieces
  bool self;
  int step;
  bool normalize;  // the rows lie on the sphere
  Number scale;
  double multiplier;
  int arch;  // 80, 90, 100 ... of the device
};

// ------------------------------------------------------------------------------------------------------------- sweeps
// value: softplus for nobody to receive anything; the search for neighbours too.
enum class Kernel : int { forward, cross, backward, attend, softplus, value };

// Rows and columns of a block's tile, the entries of its result along the width, and whether it has a multiprocessor to itself:
// Python makes its grids of them.
struct Tile {
  int block_m, block_n, block_d;
  bool alone;
};
Tile tile(Kernel kernel, Operands operands, int width, int arch);

// Sums of exponentials over the negatives, by pairs of groups; maxima only where no fixed shift serves. y: null if only rows
// are reduced; those of x for a set against itself.
struct Forward {
  Matrix matrix;
  void *x_sums, *x_tops;  // reals [groups of y][x.padded]
  void *y_sums, *y_tops;  // reals [groups of x][y.padded]
  int x_group, y_group;   // rows of a group, multiples of 128 and of block_n
};
int forward(const Forward& call, void* stream);

// What row i receives from each span of columns, sum_j G_ij y_j.
struct Backward {
  Matrix matrix;
  const void *x_weights, *y_weights;  // reals [4][padded], as weigh makes them; x's null where rows have none
  bool of_columns;                    // false: those of y are zeros and their factors
  void* received;                     // reals [spans][x.padded][width], rows and columns of it in plain order
  int span;                           // columns of a span, a multiple of block_n
};
int backward(const Backward& call, void* stream);

// For rows too wide to receive anything in registers: G itself, of `rows` rows from `first_row` on (multiples of 128), for a
// product of matrices to weigh y with.
struct Kept {
  void* entries;  // halves [pieces][rows][y.padded], zero outside the matrix; written up to a multiple of 32 columns
  int first_row, rows;
};
struct GradientEntries : Backward, Kept {};
int gradient_entries(const GradientEntries& call, void* stream);

// Row sums of exponentials relative to `tops`, and the columns weighted by them.
struct Attend {
  Matrix matrix;
  void *sums, *tops;  // reals [spans][x.padded]
  void* received;     // as Backward's
  int span;
};
int attend(const Attend& call, void* stream);

// The softplus of every logit: each block's part of the value and of the bias's gradient, and what rows receive.
struct Softplus {
  Matrix matrix;
  Number bias;
  void* sums;      // reals [2][blocks of rows * spans]; null: nobody asks
  void* largest;   // reals [blocks of rows * spans], of the derivatives; null: nobody asks. Not where anything is received
  void* received;  // as Backward's; null: nobody asks
  int span;
};
int softplus(const Softplus& call, void* stream);

// Its derivatives, kept as those of Backward are.
struct SoftplusEntries : Softplus, Kept {
  const void* unit;  // one real: what they are kept in units of
};
int softplus_entries(const SoftplusEntries& call, void* stream);

// ------------------------------------------------------------------------------------------- neighbours and distances
// For every row of x the index of the row of y with the largest product; of equal ones the first.
struct Nearest {
  Matrix matrix;   // step: the column that row 0 leaves out, y.rows or more for none
  void* products;  // reals [spans][x.padded]
  int* indices;    // [spans][x.padded]
  int span;
  int64_t* index;  // [x.rows]
};
int nearest(const Nearest& call, void* stream);

// The similarities 1 / (1 + 2 T d2 / dof)^((dof + 1) / 2) and exp(-T d2) of points to each other.
enum class Falloff : int { cauchy, student, gaussian };
struct Points {
  const void* points;  // reals [width][rows]
  bool doubles;
  int rows, width, period;
  Falloff falloff;
  Number scale;  // T is multiplier times it
  double multiplier, dof;
};
// Row log-sum-exp over the points of other samples, and what its rounding lost.
struct PointSums {
  Points points;
  void *neg, *low;  // reals [rows]
};
int point_sums(const PointSums& call, void* stream);

// received[d, i] = sum_j A_ij (z_i - z_j)_d and moments[i] = sum_j A_ij d2_ij, A what a pair weighs by its two rows.
struct PointGradients {
  Points points;
  const void *neg, *low, *dneg;  // reals [rows]
  void *near, *weight;           // reals [rows]: where a row counts from so that its sum is one, and its gradient
  void *received, *moments;      // reals [width][rows], [rows]
};
int point_gradients(const PointGradients& call, void* stream);

// -------------------------------------------------------------------------------------------------------------- views
// Logits of the views of `batch` samples, row v * batch + b. A launch takes `views` of the student's, from first_view on.
struct Views {
  const void *student, *teacher;  // [views * batch][width], [teachers * batch][width]
  const void* center;             // reals [width], or [teachers][width]; or null
  DType dtype;                    // of both
  int64_t student_stride, teacher_stride;
  int center_stride;              // 0: one for all views
  int batch, views, first_view, students, teachers, width;
  bool given, same;               // the teacher's are probabilities; a view is compared with itself too
  double student_scale, teacher_scale;
};
int view_columns(const Views& views);  // of a chunk

// By chunk of the columns, all [chunks][rows of a side][batch], `along` [chunks][students][teachers][batch].
struct ViewSums {
  Views views;
  void *student_tops, *student_sums, *teacher_tops, *teacher_sums, *along;
};
int view_sums(const ViewSums& call, void* stream);

struct ViewValues {
  Views views;
  ViewSums sums;
  int chunks;
  void* value;  // reals [batch]
  void* kept;   // reals [2][(students + teachers) * batch]: the largest logit, one over the sum of exponentials
};
int view_values(const ViewValues& call, void* stream);

struct ViewGradients {
  Views views;
  const void *dvalue, *kept;
  void* dstudent;  // as the student's tensor of this launch, contiguous; or null
  void* dteacher;  // reals [teachers * batch][width], or null
};
int view_gradients(const ViewGradients& call, void* stream);

// The log-sum-exp of each row (over columns, then the bias is theirs), or of each column, of multiplier * logits + bias.
struct BiasedLse {
  const void* logits;  // [rows][width]
  DType dtype;
  int64_t rows, stride;
  int width;
  const void* bias;  // reals [width] of rows, [rows] of columns; or null
  double multiplier;
  bool of_rows;
  void* out;  // reals [rows] or [width]
};
int biased_lse(const BiasedLse& call, void* stream);

// --------------------------------------------------------------------------------------------------------------- rows
constexpr int MAX_INPUTS = 16;  // eight of either side

// Embeddings as they came in, one below the other from row `first` of the operand buffer on.
struct Input {
  const void* data;
  void* grad;      // contiguous; finish only
  int64_t stride;  // elements from row to row
  int rows, first;
};
struct Inputs {
  Input parts[MAX_INPUTS];
  int count;
  DType dtype;
  int width;  // entries of a row
};

// Operand rows of all inputs, zero beyond them, and their factors if there are any.
struct Prepare {
  Inputs inputs;
  Operands operands;
  bool normalize;
  void* units;
  float* factors;  // null: rows are not divided by a power of two
  int padded;      // rows of the buffer, of both sides together
  int width;
  int64_t low_offset;
};
int prepare(const Prepare& call, void* stream);

// The largest factor of either set.
struct LargestFactors {
  const float* factors[2];
  int rows[2];
  int sides;
  float* largest;
};
int largest_factors(const LargestFactors& call, void* stream);

// neg, pos and top of the rows of x from the groups' sums; and `mean` where columns were received.
struct Combine {
  Matrix matrix;
  const void *sums, *tops;  // reals [groups][x.padded]
  int groups;
  const void* received;     // reals [groups][x.padded][width], or null
  void *neg, *pos, *top;    // reals [x.rows]; pos [x.rows / step - 1][x.rows] of a set against itself
  bool positives;           // false: pos has no elements
  void* mean;               // reals [x.rows][entries], or null
  int entries;              // of a row, without padding
};
int combine(const Combine& call, void* stream);

// What a row and a column put into G, and the power of two that it is in units of.
struct WeighSide {
  const void *neg, *top, *dneg;  // reals [rows]; null: nobody reduced this side
  const float* factors;          // as a side's
  void* weights;                 // reals [4][padded]: weight, top, neg, factor
  int rows, padded;
};
struct Weigh {
  WeighSide sides[2];
  bool doubles;
  bool normalize;
  Number scale;
  double multiplier;
  void* unit;  // one real
};
int weigh(const Weigh& call, void* stream);

// From what rows received to the gradients of the inputs, and each block's part of the scale's gradient.
struct Finish {
  Matrix matrix;
  Inputs inputs;          // of x; first counts from row 0 of x
  DType grads;            // their dtype
  const void* received;   // reals [spans][x.padded][width]
  int spans;
  const void* unit;       // one real, or null for 1
  const void *dpos, *y_dpos;  // reals as pos, or null
  void* along;            // reals [finish_blocks()]
};
int finish(const Finish& call, void* stream);
int finish_blocks(int rows);

// dscale = multiplier * sum(along), in scale's dtype.
struct SumScale {
  const void* along;
  int count;
  bool doubles;
  double multiplier;
  void* dscale;
  DType dtype;
};
int sum_scale(const SumScale& call, void* stream);

// The parts of softplus: value, and the gradients of scale and bias (zeros without `along`).
struct AddUp {
  const void* sums;   // reals [2][count]
  int count;
  const void* along;  // reals [along_count], or null
  int along_count;
  bool doubles;
  double multiplier;
  void *value, *dscale, *dbias;  // one real each
};
int add_up(const AddUp& call, void* stream);

// -------------------------------------------------------------------------------------------------- streams of memory
// target = momentum * target + (1 - momentum) * source, or a copy.
struct AveragedPair {
  void* target;
  const void* source;
  int64_t count;
  int64_t first;  // number of the first element among all of the call: it picks the element's random bits
  DType to, from;
  bool copied;
};
struct CopiedBytes {
  void* target;
  const void* source;
  int64_t count;
};
struct Average {
  const AveragedPair* pairs;  // on the host
  int64_t pair_count;
  const CopiedBytes* copies;  // on the host
  int64_t copy_count;
  const void* momentum;  // a number on the device, or null: then these two, whose sum is 1
  DType momentum_dtype;
  double keep, take;
  int64_t* rounding;  // seed and number of the call on the device, the number advanced; null: nothing is rounded at random
};
int average(const Average& call, void* stream);

struct Enqueue {
  void* queue;  // [size, width]
  int64_t size, queue_stride;
  DType queue_dtype;
  const void* rows;  // [count, width]
  int64_t count, rows_stride;
  DType rows_dtype;
  int64_t width;
  int64_t* pointer;  // where the next row goes; advanced
  bool normalize;
  bool wrap;  // go on at the front where the end is reached; otherwise what does not fit is left out
};
int enqueue(const Enqueue& call, void* stream);

struct Cosine {
  const void *x, *y;  // [rows, width]
  int64_t rows, width, x_stride, y_stride;
  DType dtype;
  double eps;                      // a norm is at least this
  void *value, *x_norm, *y_norm;  // [rows] double for f64, float for everything else
};
int cosine(const Cosine& call, void* stream);

struct CosineBackward {
  Cosine forward;      // with its results
  const void* dvalue;  // [rows]
  void *dx, *dy;       // contiguous [rows, width]; null: nobody asks
};
int cosine_backward(const CosineBackward& call, void* stream);

// -------------------------------------------------------------------------------------------------------- the machine
int driver_version();   // 13000 for CUDA 13.0; 0 without a driver
int runtime_version();  // what this module was built with
int runs_here();        // 0, or the code that says why these kernels do not run on the current device
const char* error_text(int code);

}  // namespace ssl::cuda
