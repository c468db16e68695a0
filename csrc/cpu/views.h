// Cross-entropies between the softmaxes of a teacher's and a student's views of the same samples, logits given, and
// their gradients.
#pragma once
#include <cstdint>
#include "sweep.h"

namespace ssl {

// Rows are in order of their views: view v of sample b is row v * batch + b. T is double for f64 and float for
// everything else; what is kept is T too.
struct ViewsCall {
  int64_t batch, students, teachers, width;
  DType dtype;
  void* const* student;   // [students * batch] rows, contiguous
  void* const* teacher;   // [teachers * batch]
  const void* center;     // taken from the teacher's logits; null for none
  int64_t center_stride;  // from one view's to the next's; 0: one for all
  double student_scale;   // 1 / temperature
  double teacher_scale;   // 0: the teacher's rows are probabilities
  bool same;              // pairs of a view with itself count too
  int threads;

  // Of every row of the student and then of the teacher: the largest logit (less the centre), and one over the sum of
  // the exponentials relative to it. Written where there is a value to be found, read where there is not.
  void *top, *share;
  void* value;  // [batch]: the sum over the pairs; null where what is kept is known
  // gradients, contiguous rows; null where nobody asks
  const void* dvalue;     // [batch]
  void* const* dstudent;
  void* const* dteacher;  // of probabilities alone
  bool past_caches;       // the student's gradient goes to memory past the caches, unless that has just come through them
};
void view_cross_entropy(const ViewsCall& call);

// Of scratch memory there are as many numbers beside a row as it has pieces; no instruction set has smaller ones.
constexpr int64_t views_piece = 128;

}  // namespace ssl
