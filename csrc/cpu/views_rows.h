// Cross-entropies between the views of one sample.
//
// Over the pairs of teacher t and student v they are linear in the teacher: the student's row needs one log-softmax, not
// one a pair, and the sum of the other views' probabilities. The teacher's probabilities stay in the cache while the
// student's rows pass by once. Of a row a piece is read twice, for its largest logit and for the exponentials, relative
// to the largest so far; where the gradient is asked for in the same call, the exponentials stay for it.
#pragma once
#include <cmath>
#include "elements.h"
#include "engine.h"
#include "fresh_pages.h"
#include "views.h"

namespace ssl::SSL_ISA {

template <class T, class Format> class ViewsOfSample {
  using Element = typename Format::Element;
  using V = Vec<T>;
  static constexpr int64_t L = lanes<T>;
  static constexpr int64_t run = 64 * L;  // a piece: summed in T before it joins a double; in the first cache

 public:
  ViewsOfSample(const ViewsCall& c, int64_t b, void* scratch, int64_t padded)
      : c_(c), b_(b), p_(static_cast<T*>(scratch)), padded_(padded), sum_(p_ + c.teachers * padded),
        e_(sum_ + padded), masses_(e_ + padded), low_(masses_ + (c.teachers + 1) * pieces()) {}

  void work() {
    for (int64_t t = 0; t < c_.teachers; ++t) probabilities(t);
    double value = 0;
    for (int64_t v = 0; v < c_.students; ++v) {
      const Target target = target_of(v);
      if (c_.value) value += cross_entropy(v, target);
      if (c_.dstudent) gradient(v, target);
    }
    if (c_.value) static_cast<T*>(c_.value)[b_] = T(value);
    for (int64_t t = 0; c_.dteacher && t < c_.teachers; ++t) teacher_gradient(t);
  }

 private:
  // What a student's row is compared with: factor * row, piece by piece factor * masses. That they add up to 1 a
  // teacher is not left to a sum: backward, a row may be one block of a longer one.
  struct Target {
    const T *row, *masses;
    T factor;
    double mass;
  };

  int64_t pieces() const { return padded_ / views_piece; }
  const Element* student(int64_t v) const { return static_cast<const Element*>(c_.student[v * c_.batch + b_]); }
  T& kept(void* of, int64_t row) const { return static_cast<T*>(of)[row * c_.batch + b_]; }
  T& top(int64_t row) const { return kept(c_.top, row); }      // the teacher's rows come behind the student's
  T& share(int64_t row) const { return kept(c_.share, row); }

  // f(k, read, last) for every vector of a piece: read(pointer) are its elements, and last how many if not all.
  template <class F> SSL_INLINE void vectors(int64_t begin, int64_t end, F&& f) const {
    int64_t k = begin;
    for (; k + L <= end; k += L) f(k, Whole(), 0);
    if (const int64_t rest = end - k; rest > 0) f(k, Rest{rest}, rest);
  }
  struct Whole {
    SSL_INLINE V operator()(const Element* x) const { return read_elements<T, Format>(x); }
    SSL_INLINE V wide(const T* x) const { return load<T>(x); }
  };
  struct Rest {
    int64_t count;
    SSL_INLINE V operator()(const Element* x) const { return read_last<T, Format>(x, count); }
    SSL_INLINE V wide(const T* x) const {
      V v{};
      for (int64_t k = 0; k < count; ++k) v[k] = x[k];
      return v;
    }
  };
  // The next piece comes from memory while this one is computed: the processor's own prefetching ends with a page, which
  // a piece of 64 vectors is. A fifth of the time on one thread.
  static SSL_INLINE void ahead(const Element* x) { __builtin_prefetch(x + run); }
  static SSL_INLINE V without_tail(V v, int64_t last, T fill) {
    for (int64_t k = last; last && k < L; ++k) v[k] = fill;
    return v;
  }

  template <class Logit> SSL_INLINE T largest(int64_t begin, int64_t end, Logit&& logit) const {
    const V lowest = splat<T>(-std::numeric_limits<T>::infinity());
    V a = lowest, b = lowest, c = lowest, d = lowest;  // one would wait for itself
    int64_t k = begin;
    for (; k + 4 * L <= end; k += 4 * L) {
      a = larger(logit(k, Whole()), a);
      b = larger(logit(k + L, Whole()), b);
      c = larger(logit(k + 2 * L, Whole()), c);
      d = larger(logit(k + 3 * L, Whole()), d);
    }
    V rest = larger(larger(a, b), larger(c, d));
    vectors(k, end, [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
      rest = larger(without_tail(logit(k, read), last, lowest[0]), rest);
    });
    return largest_lane<T>(rest);
  }

  // Adds up what each piece of a row, piece(i, begin, end, low), says of its exponentials relative to low: the largest
  // logit so far, which stays in low_[i], or that of the row where it is known. The sum is relative to `most`.
  template <class Logit, class Piece>
  SSL_INLINE double running(T& most, double scale, Logit&& logit, Piece&& piece) const {
    constexpr T infinity = std::numeric_limits<T>::infinity(), lowest = std::numeric_limits<T>::lowest();
    if (c_.value) most = -infinity;
    double sum = 0;
    for (int64_t i = 0, begin = 0; begin < c_.width; ++i, begin += run) {
      const int64_t end = std::min(c_.width, begin + run);
      if (c_.value) {
        const T here = largest(begin, end, logit);
        if (here > most) {
          sum *= std::exp2((double(most) - double(here)) * scale);
          most = here;
        }
      }
      low_[i] = std::max(most, lowest);
      sum += piece(i, begin, end, splat<T>(low_[i]));
    }
    return most == -infinity ? std::numeric_limits<double>::quiet_NaN() : sum;  // there is nothing to be relative to
  }
  // What the exponentials of piece i are multiplied by to be relative to `most`.
  T lift(int64_t i, T most, double scale) const {
    return low_[i] == most ? T(1) : T(std::exp2((double(low_[i]) - double(most)) * scale));
  }

  // The exponentials of a teacher's row in its place of the scratch memory, or its probabilities where these are given.
  void probabilities(int64_t t) {
    const Element* x = static_cast<const Element*>(c_.teacher[t * c_.batch + b_]);
    T *p = p_ + t * padded_, *masses = masses_ + t * pieces();
    if (c_.teacher_scale == 0) {
      for (int64_t i = 0, begin = 0; begin < c_.width; ++i, begin += run) {
        V part{};
        vectors(begin, std::min(c_.width, begin + run), [&](int64_t k, auto read, int64_t) __attribute__((always_inline)) {
          const V here = read(x + k);
          part += here;
          store<T>(p + k, here);
        });
        masses[i] = sum_lanes<T>(part);
      }
      return;
    }
    const T* center = static_cast<const T*>(c_.center) + (c_.center ? t * c_.center_stride : 0);
    auto logit = [=](int64_t k, auto read) __attribute__((always_inline)) { return read(x + k); };
    auto centred = [=](int64_t k, auto read) __attribute__((always_inline)) { return read(x + k) - read.wide(center + k); };
    c_.center ? sharpen(t, x, centred) : sharpen(t, x, logit);
  }
  template <class Logit> void sharpen(int64_t t, const Element* x, Logit&& logit) {
    T *p = p_ + t * padded_, *masses = masses_ + t * pieces();
    const double scale = c_.teacher_scale * log2e;
    T& most = top(c_.students + t);
    const double sum = running(most, scale, logit, [&](int64_t i, int64_t begin, int64_t end, V low) __attribute__((always_inline)) {
      V part{};
      vectors(begin, end, [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
        const V e = without_tail(exp2<T>((logit(k, read) - low) * T(scale)), last, T(0));
        ahead(x + k);
        part += e;
        store<T>(p + k, e);
      });
      return masses[i] = sum_lanes<T>(part);
    });
    if (!c_.value) return;
    share(c_.students + t) = T(1 / sum);
    for (int64_t i = 0, begin = 0; begin < c_.width && low_[i] < most; ++i, begin += run) {
      const T by = lift(i, most, scale);
      masses[i] *= by;
      for (int64_t k = begin; k < std::min(c_.width, begin + run); k += L) store<T>(p + k, load<T>(p + k) * by);
    }
  }
  T factor(int64_t t) const { return c_.teacher_scale == 0 ? T(1) : share(c_.students + t); }
  bool pair(int64_t t, int64_t v) const { return c_.same || t != v; }

  // One teacher: its row as it is. More: their sum, which is the same for all students that are no teachers.
  Target target_of(int64_t v) {
    int64_t count = 0, one = 0;
    for (int64_t t = 0; t < c_.teachers; ++t)
      if (pair(t, v)) ++count, one = t;
    if (count == 1) return {p_ + one * padded_, masses_ + one * pieces(), factor(one), mass(one)};
    const bool all = count == c_.teachers;
    T* masses = masses_ + c_.teachers * pieces();
    if (!(all && summed_)) {
      add(v, sum_, p_, padded_, (c_.width + L - 1) / L * L);
      add(v, masses, masses_, pieces(), (c_.width + run - 1) / run);
    }
    summed_ = all;
    double sum = 0;
    for (int64_t t = 0; t < c_.teachers; ++t)
      if (pair(t, v)) sum += mass(t);
    return {sum_, masses, T(1), sum};
  }
  double mass(int64_t t) const {
    if (c_.teacher_scale != 0) return 1;
    double sum = 0;
    for (int64_t i = 0; i * run < c_.width; ++i) sum += masses_[t * pieces() + i];
    return sum;
  }
  // to = the sum over v's teachers of factor * rows
  void add(int64_t v, T* to, const T* rows, int64_t stride, int64_t count) const {
    std::fill_n(to, count, T(0));
    for (int64_t t = 0; t < c_.teachers; ++t) {
      const T by = pair(t, v) ? factor(t) : T(0);
      for (int64_t k = 0; by != 0 && k < count; ++k) to[k] += by * rows[t * stride + k];
    }
  }

  // mass * log-sum-exp - sum_k target_k logit_k, both relative to the largest logit
  double cross_entropy(int64_t v, const Target& target) {
    return c_.dstudent ? cross_entropy(v, target, [&](int64_t k, V e) __attribute__((always_inline)) { store<T>(e_ + k, e); })
                       : cross_entropy(v, target, [](int64_t, V) {});
  }
  template <class Keep> double cross_entropy(int64_t v, const Target& target, Keep&& keep) {
    const Element* x = student(v);
    const double scale = c_.student_scale * log2e;
    T& most = top(v);
    double along = 0;
    auto logit = [&](int64_t k, auto read) __attribute__((always_inline)) { return read(x + k); };
    const double sum = running(most, scale, logit, [&](int64_t i, int64_t begin, int64_t end, V low) __attribute__((always_inline)) {
      V sums{}, products{};
      vectors(begin, end, [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
        ahead(x + k);
        const V s = read(x + k) - low, e = without_tail(exp2<T>(s * T(scale)), last, T(0));
        sums += e;
        products += without_tail(s * load<T>(target.row + k), last, T(0));
        keep(k, e);
      });
      along += sum_lanes<T>(products);
      return sum_lanes<T>(sums);
    });
    for (int64_t i = 0; i * run < c_.width && low_[i] < most; ++i)
      along -= (double(most) - double(low_[i])) * double(target.masses[i]);
    share(v) = T(1 / sum);
    return target.mass * std::log(sum) - c_.student_scale * double(target.factor) * along;
  }

  void gradient(int64_t v, const Target& target) {
    const Element* x = student(v);
    Element* out = static_cast<Element*>(c_.dstudent[v * c_.batch + b_]);
    const double g = double(static_cast<const T*>(c_.dvalue)[b_]) * c_.student_scale, scale = c_.student_scale * log2e;
    const T most = top(v), mine = T(g * target.mass * double(share(v)));
    const V theirs = splat<T>(T(g * double(target.factor)));
    auto each = [&](auto write) __attribute__((always_inline)) {
      for (int64_t i = 0, begin = 0; begin < c_.width; ++i, begin += run) {
        const int64_t end = std::min(c_.width, begin + run);
        auto all = [&](auto exponential) __attribute__((always_inline)) {
          vectors(begin, end, [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
            write(out + k, exponential(k, read) - theirs * load<T>(target.row + k), last);
          });
        };
        if (c_.value) {  // the sweep for the value has just been here
          const V by = splat<T>(mine * lift(i, most, scale));
          all([&](int64_t k, auto) __attribute__((always_inline)) { return load<T>(e_ + k) * by; });
        } else {
          all([&](int64_t k, auto read) __attribute__((always_inline)) { return exp2<T>((read(x + k) - most) * T(scale)) * mine; });
        }
      }
    };
    auto through = [](Element* to, V d, int64_t last) __attribute__((always_inline)) {
      last ? write_last<T, Format>(to, last, d) : write_elements<T, Format>(to, d);
    };
    auto past = [&](Element* to, V d, int64_t last) __attribute__((always_inline)) {
      last ? through(to, d, last) : stream_elements<T, Format>(to, d);
    };
    const bool aligned = reinterpret_cast<uintptr_t>(out) % (L * sizeof(Element)) == 0;
    if (c_.past_caches && aligned && !ask_for_pages(out, c_.width * int64_t(sizeof(Element)))) {
      each(past);
      end_stream();
    } else {
      each(through);
    }
  }

  // Minus the sum of the other views' log-softmaxes.
  void teacher_gradient(int64_t t) {
    Element* out = static_cast<Element*>(c_.dteacher[t * c_.batch + b_]);
    const T g = static_cast<const T*>(c_.dvalue)[b_];
    vectors(0, c_.width, [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
      V sum{};
      for (int64_t v = 0; v < c_.students; ++v)
        if (pair(t, v))
          sum += (read(student(v) + k) - top(v)) * T(c_.student_scale) + T(std::log(double(share(v))));
      const V d = -g * sum;
      last ? write_last<T, Format>(out + k, last, d) : write_elements<T, Format>(out + k, d);
    });
  }

  const ViewsCall& c_;
  const int64_t b_;
  T* const p_;
  const int64_t padded_;
  T* const sum_;
  T* const e_;       // the exponentials of the student's row
  T* const masses_;  // of every piece of the teachers' rows, and of their sum
  T* const low_;     // what the exponentials of each piece are relative to
  bool summed_ = false;  // sum_ is that of all teachers
};

inline void views_of_sample(const ViewsCall& c, int64_t b, void* scratch, int64_t padded) {
  FlushDenormals flush;
  with_any_dtype(c.dtype, [&](auto format) {
    using Format = decltype(format);
    ViewsOfSample<std::conditional_t<std::is_same_v<Format, F64>, double, float>, Format>(c, b, scratch, padded).work();
  });
}

}  // namespace ssl::SSL_ISA
