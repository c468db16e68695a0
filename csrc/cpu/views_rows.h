// Cross-entropies between the views of one sample.
//
// Over the pairs of teacher t and student v they are linear in the teacher: the student's row needs one log-softmax, not
// one a pair, and the sum of the other views' probabilities. The teacher's probabilities stay in the cache while the
// student's rows pass by once; a row is read again (for its largest logit, its sum, its gradient) while it is there.
#pragma once
#include <cmath>
#include "elements.h"
#include "engine.h"
#include "views.h"

namespace ssl::SSL_ISA {

template <class T, class Format> class ViewsOfSample {
  using Element = typename Format::Element;
  using V = Vec<T>;
  static constexpr int64_t L = lanes<T>;
  static constexpr int64_t run = 64 * L;  // so much is summed in T before it joins a double

 public:
  ViewsOfSample(const ViewsCall& c, int64_t b, void* scratch, int64_t padded)
      : c_(c), b_(b), p_(static_cast<T*>(scratch)), padded_(padded), sum_(p_ + c.teachers * padded) {}

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
  // What a student's row is compared with: factor * row, which adds up to mass.
  struct Target {
    const T* row;
    T factor;
    double mass;
  };

  const Element* student(int64_t v) const { return static_cast<const Element*>(c_.student[v * c_.batch + b_]); }
  T& kept(void* of, int64_t row) const { return static_cast<T*>(of)[row * c_.batch + b_]; }
  T& top(int64_t row) const { return kept(c_.top, row); }      // the teacher's rows come behind the student's
  T& share(int64_t row) const { return kept(c_.share, row); }

  // f(k, read, last) for every vector of a row; read(pointer) are its elements, and last how many if not all.
  template <class F> SSL_INLINE void vectors(int64_t begin, int64_t end, F&& f) const {
    int64_t k = begin;
    for (; k + L <= end; k += L) f(k, Whole(), 0);
    if (const int64_t rest = end - k; rest > 0)
      f(k, [rest](const Element* x) __attribute__((always_inline)) { return read_last<T, Format>(x, rest); }, rest);
  }
  struct Whole {
    SSL_INLINE V operator()(const Element* x) const { return read_elements<T, Format>(x); }
  };
  static SSL_INLINE V without_tail(V v, int64_t last, T fill) {
    for (int64_t k = last; last && k < L; ++k) v[k] = fill;
    return v;
  }

  template <class Logit> T largest(Logit&& logit) const {
    constexpr T lowest = -std::numeric_limits<T>::infinity();
    V most[4];  // one would wait for itself
    for (V& m : most) m = splat<T>(lowest);
    int64_t k = 0;
    for (; k + 4 * L <= c_.width; k += 4 * L)
      for (int64_t u = 0; u < 4; ++u) most[u] = larger(logit(k + u * L, Whole()), most[u]);
    vectors(k, c_.width, [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
      most[0] = larger(without_tail(logit(k, read), last, lowest), most[0]);
    });
    V m = larger(larger(most[0], most[1]), larger(most[2], most[3]));
    T result = m[0];
    for (int64_t k = 1; k < L; ++k) result = m[k] > result ? m[k] : result;
    return result;
  }

  // The exponentials of a teacher's row in its place of the scratch memory, or its probabilities where these are given.
  void probabilities(int64_t t) {
    const Element* x = static_cast<const Element*>(c_.teacher[t * c_.batch + b_]);
    T* p = p_ + t * padded_;
    if (c_.teacher_scale == 0) {
      vectors(0, c_.width, [&](int64_t k, auto read, int64_t) __attribute__((always_inline)) { store<T>(p + k, read(x + k)); });
      return;
    }
    const T* center = c_.center ? static_cast<const T*>(c_.center) + t * c_.center_stride : nullptr;
    auto logit = [&](int64_t k, auto read) __attribute__((always_inline)) {
      V s = read(x + k);
      // the scratch memory of T is padded to whole vectors, the centre is the caller's
      if (center) s -= k + L <= c_.width ? load<T>(center + k) : last_of(center + k, c_.width - k);
      return s;
    };
    const int64_t row = c_.students + t;
    if (c_.value) top(row) = largest(logit);
    const V most = splat<T>(top(row)), scale = splat<T>(T(c_.teacher_scale * log2e));
    double sum = 0;
    for (int64_t begin = 0; begin < c_.width; begin += run) {
      V part{};
      vectors(begin, std::min(c_.width, begin + run), [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
        const V e = without_tail(exp2<T>((logit(k, read) - most) * scale), last, T(0));
        part += e;
        store<T>(p + k, e);
      });
      sum += sum_lanes<T>(part);
    }
    if (c_.value) share(row) = T(1 / sum);
  }
  static SSL_INLINE V last_of(const T* p, int64_t count) {
    V v{};
    for (int64_t k = 0; k < count; ++k) v[k] = p[k];
    return v;
  }

  T factor(int64_t t) const { return c_.teacher_scale == 0 ? T(1) : share(c_.students + t); }
  double mass(int64_t t) const {
    if (c_.teacher_scale != 0) return 1;
    double sum = 0;
    for (int64_t k = 0; k < c_.width; ++k) sum += p_[t * padded_ + k];
    return sum;
  }
  bool pair(int64_t t, int64_t v) const { return c_.same || t != v; }

  // One teacher: its row as it is. More: their sum, which is the same for all students that are no teachers.
  Target target_of(int64_t v) {
    int64_t count = 0, one = 0;
    for (int64_t t = 0; t < c_.teachers; ++t)
      if (pair(t, v)) ++count, one = t;
    if (count == 1) return {p_ + one * padded_, factor(one), mass(one)};
    const bool all = count == c_.teachers;
    if (all && summed_) return all_;
    Target target{sum_, T(1), 0};
    const int64_t whole = (c_.width + L - 1) / L * L;
    for (int64_t k = 0; k < whole; k += L) store<T>(sum_ + k, V{});
    for (int64_t t = 0; t < c_.teachers; ++t) {
      if (!pair(t, v)) continue;
      const V by = splat<T>(factor(t));
      for (int64_t k = 0; k < whole; k += L) store<T>(sum_ + k, load<T>(sum_ + k) + by * load<T>(p_ + t * padded_ + k));
      target.mass += mass(t);
    }
    summed_ = all;
    return all_ = target;
  }

  // mass * log-sum-exp - sum_k target_k logit_k, both relative to the largest logit
  double cross_entropy(int64_t v, const Target& target) {
    const Element* x = student(v);
    const T most = largest([&](int64_t k, auto read) __attribute__((always_inline)) { return read(x + k); });
    const V low = splat<T>(most), scale = splat<T>(T(c_.student_scale * log2e));
    double sum = 0, along = 0;
    for (int64_t begin = 0; begin < c_.width; begin += run) {
      V sums{}, products{};
      vectors(begin, std::min(c_.width, begin + run), [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
        const V s = read(x + k) - low;
        sums += without_tail(exp2<T>(s * scale), last, T(0));
        products += without_tail(s * load<T>(target.row + k), last, T(0));
      });
      sum += sum_lanes<T>(sums);
      along += sum_lanes<T>(products);
    }
    top(v) = most;
    share(v) = T(1 / sum);
    return target.mass * std::log(sum) - c_.student_scale * double(target.factor) * along;
  }

  void gradient(int64_t v, const Target& target) {
    const Element* x = student(v);
    Element* out = static_cast<Element*>(c_.dstudent[v * c_.batch + b_]);
    const double g = double(static_cast<const T*>(c_.dvalue)[b_]) * c_.student_scale;
    const V low = splat<T>(top(v)), scale = splat<T>(T(c_.student_scale * log2e));
    const V mine = splat<T>(T(g * target.mass * double(share(v)))), theirs = splat<T>(T(g * double(target.factor)));
    auto each = [&](auto write) __attribute__((always_inline)) {
      vectors(0, c_.width, [&](int64_t k, auto read, int64_t last) __attribute__((always_inline)) {
        write(out + k, exp2<T>((read(x + k) - low) * scale) * mine - theirs * load<T>(target.row + k), last);
      });
    };
    auto through = [](Element* to, V d, int64_t last) __attribute__((always_inline)) {
      last ? write_last<T, Format>(to, last, d) : write_elements<T, Format>(to, d);
    };
    auto past = [&](Element* to, V d, int64_t last) __attribute__((always_inline)) {
      last ? through(to, d, last) : stream_elements<T, Format>(to, d);
    };
    if (c_.past_caches && reinterpret_cast<uintptr_t>(out) % (L * sizeof(Element)) == 0) {
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
  Target all_{};
  bool summed_ = false;
};

inline void views_of_sample(const ViewsCall& c, int64_t b, void* scratch, int64_t padded) {
  FlushDenormals flush;
  with_any_dtype(c.dtype, [&](auto format) {
    using Format = decltype(format);
    ViewsOfSample<std::conditional_t<std::is_same_v<Format, F64>, double, float>, Format>(c, b, scratch, padded).work();
  });
}

}  // namespace ssl::SSL_ISA
