// What search asks of the scores of the next token, a row each.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "team.h"
#include "vectors.h"

inline float largest_of(const float* row, int width) {
  Floats most = splat(row[0]);
  int i = 0;
  for (; i + LANES <= width; i += LANES) most = larger(load<Floats>(row + i), most);
  float found = largest(most);
  for (; i < width; i++) found = row[i] > found ? row[i] : found;
  return found;
}

// The logarithm of the sum of e^score; not finite if a score is nan or +inf, or if all are -inf.
inline float log_normaliser(const float* row, int width) {
  const float most = largest_of(row, width);
  Floats totals{};
  int i = 0;
  for (; i + LANES <= width; i += LANES) totals += exponential(load<Floats>(row + i) - most);
  double total = sum(totals);
  for (; i < width; i++) total += exponential(splat(row[i] - most))[0];
  return most + float(std::log(total));
}

// The place of the best score, the first of equals.
inline int64_t best_of(const float* row, int width) {
  const float most = largest_of(row, width);
  for (int i = 0; i < width; i++)
    if (row[i] == most) return i;
  return 0;
}
