// Attention of one position over keys and values that lie in a cache.
#pragma once

#include "vectors.h"

// Where the keys (or values) of one sequence and head lie: that of position j in row(j), the rows being `stride` apart.
// Sequences that begin alike, such as beams, share cells: each has a table that says whose cell it is.
struct Cells {
  const float* cells;
  size_t stride;
  const int32_t* rows;  // of each position; null: all in this one
  int row, width;
  const float* at(int position) const {
    return cells + (rows ? rows[position] : row) * stride + size_t(position) * width;
  }
};

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

// COUNT vectors of the values from `start` to `stop`, each times its share.
template <int COUNT>
inline void gather(const float* shares, const Cells& values, int start, int stop, int column, float* out) {
  Floats sums[COUNT] = {};
  for (int j = start; j < stop; j++) {
    const float* value = values.at(j) + column;
    for (int v = 0; v < COUNT; v++) sums[v] += shares[j - start] * load<Floats>(value + v * LANES);
  }
  for (int v = 0; v < COUNT; v++) store(out + column + v * LANES, sums[v]);
}

inline void gather(const float* shares, const Cells& values, int start, int stop, float* out) {
  int column = 0;
  for (; column + 8 * LANES <= values.width; column += 8 * LANES) gather<8>(shares, values, start, stop, column, out);
  for (; column + LANES <= values.width; column += LANES) gather<1>(shares, values, start, stop, column, out);
  for (; column < values.width; column++) {
    out[column] = 0;
    for (int j = start; j < stop; j++) out[column] += shares[j - start] * values.at(j)[column];
  }
}
