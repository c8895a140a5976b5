// Vectors as the compiler knows them (GCC's and Clang's vector extensions): the same code for AVX-512, AVX2, NEON and
// machines without any of them. The one instruction that they cannot express is `add_pair_products`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));  // twice as many

template <class Vector>
inline Vector load(const void* place) {
  Vector vector;
  std::memcpy(&vector, place, sizeof vector);
  return vector;
}

template <class Vector>
inline void store(void* place, Vector vector) {
  std::memcpy(place, &vector, sizeof vector);
}

inline Floats splat(float number) { return number - Floats{}; }
inline Ints splat(int32_t number) { return number - Ints{}; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats absolute(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }
inline Floats as_floats(Ints x) { return __builtin_convertvector(x, Floats); }

inline float sum(Floats x) {
  float lanes[LANES];
  store(lanes, x);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

inline float largest(Floats x) {
  float most = x[0];
  for (int lane = 1; lane < LANES; lane++) most = x[lane] > most ? x[lane] : most;
  return most;
}

inline int rounded_up(int number, int unit) { return (number + unit - 1) / unit * unit; }

// Two numbers of 16 bits in each lane, the earlier one in the low half; both kinds are the upper bits of a float.
inline Floats half_of(Ints both, bool late) { return (Floats)(late ? both & int32_t(0xffff0000) : both << 16); }

// Adding this to a number of moderate size rounds it to a whole one, which stands in the lowest bits of the result.
constexpr float ROUNDER = 12582912.0f;
inline Ints rounded(Floats x) { return (Ints)(x + ROUNDER) - (Ints)splat(ROUNDER); }

// For each lane, two products of neighbouring shorts, added to what is there.
inline Ints add_pair_products(Ints total, Shorts a, Shorts b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return total + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  total += (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
  asm("" : "+x"(total));  // GCC would first compute many products and run out of registers
  return total;
#elif defined(__SSE2__) && !defined(__AVX__)
  return total + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  Ints x = (Ints)a, y = (Ints)b;
  return total + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

// e^x to a few units in the last place: 2^n times a polynomial for what remains of x, |x - n ln 2| <= ln 2 / 2.
inline Floats exponential(Floats x) {
  x = smaller(splat(88.0f), larger(splat(-87.0f), x));  // in this order what is not a number stays so
  Ints n = rounded(x * 1.44269504f);
  Floats rest = x - as_floats(n) * 0.693359375f;
  rest = rest + as_floats(n) * 2.12194440e-4f;
  Floats value = splat(1.98756915e-4f);
  value = value * rest + 1.39819995e-3f;
  value = value * rest + 8.33345191e-3f;
  value = value * rest + 4.16657959e-2f;
  value = value * rest + 1.66666655e-1f;
  value = value * rest + 5.00000013e-1f;
  value = value * rest * rest + rest + 1.0f;
  return value * (Floats)((n + 127) << 23);
}

inline Floats hyperbolic_tangent(Floats x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// Source: Abramowitz and Stegun 1964, 7.1.26; the error is below 2e-7.
inline Floats error_function(Floats x) {
  Floats size = absolute(x), t = 1.0f / (1.0f + 0.3275911f * size);
  Floats tail = splat(1.061405429f);
  tail = tail * t - 1.453152027f;
  tail = tail * t + 1.421413741f;
  tail = tail * t - 0.284496736f;
  tail = tail * t + 0.254829592f;
  Floats value = 1.0f - tail * t * exponential(-size * size);
  return x < 0.0f ? -value : value;
}
