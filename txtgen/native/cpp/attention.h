// Attention of one position over keys and values that lie in a cache.
#pragma once

#include <algorithm>

#include "cache.h"

inline float dot(const float* a, const float* b, int width) {
  Floats totals{};
  int i = 0;
  for (; i + LANES <= width; i += LANES) totals += load<Floats>(a + i) * load<Floats>(b + i);
  float total = sum(totals);
  for (; i < width; i++) total += a[i] * b[i];
  return total;
}

inline void softmax(float* scores, int count) {
  float most = scores[0], total = 0;
  for (int j = 1; j < count; j++) most = scores[j] > most ? scores[j] : most;
  Floats totals{};
  int j = 0;
  for (; j + LANES <= count; j += LANES) {
    Floats power = exponential(load<Floats>(scores + j) - most);
    store(scores + j, power);
    totals += power;
  }
  for (; j < count; j++) total += scores[j] = exponential(splat(scores[j] - most))[0];
  total += sum(totals);
  for (j = 0; j < count; j++) scores[j] /= total;
}

// Products of a query with the keys of a block, a position a lane.
template <class Number>
inline Floats look_at(const float* query, const Block<Number>& block) {
  constexpr int SUMS = 4;
  Floats sums[SUMS] = {};
  int k = 0;
  for (; k + SUMS <= block.width; k += SUMS)
    for (int i = 0; i < SUMS; i++) sums[i] += query[k + i] * Strip<Number>::vector(block.keys + Strip<Number>::numbers(k), i);
  for (; k < block.width; k++) sums[0] += query[k] * Strip<Number>::vector(block.keys, k);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The same for all positions from `start` to `stop`, times `scale`. What is written begins and ends with whole blocks:
// scores[j] is that of position j for j = start - start % LANES, and so on.
template <class Number>
inline void look(const float* query, const Cells<Number>& cells, int start, int stop, float scale, float* scores) {
  for (int j = start; j < stop;) {
    const int end = std::min(stop, j / LANES * LANES + LANES), row = cells.row_of(j);
    Floats found = scale * look_at(query, cells.block(row, j / LANES));
    if (j % LANES == 0)
      store(scores + j, found);
    else
      for (int lane = j % LANES; lane < LANES; lane++) scores[j - j % LANES + lane] = found[lane];
    // Positions of a block that lie in another row of the cache are looked at there.
    do j++;
    while (j < end && cells.row_of(j) == row);
  }
}

// COUNT vectors, from number `first` on, of the values from `start` to `stop`, each value times its share.
template <int COUNT, class Number>
inline void gather(const float* shares, const Cells<Number>& cells, int start, int stop, int first, float* out) {
  Floats sums[COUNT] = {};
  for (int j = start; j < stop; j++) {
    const Number* value = cells.block_of(j).value(j) + Strip<Number>::numbers(first);
    for (int v = 0; v < COUNT; v++) sums[v] += shares[j] * Strip<Number>::vector(value, v);
  }
  for (int v = 0, column = first * LANES; v < COUNT; v++, column += LANES)
    store_first(out + column, sums[v], cells.width - column);
}

template <class Number>
inline void gather(const float* shares, const Cells<Number>& cells, int start, int stop, float* out) {
  const int vectors = (cells.width + LANES - 1) / LANES;
  int first = 0;
  for (; first + 8 <= vectors; first += 8) gather<8>(shares, cells, start, stop, first, out);
  for (; first + 2 <= vectors; first += 2) gather<2>(shares, cells, start, stop, first, out);
  for (; first < vectors; first++) gather<1>(shares, cells, start, stop, first, out);
}
