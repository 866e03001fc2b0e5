// Real and complex numbers behind one set of names, so that ema is cema over the reals.
#pragma once

#include "common/device.cuh"

namespace megalodon::cuda {

template <class A>
struct Real {
  using Part = A;
  static constexpr int parts = 1;
  A re;
};

template <class A>
struct Complex {
  using Part = A;
  static constexpr int parts = 2;
  A re, im;
};

template <class A>
MEGALODON_DEVICE Real<A> conj(Real<A> a) {
  return a;
}
template <class A>
MEGALODON_DEVICE Complex<A> conj(Complex<A> a) {
  return {a.re, -a.im};
}

// a b
template <class A>
MEGALODON_DEVICE Real<A> multiply(Real<A> a, Real<A> b) {
  return {a.re * b.re};
}
template <class A>
MEGALODON_DEVICE Complex<A> multiply(Complex<A> a, Complex<A> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// Re(a b)
template <class A>
MEGALODON_DEVICE A real_product(Real<A> a, Real<A> b) {
  return a.re * b.re;
}
template <class A>
MEGALODON_DEVICE A real_product(Complex<A> a, Complex<A> b) {
  return a.re * b.re - a.im * b.im;
}

// a + b scale
template <class A>
MEGALODON_DEVICE Real<A> add(Real<A> a, Real<A> b, A scale = 1) {
  return {a.re + b.re * scale};
}
template <class A>
MEGALODON_DEVICE Complex<A> add(Complex<A> a, Complex<A> b, A scale = 1) {
  return {a.re + b.re * scale, a.im + b.im * scale};
}

// The number whose parts lie `pitch` apart from p[i] on.
template <class N, class A>
MEGALODON_DEVICE N load_number(const Global<const A>& p, std::int64_t i, std::int64_t pitch = 1) {
  N number{};
  number.re = p[i];
  if constexpr (N::parts == 2) number.im = p[i + pitch];
  return number;
}
template <class N, class A>
MEGALODON_DEVICE void store_number(const Global<A>& p, std::int64_t i, N number, std::int64_t pitch = 1) {
  p[i] = static_cast<A>(number.re);
  if constexpr (N::parts == 2) p[i + pitch] = static_cast<A>(number.im);
}

template <class N, class A>
MEGALODON_DEVICE N from_real(A re) {
  N number{};
  number.re = re;
  return number;
}

// base^exponent by squaring
template <class N>
MEGALODON_DEVICE N power(N base, std::int64_t exponent) {
  N result = from_real<N>(typename N::Part(1));
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) result = multiply(result, base);
    base = multiply(base, base);
  }
  return result;
}

}  // namespace megalodon::cuda
