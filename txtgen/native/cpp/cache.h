// Keys and values in memory.
//
// A row of the cache has blocks of LANES positions for each head. In a block come the keys first: number k of all of them
// in one vector, a position a lane, so that a query meets LANES keys at once and nothing is added up across lanes. Then
// come the values, position by position.
#pragma once

#include "vectors.h"

// Vectors one after the other, of floats or of numbers in bfloat16. Two of the latter lie in one, in its low and its high
// halves.
template <class Number>
struct Strip {
  static constexpr int PER = sizeof(float) / sizeof(Number);
  static int numbers(int vectors) { return rounded_up(vectors, PER) * LANES; }
  static int place(int vector, int lane) { return (vector / PER * LANES + lane) * PER + vector % PER; }
  static Floats vector(const Number* strip, int number) {
    if constexpr (PER == 1)
      return load<Floats>(strip + number * LANES);
    else
      return half_of(load<Ints>(strip + number / 2 * 2 * LANES), number % 2);
  }
};

template <class Number>
inline Number narrowed(float number) {
  if constexpr (sizeof(Number) == sizeof(float)) return number;
  const uint32_t bits = load<uint32_t>(&number);
  return number == number ? Number((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;  // the nearest, ties to even
}

template <class Number>
struct Block {
  using Numbers = Strip<Number>;
  static int key_numbers(int width) { return Numbers::numbers(width); }
  static int value_numbers(int width) { return Numbers::numbers((width + LANES - 1) / LANES); }
  static size_t numbers(int width) { return key_numbers(width) + size_t(LANES) * value_numbers(width); }

  Number* keys;
  int width;
  Number* value(int position) const { return keys + key_numbers(width) + position % LANES * size_t(value_numbers(width)); }

  void put(int position, const float* key, const float* value) const {
    Number* to = this->value(position);
    for (int k = 0; k < width; k++) {
      keys[Numbers::place(k, position % LANES)] = narrowed<Number>(key[k]);
      to[Numbers::place(k / LANES, k % LANES)] = narrowed<Number>(value[k]);
    }
  }

  void copy(int position, const Block& from) const {
    for (int k = 0; k < width; k++) {
      const int place = Numbers::place(k, position % LANES);
      keys[place] = from.keys[place];
    }
    std::memcpy(value(position), from.value(position), value_numbers(width) * sizeof(Number));
  }
};

// The keys and values of one sequence and head. Sequences that begin alike, such as beams, share cells: each has a table
// that says for every position in whose row of the cache it is.
template <class Number>
struct Cells {
  Number* first;  // of the head, in row 0
  size_t stride;  // of the rows
  const int32_t* rows;  // of each position; null: all in this one
  int row, width;
  int row_of(int position) const { return rows ? rows[position] : row; }
  Block<Number> block(int row, int number) const {
    return {first + row * stride + number * Block<Number>::numbers(width), width};
  }
  Block<Number> block_of(int position) const { return block(row_of(position), position / LANES); }
};
