#include "within.h"

namespace ssl {
namespace {

template <class T> class Within : Engine<T> {
  using Base = Engine<T>;
  using Base::s_, Base::kernels_;

 public:
  Within(const WithinCall& call, bool gradient) : Base(call.numbers) {
    s_.x = s_.y = &e_.side;
    s_.rule = Rule::same_sample(call.period);
    s_.gradient = gradient;
    this->take(e_, call.parts);
    this->alone_if_small();
    this->pack(e_);
    const double longest = this->longest(e_.side);
    sure_ = this->choose_shift(longest * longest);
  }

  void forward(T* neg, T* pos, T* top) {
    const Side<T>& side = e_.side;
    s_.pos = pos;
    this->want_sums(e_);
    this->sweep(kernels_.forward);
    if (!s_.running && !sure_ && Base::lost(side)) {
      this->run_on();
      this->want_sums(e_);
      this->sweep(kernels_.forward);
    }
    const double scale = this->scale_;
    T* const end = pos + (side.rows / s_.rule.period - 1) * side.rows;
    for (int64_t i = 0; i < side.rows; ++i) {
      // NaN stays NaN on either side: it is never less than what it is compared with
      const double lse = Base::lse(side, i);
      double most = lse;
      for (T* p = pos + i; p < end; p += side.rows) most = scale * *p < most ? most : scale * *p;
      top[i] = most == -infinity ? T(0) : T(most);  // a row of nothing at all
      neg[i] = T(lse - double(top[i]));
      for (T* p = pos + i; p < end; p += side.rows) *p = T(scale * *p - double(top[i]));
    }
  }

  double backward(const T* neg, const T* top, const T* dneg, const T* dpos) {
    if (!s_.running && !sure_ && !this->within_reach(e_.side.rows, neg, top)) this->run_on();
    this->want_weights(e_, neg, top, dneg);
    this->want_gradient_in_parts(e_);
    s_.pos = nullptr;  // the tiles of this sweep keep no positives
    s_.dpos = dpos;
    this->sweep(kernels_.backward);
    // Every logit counts twice in sum_i z_i . dz_i: once for its row, once for its column
    return 0.5 * this->finish(e_.side);
  }

  // Both passes over one set of packed rows, with the mean of softplus(neg - pos) between them.
  SoftplusMean softplus_mean() {
    const int64_t rows = e_.side.rows, count = (rows / s_.rule.period - 1) * rows;
    auto neg = allocate<T>(rows), top = allocate<T>(rows), dneg = allocate_zero<T>(rows);
    auto pos = allocate<T>(count), dpos = allocate_zero<T>(count);
    this->keep_entries();
    forward(neg.get(), pos.get(), top.get());
    double loss = 0;
    for (int64_t k = 0; k < count; k += rows)
      loss += Base::add_softplus(neg.get(), pos.get() + k, rows, 1 / double(count), dneg.get(), dpos.get() + k);
    return {loss / double(count), backward(neg.get(), top.get(), dneg.get(), dpos.get())};
  }

 private:
  typename Base::Embeddings e_;
  bool sure_;
};

template <class T> T* as(void* p) { return static_cast<T*>(p); }
template <class T> const T* as(const void* p) { return static_cast<const T*>(p); }

}  // namespace

void self_lse_forward(const WithinCall& call, void* neg, void* pos, void* top) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Within<T>(call, false).forward(as<T>(neg), as<T>(pos), as<T>(top));
  };
  call.numbers.dtype == DType::f64 ? run(0.0) : run(0.0f);
}

double self_lse_backward(const WithinCall& call, const void* neg, const void* top, const void* dneg, const void* dpos) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    return Within<T>(call, true).backward(as<T>(neg), as<T>(top), as<T>(dneg), as<T>(dpos));
  };
  return call.numbers.dtype == DType::f64 ? run(0.0) : run(0.0f);
}

SoftplusMean self_lse_softplus_mean(const WithinCall& call) {
  return call.numbers.dtype == DType::f64 ? Within<double>(call, true).softplus_mean()
                                          : Within<float>(call, true).softplus_mean();
}

}  // namespace ssl
