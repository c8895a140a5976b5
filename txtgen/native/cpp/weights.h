// Products of rows with matrices, whose weights are arranged so that they are read once, from front to back.
//
// A matrix [N,K] is cut into panels of PANEL outputs. In a panel all weights of input 0 come first, then those of input
// 1, and so on: outputs lie in lanes, and one input, spread over all lanes, meets the weights of a whole panel. Every
// output adds up its products in the order of the inputs, so that a result never depends on the other rows of a batch.
#pragma once

#include "input.h"
#include "team.h"

constexpr int VECTORS = 4;         // of a panel
constexpr int PANEL = VECTORS * LANES;
constexpr size_t PIECE_BYTES = 16384;  // of a panel, half of what the first cache holds

enum Kind { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4 };
inline bool is_quantised(int kind) { return kind >= INT8; }

struct Matrix {
  int32_t kind, rows, width;  // N outputs and K inputs; no rows: there is no such matrix
  const uint8_t* data;        // a bias for every output of every panel, then the panels
  int panels() const { return (rows + PANEL - 1) / PANEL; }
};

inline float widened(uint16_t number, int kind) {
  int32_t bits = int32_t(uint32_t(number) << 16);
  if (kind == FLOAT16) bits = bits >> 3 & int32_t(0x8fffffff);
  return load<float>(&bits) * (kind == FLOAT16 ? 0x1p112f : 1.0f);
}

struct Float32 {
  static constexpr int ROWS = 6, COUNT = 2, WORDS = BLOCK;
  static constexpr size_t PAIR_BYTES = 2 * PANEL * 4, BLOCK_BYTES = BLOCK / 2 * PAIR_BYTES;
  static Ints arranged(Ints words) { return words; }
  static Floats weights(const uint8_t* pair, bool late, int vector) {
    return load<Floats>(pair + (late * VECTORS + vector) * sizeof(Floats));
  }
};

struct BFloat16 {
  static constexpr int ROWS = 4, COUNT = 2, WORDS = BLOCK / 2;
  static constexpr size_t PAIR_BYTES = 2 * PANEL * 2, BLOCK_BYTES = BLOCK / 2 * PAIR_BYTES;
  static Ints arranged(Ints words) { return words; }
  static Floats weights(const uint8_t* pair, bool late, int vector) {
    return half_of(load<Ints>(pair + vector * sizeof(Ints)), late);
  }
};

struct Float16 {
  static constexpr int ROWS = 6, COUNT = 2;
  static constexpr size_t PAIR_BYTES = 2 * PANEL * 2, BLOCK_BYTES = BLOCK / 2 * PAIR_BYTES;
  // With its exponent moved to where a float has it, a number is 2^-112 of itself.
  static Floats weights(const uint8_t* pair, bool late, int vector) {
    return (Floats)((Ints)BFloat16::weights(pair, late, vector) >> 3 & int32_t(0x8fffffff)) * 0x1p112f;
  }
};

// Adds to `sums` the products of ROWS rows of the input, from one block to another, with COUNT vectors of a piece of a
// panel, which begins with that block.
template <class Format, int ROWS, int COUNT>
inline void add_products(const uint8_t* piece, int first, const Input& input, int row, int block, int end,
                         Floats (&sums)[ROWS][COUNT])
  requires(Format::PAIR_BYTES > 0)
{
  const float* x = input.values + size_t(row) * input.width;
  for (int k = block * BLOCK; k < end * BLOCK; k += 2, piece += Format::PAIR_BYTES)
    for (int late = 0; late < 2; late++) {
      Floats weights[COUNT];
      for (int v = 0; v < COUNT; v++) weights[v] = Format::weights(piece, late, first + v);
      for (int r = 0; r < ROWS; r++) {
        Floats number = splat(x[size_t(r) * input.width + k + late]);
        for (int v = 0; v < COUNT; v++) sums[r][v] += number * weights[v];
      }
    }
}

// Codes are bytes, four inputs of an output in a lane; those of 4 bits lie in the low halves of the bytes for four inputs,
// and in the high halves for the next four. Before those of a block come its scales.
struct Int8 {
  static constexpr int ROWS = 2, COUNT = 4, WORDS = BLOCK / 4;
  static constexpr int PER = 1, OFFSET = WEIGHT_OFFSET;
  static constexpr size_t BLOCK_BYTES = PANEL * 2 + BLOCK * PANEL;
  static Bytes codes(Bytes packed, int) { return packed; }
  static Ints arranged(Ints words) { return words ^ int32_t(OFFSET * 0x01010101u); }
};

struct Int4 {
  static constexpr int ROWS = 4, COUNT = 2, WORDS = BLOCK / 8;
  static constexpr int PER = 2, OFFSET = 8;
  static constexpr size_t BLOCK_BYTES = PANEL * 2 + BLOCK * PANEL / 2;
  static Bytes codes(Bytes packed, int which) { return (Bytes)((Shorts)packed >> 4 * which) & 15; }
  static Ints arranged(Ints words) { return apart(words & 0xffff) | apart(words >> 16 & 0xffff) << 4; }

 private:
  // Four codes of 4 bits, each into a byte of its own.
  static Ints apart(Ints codes) {
    codes = (codes | codes << 8) & 0x00ff00ff;
    return (codes | codes << 4) & 0x0f0f0f0f;
  }
};

// Adds to `sums` the products of a block of codes, times its scales and those of the input.
template <int ROWS, int COUNT, class Total>
inline void add_scaled(const uint8_t* scales, int first, const Input& input, int row, int block,
                       Floats (&sums)[ROWS][COUNT], Total total) {
  const int blocks = input.width / BLOCK;
  for (int v = 0; v < COUNT; v++) {
    const Floats scale = half_of(load<Ints>(scales + (first + v) / 2 * sizeof(Ints)), (first + v) % 2);
    for (int r = 0; r < ROWS; r++) {
      const size_t place = size_t(row + r) * blocks + block;
      sums[r][v] += as_floats(total(r, v, place)) * (scale * input.scales[place]);
    }
  }
}

template <class Format, int ROWS, int COUNT>
inline void add_products(const uint8_t* piece, int first, const Input& input, int row, int block, int end,
                         Floats (&sums)[ROWS][COUNT])
  requires(Format::PER > 0)
{
  for (; block < end; block++, piece += Format::BLOCK_BYTES) {
    const uint8_t* codes = piece + PANEL * 2;
    const int8_t* x = input.codes + size_t(row) * input.width + block * BLOCK;
    ByteProducts<Format::PER == 2> products[ROWS][COUNT];
    for (int number = 0; number < BLOCK / 4 / Format::PER; number++)
      for (int which = 0; which < Format::PER; which++)
        for (int v = 0; v < COUNT; v++) {
          const Bytes packed = load<Bytes>(codes + (number * VECTORS + first + v) * sizeof(Bytes));
          const Bytes weights = Format::codes(packed, which);
          for (int r = 0; r < ROWS; r++) {
            const int32_t four = load<int32_t>(x + size_t(r) * input.width + 4 * (number * Format::PER + which));
            products[r][v].add(weights, (Bytes)splat(four));
          }
        }
    add_scaled(piece, first, input, row, block, sums, [&](int r, int v, size_t place) {
      return products[r][v].totals() - Format::OFFSET * input.sums[place];
    });
  }
}

// Codes of 8 bits in 16, two inputs of an output in a lane: in a block first those of the inputs 0 and 2, 4 and 6 and so
// on, then those of 1 and 3, 5 and 7. The totals of a block, and so all results, are those of Int8.
struct Widened {
  static constexpr int ROWS = 2, COUNT = 4, PAIRS = BLOCK / 2;
  static constexpr size_t BLOCK_BYTES = PANEL * 2 + 2 * BLOCK * PANEL;
  static constexpr int PIECE = 8, LEAST_ROWS = 16;

  static void widen(const uint8_t* from, int blocks, uint8_t* to) {
    for (int block = 0; block < blocks; block++, from += Int8::BLOCK_BYTES, to += BLOCK_BYTES) {
      std::memcpy(to, from, PANEL * 2);
      for (int number = 0; number < PAIRS / 2 * VECTORS; number++)
        for (int late = 0; late < 2; late++)
          store(to + PANEL * 2 + (late * PAIRS / 2 * VECTORS + number) * sizeof(Shorts),
                widened(load<Bytes>(from + PANEL * 2 + number * sizeof(Bytes)), late));
    }
  }
};

template <class Format, int ROWS, int COUNT>
inline void add_products(const uint8_t* piece, int first, const Input& input, int row, int block, int end,
                         Floats (&sums)[ROWS][COUNT])
  requires(Format::PAIRS > 0)
{
  for (; block < end; block++, piece += Format::BLOCK_BYTES) {
    const uint8_t* codes = piece + PANEL * 2;
    const int16_t* x = input.wide + size_t(row) * input.width + block * BLOCK;
    for (int r = 0; r < ROWS; r++) __builtin_prefetch(x + size_t(ROWS + r) * input.width);
    Ints totals[ROWS][COUNT] = {};
#pragma GCC unroll 16
    for (int number = 0; number < Format::PAIRS; number++) {
      Shorts pairs[ROWS];
      for (int r = 0; r < ROWS; r++)
        pairs[r] = (Shorts)splat(load<int32_t>(x + size_t(r) * input.width + 2 * number));
      for (int v = 0; v < COUNT; v++) {
        Shorts weights = load<Shorts>(codes + (number * VECTORS + first + v) * sizeof(Shorts));
        hold_in_register(weights);
        for (int r = 0; r < ROWS; r++) {
          totals[r][v] += pair_products(pairs[r], weights);
          hold_in_register(totals[r][v]);
        }
      }
    }
    add_scaled(piece, first, input, row, block, sums, [&](int r, int v, size_t) { return totals[r][v]; });
  }
}

// The same for a whole panel: out [ROWS][PANEL], which begins at zero at block 0. Alone in a function, it gets the
// registers that it needs.
template <class Format, int ROWS>
[[gnu::noinline]] void multiply_rows(const uint8_t* piece, const Input& input, int row, int block, int end, float* out) {
  constexpr int COUNT = ROWS <= 2 ? VECTORS : Format::COUNT;
  for (int first = 0; first < VECTORS; first += COUNT) {
    Floats sums[ROWS][COUNT] = {};
    if (block > 0)
      for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < COUNT; v++) sums[r][v] = load<Floats>(out + r * PANEL + (first + v) * LANES);
    add_products<Format>(piece, first, input, row, block, end, sums);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < COUNT; v++) store(out + r * PANEL + (first + v) * LANES, sums[r][v]);
  }
}

// All rows with a piece of a panel. Meanwhile what follows from `next` on is fetched, `share` bytes with every row.
template <class Format>
void multiply_piece(const uint8_t* piece, const Input& input, int rows, int block, int end, float* out,
                    const uint8_t* next = nullptr, int share = 0) {
  constexpr int MOST = Format::ROWS * (REGISTERS / 16), LINE = 64;
  int row = 0;
  auto take = [&]<int ROWS>() {
    for (; row + ROWS <= rows; row += ROWS) {
      for (int place = rounded_up(row * share, LINE); place < (row + ROWS) * share; place += LINE)
        __builtin_prefetch(next + place);
      multiply_rows<Format, ROWS>(piece, input, row, block, end, out + row * PANEL);
    }
  };
  take.template operator()<MOST>();
  if constexpr (MOST > 4) take.template operator()<4>();
  take.template operator()<2>();
  take.template operator()<1>();
}

// All rows with a panel: out [rows][PANEL]. The panel is cut into pieces that stay in the first cache for all rows.
template <class Format>
void multiply(const uint8_t* panel, const Input& input, int rows, float* out) {
  constexpr int MOST = Format::ROWS * (REGISTERS / 16), PIECE = PIECE_BYTES / Format::BLOCK_BYTES;
  const int blocks = input.width / BLOCK, pieces = rows <= MOST ? 1 : (blocks + PIECE - 1) / PIECE;
  const int step = (blocks + pieces - 1) / pieces;  // all of about the same size
  for (int block = 0, end; block < blocks; block = end) {
    end = block + step < blocks ? block + step : blocks;
    multiply_piece<Format>(panel + block * Format::BLOCK_BYTES, input, rows, block, end, out);
  }
}

// The same for codes of 8 bits, which are widened first where that is worth it.
inline void multiply_codes(const uint8_t* panel, const Input& input, int rows, float* out) {
  if (!WIDENS || rows < Widened::LEAST_ROWS) return multiply<Int8>(panel, input, rows, out);
  alignas(64) uint8_t piece[Widened::PIECE * Widened::BLOCK_BYTES];
  const int blocks = input.width / BLOCK;
  for (int block = 0, end; block < blocks; block = end) {
    end = block + Widened::PIECE < blocks ? block + Widened::PIECE : blocks;
    Widened::widen(panel + block * Int8::BLOCK_BYTES, end - block, piece);
    // Widening reads a piece faster than it comes from memory by itself.
    const uint8_t* next = panel + end * Int8::BLOCK_BYTES;
    const int share = Widened::PIECE * Int8::BLOCK_BYTES / rows + 1;
    multiply_piece<Widened>(piece, input, rows, block, end, out, next, share);
  }
}

// What depends on the kind of the weights: the size of a block of a panel, and what multiplies with a panel.
struct Arithmetic {
  size_t block_bytes;
  void (*multiply)(const uint8_t* panel, const Input& input, int rows, float* out);
};

inline Arithmetic arithmetic_of(int kind) {
  switch (kind) {
    case FLOAT32: return {Float32::BLOCK_BYTES, multiply<Float32>};
    case BFLOAT16: return {BFloat16::BLOCK_BYTES, multiply<BFloat16>};
    case FLOAT16: return {Float16::BLOCK_BYTES, multiply<Float16>};
    case INT8: return {Int8::BLOCK_BYTES, multiply_codes};
    default: return {Int4::BLOCK_BYTES, multiply<Int4>};
  }
}

// Multiply rows with a matrix: use(row, column, Floats) is told every result, its bias added, LANES columns at a time;
// also the columns with which the last panel is filled up.
template <class Use>
void product(Worker& worker, const Matrix& matrix, const Input& input, int rows, Use use) {
  const Arithmetic arithmetic = arithmetic_of(matrix.kind);
  const size_t panel_bytes = input.width / BLOCK * arithmetic.block_bytes;
  const float* bias = (const float*)matrix.data;
  const uint8_t* panels = matrix.data + size_t(matrix.panels()) * PANEL * 4;
  static thread_local Buffer<float> sums;
  sums.reserve(size_t(rows) * PANEL);
  float* out = sums.data();
  worker.each(matrix.panels(), [&](int panel) {
    arithmetic.multiply(panels + panel * panel_bytes, input, rows, out);
    for (int row = 0; row < rows; row++)
      for (int column = 0; column < PANEL; column += LANES)
        use(row, panel * PANEL + column,
            load<Floats>(out + row * PANEL + column) + load<Floats>(bias + panel * PANEL + column));
  });
}

// ---- Arranging weights: from rows [N,K] as torch has them.

inline size_t packed_bytes(int kind, int rows, int width) {
  int panels = (rows + PANEL - 1) / PANEL;
  return panels * (size_t(PANEL) * 4 + rounded_up(width, BLOCK) / BLOCK * arithmetic_of(kind).block_bytes);
}

struct Rows {
  int32_t kind, rows, width;
  const void* weights;  // or codes
  const float* scales;  // [N,ceil(K/BLOCK)]
  const float* bias;    // or null
};

// Every format keeps 32 bits of a row in a lane: one weight or several neighbours, WORDS times a block. So LANES rows are
// read word by word, and each time a whole vector is written.
template <class Format>
void pack_panel(const Rows& from, int first, uint8_t* panel) {
  constexpr size_t WORDS = Format::WORDS, SCALES = Format::BLOCK_BYTES - WORDS * PANEL * 4;
  const size_t row_bytes = (from.width * WORDS + 7) / 8, whole = row_bytes / 4;
  for (int output = 0; output < PANEL && first + output < from.rows; output += LANES) {
    const uint8_t* rows[LANES];
    Ints there;  // all bits, or none where the matrix has no such row
    for (int lane = 0; lane < LANES; lane++) {
      const int row = first + output + lane, last = from.rows - 1;
      rows[lane] = (const uint8_t*)from.weights + (row < last ? row : last) * row_bytes;
      there[lane] = row <= last ? -1 : 0;
    }
    auto put = [&](size_t number, Ints words) {
      uint8_t* block = panel + number / WORDS * Format::BLOCK_BYTES + SCALES;
      store(block + (number % WORDS * PANEL + output) * 4, Format::arranged(words) & there);
    };
    for (size_t number = 0; number < whole; number++) {
      Ints words;
      for (int lane = 0; lane < LANES; lane++) words[lane] = load<int32_t>(rows[lane] + number * 4);
      put(number, words);
    }
    if (row_bytes % 4) {
      int32_t words[LANES] = {};
      for (int lane = 0; lane < LANES; lane++) std::memcpy(words + lane, rows[lane] + whole * 4, row_bytes % 4);
      put(whole, load<Ints>(words));
    }
  }
}

template <class Format>
void pack_scales(const Rows& from, int first, uint8_t* panel) {
  const int blocks = (from.width + BLOCK - 1) / BLOCK;
  for (int output = 0; output < PANEL && first + output < from.rows; output++) {
    const int vector = output / LANES, place = (vector / 2 * LANES + output % LANES) * 2 + vector % 2;
    for (int block = 0; block < blocks; block++) {
      const uint32_t scale = load<uint32_t>(from.scales + size_t(first + output) * blocks + block);
      ((uint16_t*)(panel + block * Format::BLOCK_BYTES))[place] = uint16_t(scale >> 16);
    }
  }
}

inline void pack(Worker& worker, const Rows& from, uint8_t* out) {
  const int panels = (from.rows + PANEL - 1) / PANEL;
  const size_t size = rounded_up(from.width, BLOCK) / BLOCK * arithmetic_of(from.kind).block_bytes;
  worker.each(panels, [&](int number) {
    float* bias = (float*)out + size_t(number) * PANEL;
    for (int output = 0; output < PANEL; output++) {
      int row = number * PANEL + output;
      bias[output] = from.bias && row < from.rows ? from.bias[row] : 0.0f;
    }
    uint8_t* panel = out + size_t(panels) * PANEL * 4 + number * size;
    std::memset(panel, 0, size);
    switch (from.kind) {
      case FLOAT32: return pack_panel<Float32>(from, number * PANEL, panel);
      case INT8: pack_scales<Int8>(from, number * PANEL, panel); return pack_panel<Int8>(from, number * PANEL, panel);
      case INT4: pack_scales<Int4>(from, number * PANEL, panel); return pack_panel<Int4>(from, number * PANEL, panel);
      default: return pack_panel<BFloat16>(from, number * PANEL, panel);
    }
  });
}
