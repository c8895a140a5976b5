// Vectors as the compiler knows them (GCC's and Clang's vector extensions): the same code for AVX-512, AVX2, NEON and
// machines without any of them. What they cannot express is products of bytes, `ByteProducts`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
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
typedef int8_t Bytes __attribute__((vector_size(4 * LANES)));    // four times as many
typedef int8_t FewBytes __attribute__((vector_size(LANES)));     // as many as there are lanes

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

// As many lanes as there is room for.
inline void store_first(float* place, Floats vector, int room) {
  if (room >= LANES)
    store(place, vector);
  else if (room > 0)
    std::memcpy(place, &vector, room * sizeof(float));
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

inline int32_t sum(Ints x) {
  int32_t total = 0;
  for (int lane = 0; lane < LANES; lane++) total += x[lane];
  return total;
}

#if defined(__AVX512BW__) && !defined(__AVX512VNNI__)
inline Shorts pair_products(Bytes a, Bytes b) { return (Shorts)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
inline Ints pair_sums(Shorts x) { return (Ints)_mm512_madd_epi16((__m512i)x, _mm512_set1_epi16(1)); }
inline Bytes absolute(Bytes x) { return (Bytes)_mm512_abs_epi8((__m512i)x); }
inline Bytes with_sign(Bytes a, Bytes x) {
  return (Bytes)_mm512_mask_sub_epi8((__m512i)a, _mm512_movepi8_mask((__m512i)x), __m512i{}, (__m512i)a);
}
#elif defined(__AVX2__) && !defined(__AVX512BW__)
inline Shorts pair_products(Bytes a, Bytes b) { return (Shorts)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
inline Ints pair_products(Shorts a, Shorts b) { return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
inline Ints pair_sums(Shorts x) { return pair_products(x, Shorts{} + int16_t(1)); }
inline Bytes absolute(Bytes x) { return (Bytes)_mm256_abs_epi8((__m256i)x); }
inline Bytes with_sign(Bytes a, Bytes x) { return (Bytes)_mm256_sign_epi8((__m256i)a, (__m256i)x); }
#endif

// GCC would load a vector again, or compute many before it adds them up and run out of registers.
template <class Vector>
inline void hold_in_register([[maybe_unused]] Vector& x) {
#if defined(__AVX2__)
  asm("" : "+v"(x));
#endif
}

// Sums of products of four neighbouring bytes, in each lane: of weights, and of numbers of -127 ... 127. Weights are
// -127 ... 127 with WEIGHT_OFFSET added, or if they are SMALL 0 ... 15, and then no more than eight times four are added.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int WEIGHT_OFFSET = 128;
template <bool SMALL>
struct ByteProducts {
  Ints sums{};
  void add(Bytes weights, Bytes x) { sums = (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)x); }
  Ints totals() const { return sums; }
};
#elif defined(__AVX2__)
constexpr int WEIGHT_OFFSET = 0;
template <bool SMALL>
struct ByteProducts {
  std::conditional_t<SMALL, Shorts, Ints> sums{};
  void add(Bytes weights, Bytes x) {
    if constexpr (SMALL)
      sums += pair_products(weights, x);  // at most 8 * 2 * 15 * 127, which 16 bits can hold
    else  // The first operand must not be negative; 2 * 127 * 127 fits 16 bits.
      sums += pair_sums(pair_products(absolute(x), with_sign(weights, x)));
    hold_in_register(sums);
  }
  Ints totals() const {
    if constexpr (SMALL) return pair_sums(sums);
    else return sums;
  }
};
#else
constexpr int WEIGHT_OFFSET = 0;
template <bool SMALL>
struct ByteProducts {
  Ints sums{};
  void add(Bytes weights, Bytes x) {
#if defined(__ARM_FEATURE_DOTPROD)
    sums = (Ints)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)x);
#else
    const Ints a = (Ints)weights, b = (Ints)x;
    for (int bits = 0; bits < 32; bits += 8) sums += (a << (24 - bits) >> 24) * (b << (24 - bits) >> 24);
#endif
  }
  Ints totals() const { return sums; }
};
#endif

// Whether products of bytes take so many instructions that for many rows their halves, widened to 16 bits, are quicker.
#if defined(__AVX2__) && !defined(__AVX512BW__)
constexpr bool WIDENS = true;
#else
constexpr bool WIDENS = false;
inline Ints pair_products(Shorts a, Shorts) { return (Ints)a; }  // never called
#endif

// The bytes of each lane in 16 bits: the first and the third, or the second and the fourth.
inline Shorts widened(Bytes bytes, bool late) { return late ? (Shorts)bytes >> 8 : (Shorts)bytes << 8 >> 8; }

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
