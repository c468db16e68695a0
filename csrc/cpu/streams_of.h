// The streams of one instruction set.
#pragma once
#include "aligned_rows.h"
#include "averaging_spans.h"
#include "log_distance_rows.h"
#include "ring_rows.h"
#include "streams.h"
#include "views_rows.h"

namespace ssl::SSL_ISA {

inline const Streams streams{
    average_span,  enqueue_rows,      cosine_rows,                cosine_backward_rows,
    norms_of_rows, log_distance_rows, log_distance_backward_rows, views_of_sample,
};

}  // namespace ssl::SSL_ISA
