#include "across.h"

namespace ssl {
namespace {

template <class T> class Across : Engine<T> {
  using Base = Engine<T>;
  using Base::s_, Base::kernels_;
  using typename Base::Embeddings;

 public:
  Across(const AcrossCall& call, bool gradient, bool rows_alone) : Base(call.numbers), offset_(call.offset) {
    s_.gradient = gradient;
    s_.rows_alone = rows_alone;
    s_.x = &x_.side;
    s_.y = &y_.side;
    s_.rule = offset_ ? Rule::diagonal(*offset_) : Rule::none();
    this->take(x_, call.x);
    this->take(y_, call.y);
    this->alone_if_small();
    this->pack(x_);
  }

  void forward(const Reduced& rows, const Reduced& columns) {
    s_.pos = static_cast<T*>(rows.pos);
    if (!columns.neg) {
      rows_alone(false);
    } else {
      this->pack(y_);
      const bool sure = this->choose_shift(this->longest(x_.side) * this->longest(y_.side));
      if (keep_) this->keep_entries();
      sums_of_both();
      if (!s_.running && !sure && (Base::lost(x_.side) || Base::lost(y_.side))) {
        this->run_on();
        sums_of_both();
      }
      conclude(y_.side, columns, offset_.value_or(0), static_cast<const T*>(rows.pos));
    }
    conclude(x_.side, rows, 0, static_cast<const T*>(rows.pos));
  }

  double backward(const Reduced& rows, const Reduced& columns, const T* dneg, const T* dneg_y, const T* dpos) {
    if (!y_.norm) this->pack(y_);
    const bool sure = this->choose_shift(this->longest(x_.side) * this->longest(y_.side));
    const T *neg = as(rows.neg), *top = as(rows.top), *neg_y = as(columns.neg), *top_y = as(columns.top);
    const bool reach = this->within_reach(x_.side.rows, neg, top) &&
                       (!neg_y || this->within_reach(y_.side.rows, neg_y, top_y));
    if (!s_.running && !sure && !reach) this->run_on();
    this->want_weights(x_, neg, top, dneg);
    // a running maximum of rows alone takes one exponential an entry; a fixed shift adds nothing for the columns
    if (neg_y || !s_.running) this->want_weights(y_, neg_y, top_y, dneg_y);
    s_.pos = nullptr;  // the tiles of this sweep keep no positives
    s_.dpos = dpos;
    const bool want_y = y_.side.parts[0].grad, want_x = x_.side.parts[0].grad || !want_y;
    if (want_x) this->want_gradient_in_parts(x_);
    if (want_y) this->want_gradient_in_parts(y_);
    this->sweep(kernels_.backward);
    return gradients();
  }

  // Both passes over the same packed rows, with the mean of softplus(neg - pos) of rows and of their positives' columns
  // between them.
  SoftplusMean softplus_mean() {
    const int64_t rows = x_.side.rows, columns = y_.side.rows, first = *offset_;
    auto neg = allocate<T>(rows), pos = allocate<T>(rows), top = allocate<T>(rows);
    auto neg_y = allocate<T>(columns), pos_y = allocate<T>(rows), top_y = allocate<T>(columns);
    auto dneg = allocate_zero<T>(rows), dneg_y = allocate_zero<T>(columns), dpos = allocate_zero<T>(rows);
    const Reduced of_rows{neg.get(), pos.get(), top.get()}, of_columns{neg_y.get(), pos_y.get(), top_y.get()};
    keep_ = true;
    forward(of_rows, of_columns);
    const double weight = 0.5 / double(rows);
    const double sum = Base::add_softplus(neg.get(), pos.get(), rows, weight, dneg.get(), dpos.get()) +
                       Base::add_softplus(neg_y.get() + first, pos_y.get(), rows, weight, dneg_y.get() + first, dpos.get());
    return {weight * sum, backward(of_rows, of_columns, dneg.get(), dneg_y.get(), dpos.get())};
  }

  void attend(const Reduced& rows, T* mean) {
    s_.pos = static_cast<T*>(rows.pos);
    rows_alone(true);
    const Side<T>& side = x_.side;
    const int64_t panel = kernels_.panel;
    this->for_ranges(side.rows, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        // under a running maximum the softmax is complete
        const T by = s_.running ? T(1) : side.sum[i] == 0 ? T(0) : T(1 / side.sum[i]);
        for (int64_t k = 0; k < s_.width; ++k)
          mean[i * s_.width + k] = by * side.g[k / panel * side.g_chunk + i * side.g_row + k % panel];
      }
    });
    conclude(side, rows, 0, static_cast<const T*>(rows.pos));
  }

  PairSoftplus softplus(double bias) {
    this->pack(y_);
    this->choose_shift(0);  // there is none: softplus takes logits of any size
    const int64_t rows = x_.side.rows;
    auto pos = allocate<T>(rows);
    auto slope = allocate_zero<double>(x_.side.padded);
    s_.bias2 = T(bias * log2e);
    s_.pos = pos.get();
    s_.slope = slope.get();
    s_.wide_gradients = true;
    this->want_sums(x_);
    if (x_.side.parts[0].grad) this->want_gradient_in_parts(x_), this->want_gradient_in_parts(y_);
    this->sweep(kernels_.softplus);
    PairSoftplus result{};
    for (int64_t i = 0; i < rows; ++i) {
      result.total += x_.side.sum[i];
      result.dbias += slope[i];
      if (!offset_) continue;
      // softplus(-s) of the positives, which the sweep left out
      const double s = this->scale_ * double(pos[i]) + bias, e = std::exp(-std::fabs(s));
      result.total += (s < 0 ? -s : 0 * s) + std::log1p(e);
      pos[i] = T(s < 0 ? -1 / (1 + e) : -e / (1 + e));
      result.dbias += pos[i];
    }
    if (offset_) s_.dpos = pos.get();
    if (x_.side.g) result.dscale = gradients();
    return result;
  }

 private:
  static const T* as(const void* p) { return static_cast<const T*>(p); }

  void sums_of_both() {
    this->want_sums(x_);
    this->want_sums(y_);
    this->sweep(kernels_.forward);
  }

  // The results of a side; the row `first` of it is the first with a positive, and pos holds their products.
  void conclude(const Side<T>& side, const Reduced& to, int64_t first, const T* products) {
    T *neg = static_cast<T*>(to.neg), *pos = static_cast<T*>(to.pos), *top = static_cast<T*>(to.top);
    const int64_t positives = offset_ ? x_.side.rows : 0;
    for (int64_t i = 0; i < side.rows; ++i) {
      // NaN stays NaN on either side: it is never less than what it is compared with
      const double lse = Base::lse(side, i);
      const bool has = i >= first && i - first < positives;
      const double logit = has ? this->scale_ * double(products[i - first]) : 0;
      const double most = has && !(logit < lse) ? logit : lse;
      top[i] = most == -infinity ? T(0) : T(most);  // a row of nothing at all
      neg[i] = T(lse - double(top[i]));
      if (has) pos[i - first] = T(logit - double(top[i]));
    }
  }

  // Writes the gradients of both sides; of either, sum_i z_i . dz_i is the scale's.
  double gradients() {
    double dscale = 0;
    if (y_.side.g) dscale = this->finish(y_.side);
    if (x_.side.g) dscale = this->finish(x_.side);
    return dscale;
  }

  // Rows alone: their sums, and if asked the columns' sum under their softmax in x's g.
  void rows_alone(bool attend) {
    const bool sure = this->choose_shift(this->longest(x_.side) * longest_column());
    if (!s_.running) {
      in_windows(attend ? kernels_.attend : kernels_.forward, true, attend);
      if (sure || !Base::lost(x_.side)) return;
      this->run_on();
    }
    in_windows(kernels_.forward, true, false);
    if (!attend) return;
    // A running maximum: the softmax once its sums are known
    Side<T>& x = x_.side;
    x_.weight = allocate_zero<T>(x.padded);
    x_.neg2 = allocate_zero<T>(x.padded);
    for (int64_t i = 0; i < x.rows; ++i) {
      if (x.sum[i] == 0) continue;  // nobody to look at
      const double exact = x.top[i] + std::log2(x.sum[i]);
      x_.neg2[i] = T(exact);
      x_.weight[i] = T(std::exp2(double(x_.neg2[i]) - exact));
    }
    x.weight = x_.weight.get();
    x.neg2 = x_.neg2.get();
    T* const pos = std::exchange(s_.pos, nullptr);
    in_windows(kernels_.backward, false, true);
    s_.pos = pos;
  }

  // Visits every block of the matrix without keeping the columns, which may be many more than the rows: a window of them
  // at a time is packed where it is used. Up to 32 shares of the work, a number that depends on the problem alone, each
  // a span of columns for a group of rows; a span adds to sums of its own, and these are added up in order.
  void in_windows(typename Kernels<T>::Block* visit, bool sums, bool gradient) {
    constexpr int64_t shares = 32, group_rows = 1024;  // so many rows hide the packing of a window
    Side<T>& x = x_.side;
    const int64_t window = this->layout_.block_y, windows = (y_.side.padded + window - 1) / window;
    const int64_t block = this->layout_.block_x, group = (group_rows + block - 1) / block * block;
    const int64_t groups = (x.padded + group - 1) / group, spans = std::min(windows, std::max<int64_t>(1, shares / groups));

    std::vector<Embeddings> of_span(spans);
    for (Embeddings& e : of_span) {
      e.side = x;
      if (sums) this->want_sums(e);
      if (gradient) this->want_gradient(e);
    }
    std::atomic<int64_t> next{0};
    on_threads(int(std::min<int64_t>(this->threads_, groups * spans)), [&] {
      Window w(*this, window);
      auto scratch = allocate<T>(this->layout_.scratch);
      for (int64_t k; (k = next.fetch_add(1)) < groups * spans;) {
        const int64_t span = k % spans, i_first = k / spans * group, i_last = std::min(x.padded, i_first + group);
        Sweep<T> s = s_;
        s.x = &of_span[span].side;
        s.y = &w.side;
        for (int64_t j = windows * span / spans; j < windows * (span + 1) / spans; ++j) {
          w.pack(s, j * window);
          for (int64_t i = i_first; i < i_last; i += block)
            visit(s, i, std::min(i_last, i + block), w.side.first, w.side.first + w.side.padded, scratch.get());
        }
      }
    });
    for (int64_t span = 1; span < spans; ++span) add(of_span[0].side, of_span[span].side, sums, gradient);
    if (sums) {
      x_.sum = std::move(of_span[0].sum);
      x_.top = std::move(of_span[0].top);
      x.sum = x_.sum.get();
      x.top = x_.top.get();
    }
    if (gradient) {
      x_.g = std::move(of_span[0].g);
      x.g = x_.g.get();
      x.g_row = of_span[0].side.g_row;
      x.g_chunk = of_span[0].side.g_chunk;
    }
  }

  // Some of the columns, packed.
  struct Window {
    const Kernels<T>& kernels;
    const int64_t all;  // of the columns, whole panels
    Side<T> side;
    Buffer<T> z, zt, norm;

    Window(const Across& a, int64_t rows) : kernels(a.kernels_), all(a.y_.side.padded), side(a.y_.side) {
      side.padded = std::min(rows, all);
      Sweep<T> s = a.s_;
      s.y = &side;
      const Memory memory = kernels.memory(s, side);
      z = allocate<T>(memory.z);
      zt = allocate<T>(memory.zt);
      norm = allocate<T>(side.padded);
      side.z = z.get();
      side.zt = zt.get();
      side.norm = norm.get();
      most_ = side.padded;
    }
    void pack(const Sweep<T>& s, int64_t first) {
      side.first = first;
      side.padded = std::min(most_, all - first);
      kernels.pack(s, side, 0, side.padded / kernels.panel);
    }

   private:
    int64_t most_;
  };

  double longest_column() {
    if (s_.normalize) return 1;
    Window w(*this, 512);
    Sweep<T> s = s_;
    s.y = &w.side;
    double most = 0;
    for (int64_t first = 0; first < w.all; first += 512) {
      w.pack(s, first);
      const double here = this->longest(w.side);
      most = here <= most ? most : here;
    }
    return most;
  }

  void add(Side<T>& to, const Side<T>& from, bool sums, bool gradient) {
    for (int64_t i = 0; sums && i < to.rows; ++i) {
      const T top = std::max(to.top[i], from.top[i]);
      to.sum[i] = to.sum[i] * std::exp2(double(to.top[i]) - top) + from.sum[i] * std::exp2(double(from.top[i]) - top);
      to.top[i] = top;
    }
    if (!gradient) return;
    T* const g = to.g;
    const T* const more = from.g;
    this->for_ranges(int64_t(this->cells(to)), [&](int64_t a, int64_t b) {
      for (int64_t k = a; k < b; ++k) g[k] += more[k];
    });
  }

  std::optional<int64_t> offset_;
  bool keep_ = false;  // entries, for a backward sweep in the same call
  Embeddings x_, y_;
};

template <class F> auto with_type(const AcrossCall& call, bool gradient, bool rows_alone, F&& f) {
  if (call.numbers.dtype == DType::f64) return f(Across<double>(call, gradient, rows_alone), 0.0);
  return f(Across<float>(call, gradient, rows_alone), 0.0f);
}

}  // namespace

void cross_lse_forward(const AcrossCall& call, const Reduced& rows, const Reduced& columns) {
  with_type(call, false, !columns.neg, [&](auto&& across, auto) { across.forward(rows, columns); });
}

double cross_lse_backward(const AcrossCall& call, const Reduced& rows, const Reduced& columns, const void* dneg,
                          const void* dneg_y, const void* dpos) {
  return with_type(call, true, false, [&](auto&& across, auto zero) {
    using T = decltype(zero);
    return across.backward(rows, columns, static_cast<const T*>(dneg), static_cast<const T*>(dneg_y),
                           static_cast<const T*>(dpos));
  });
}

void attend_lse(const AcrossCall& call, const Reduced& rows, void* mean) {
  with_type(call, true, true, [&](auto&& across, auto zero) {
    across.attend(rows, static_cast<decltype(zero)*>(mean));
  });
}

SoftplusMean cross_softplus_mean(const AcrossCall& call) {
  return with_type(call, true, false, [&](auto&& across, auto) { return across.softplus_mean(); });
}

PairSoftplus pair_softplus(const AcrossCall& call, double bias) {
  return with_type(call, true, false, [&](auto&& across, auto) { return across.softplus(bias); });
}

}  // namespace ssl
