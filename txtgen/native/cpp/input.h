// Rows that matrices are multiplied with.
#pragma once

#include <memory>
#include <new>

#include "vectors.h"

constexpr int BLOCK = 32;  // inputs that share a scale, as in txtgen.model.quantize

// Memory that grows as needed and keeps nothing when it does.
template <class Number>
class Buffer {
 public:
  void reserve(size_t count) {
    if (count > size_) memory_.reset(new (std::align_val_t(64)) Number[size_ = count]);
  }
  Number* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(Number* memory) const { operator delete[](memory, std::align_val_t(64)); }
  };
  std::unique_ptr<Number[], Free> memory_;
  size_t size_ = 0;
};

// What matrices are multiplied with: rows of numbers, and for quantised weights the same in 8 bits with a scale a block.
// A row is rounded by itself, so that it does not depend on the others.
struct Input {
  int width;  // filled up with zeros to whole blocks
  float* values;
  int8_t* codes;
  int16_t* wide;  // the same if WIDENS, those of a block as Widened reads them
  float* scales;
  int32_t* sums;  // of the codes of each block

  float* row(int number) const { return values + size_t(number) * width; }

  void quantise(int row) const {
    for (size_t block = size_t(row) * (width / BLOCK), end = block + width / BLOCK; block < end; block++) {
      const float* from = values + block * BLOCK;
      int8_t* to = codes + block * BLOCK;
      Floats most{}, nothing{};
      for (int i = 0; i < BLOCK; i += LANES) {
        Floats x = load<Floats>(from + i);
        most = larger(most, absolute(x));
        nothing += x * 0.0f;  // not a number if x is none
      }
      float size = largest(most), scale = size > 0 ? 127 / size : 0;
      Ints totals{};
      for (int i = 0; i < BLOCK; i += LANES) {
        const Ints whole = rounded(load<Floats>(from + i) * scale);
        store(to + i, __builtin_convertvector(whole, FewBytes));
        totals += whole;
      }
      if constexpr (WIDENS)
        for (int late = 0; late < 2; late++)
          store(wide + block * BLOCK + late * (BLOCK / 2), widened(load<Bytes>(to), late));
      scales[block] = size / 127 + sum(nothing);
      sums[block] = sum(totals);
    }
  }
};

// The memory of an input.
class InputRoom {
 public:
  void reserve(int rows, int inputs) {
    size_t count = size_t(rows) * rounded_up(inputs, BLOCK);
    values_.reserve(count);
    codes_.reserve(count);
    if constexpr (WIDENS) wide_.reserve(count);
    scales_.reserve(count / BLOCK);
    sums_.reserve(count / BLOCK);
  }
  Input of_width(int inputs) const {
    return {rounded_up(inputs, BLOCK), values_.data(), codes_.data(), wide_.data(), scales_.data(), sums_.data()};
  }

 private:
  Buffer<float> values_, scales_;
  Buffer<int8_t> codes_;
  Buffer<int16_t> wide_;
  Buffer<int32_t> sums_;
};
