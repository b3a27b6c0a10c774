// Vectors of floats, as wide as the processor's, that load from and store to float and bfloat16.
//
// The order of the operations on a row must follow from its own length and position alone, never from its batch mates,
// its chunk or the number of threads: the same row has the same bits always (tests/engine/test_exactness.py). So sums
// over lanes are trees of one shape, and products are joined to sums by `fused` only (-ffp-contract=off).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using Floats = float __attribute__((vector_size(LANES * 4)));
using Ints = int32_t __attribute__((vector_size(LANES * 4)));
using Halves = uint16_t __attribute__((vector_size(LANES * 2)));
using bfloat16 = uint16_t;

inline Floats load(const float *from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Floats load(const bfloat16 *from) {
  Halves value;
  std::memcpy(&value, from, sizeof value);
  return (Floats)(__builtin_convertvector(value, Ints) << 16);
}

inline void store(float *to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline void store(bfloat16 *to, Floats value) {  // to the nearest, ties to even
  const Ints bits = (Ints)value;
  const Halves rounded = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
  std::memcpy(to, &rounded, sizeof rounded);
}

// a * b + c. Written out and never left to the compiler, which joins a product and a sum in one place and not in another.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Floats all(float value) { return Floats{} + value; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

template <int DISTANCE, int... LANE>
inline Floats swapped(Floats a, std::integer_sequence<int, LANE...>) {
  return __builtin_shufflevector(a, a, (LANE ^ DISTANCE)...);
}

using Every = std::make_integer_sequence<int, LANES>;

inline float sum(Floats a) {
  if constexpr (LANES >= 16) a += swapped<8>(a, Every{});
  if constexpr (LANES >= 8) a += swapped<4>(a, Every{});
  a += swapped<2>(a, Every{});
  a += swapped<1>(a, Every{});
  return a[0];
}

inline float largest(Floats a) {
  if constexpr (LANES >= 16) a = larger(a, swapped<8>(a, Every{}));
  if constexpr (LANES >= 8) a = larger(a, swapped<4>(a, Every{}));
  a = larger(a, swapped<2>(a, Every{}));
  a = larger(a, swapped<1>(a, Every{}));
  return a[0];
}

// e^x for x up to 88, and e^88 beyond: a power of two times a polynomial on half of ln 2 to both sides. 0 below the
// normal numbers.
inline Floats exponential(Floats x) {
  const Floats bounded = smaller(larger(x, all(-87.0f)), all(88.0f));
  const Floats shifted = fused(bounded, all(1.44269504f), all(12582912.0f));  // 1.5 * 2^23: its last bits are the integer
  const Floats power = shifted - 12582912.0f;
  const Floats rest = fused(power, all(-1.42860677e-6f), fused(power, all(-0.693145752f), bounded));
  Floats y = all(1.0f / 720);
  y = fused(y, rest, all(1.0f / 120));
  y = fused(y, rest, all(1.0f / 24));
  y = fused(y, rest, all(1.0f / 6));
  y = fused(y, rest, all(0.5f));
  y = fused(y, rest, all(1.0f));
  y = fused(y, rest, all(1.0f));
  const Floats scaled = (Floats)((Ints)y + ((Ints)shifted << 23));
  return x < -87.0f ? Floats{} : scaled;
}

// Heads of a token side by side: those of queries, of keys and of values.
struct Heads {
  int64_t queries, keys, size;
  int64_t row() const { return (queries + 2 * keys) * size; }
};

}  // namespace
