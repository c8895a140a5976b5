// A stack of Transformer layers over some tokens: what txtgen.model.transformer does, once for all rows and in one go.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention.h"
#include "weights.h"

enum Activation { RELU, RELU_SQUARED, GELU, GELU_TANH, SILU };

// The structures below are filled in by txtgen/model/native.py, field by field.

struct Table {  // vectors of tokens, a row each
  int32_t kind, count, width;
  const void* rows;     // numbers or codes
  const float* scales;  // of codes
};

struct Norm {
  const float *weight, *bias;  // without a weight there is no norm, without a bias none is added
};

struct Layer {
  Norm attention_norm, cross_norm, feed_forward_norm;
  const float *query_norm, *key_norm, *cross_query_norm, *cross_key_norm;
  Matrix queries_keys_values, attention_output;
  Matrix cross_queries, cross_keys_values, cross_output;
  Matrix gate, up, down;
  const Matrix* hidden;
  int32_t num_hidden;
  int32_t window;  // 0: all positions are seen
};

struct Stack {
  int32_t width, heads, groups, head_width, num_layers;
  int32_t rms, post_norm, activation, scaled_output, short_cells;  // of the cache: in bfloat16
  float eps, attention_scale, embedding_scale, softcap;
  const Layer* layers;
  Table tokens, ngrams;
  int32_t ngram_order, ngram_buckets;
  const float* positions;          // added to the embeddings, [.., D], or null
  const float *cosines, *sines;    // of rotations, [..,K], or null
  const float* slopes;             // of ALiBi, [H], or null
  const float* distance_scores;    // [H,2*reach+1], for keys from `reach` before to `reach` after a position, or null
  int32_t reach;
  Norm embedding_norm, final_norm;
  Matrix head;

  size_t block_bytes() const {
    return short_cells ? Block<uint16_t>::numbers(head_width) * 2 : Block<float>::numbers(head_width) * 4;
  }

  // Those of one sequence and group, in a cache of so many positions.
  template <class Number>
  Cells<Number> cells(void* cache, int group, int capacity, const int32_t* rows, int home) const {
    const size_t stride = (capacity + LANES - 1) / LANES * Block<Number>::numbers(head_width);
    return {(Number*)cache + group * stride, groups * stride, rows, home, head_width};
  }

  // use(0) with the kind of number that a cell has.
  template <class Use>
  void with_number(Use use) const {
    short_cells ? use(uint16_t{}) : use(float{});
  }
};

// What one call reads: a token a row. Rows of one sequence stand in order.
struct Call {
  int32_t rows, one_each;  // one_each: no sequence has a second row
  const int64_t* tokens;
  const int32_t* sequences;  // null: row i is of sequence i
  const int32_t* positions;
  const int32_t* stops;    // positions from here on are not seen; null: those after the row's own
  const int64_t* history;  // tokens of each sequence, [..,capacity], for n-grams
  int32_t capacity;        // positions of a sequence in the cache
  void* const* cache;      // of each layer: [..,G] blocks that hold so many positions
  const int32_t* homes;  // the row of the cache that each sequence is written to
  const int32_t* cells;  // [..,capacity], the row of the cache where each position lies; null: all in the home
  int32_t source_capacity;
  void* const* source_cache;
  const int32_t *sources, *source_lengths;  // the source of each sequence, the length of each source
  int32_t num_wanted, vectors;  // vectors: what logits are computed from is wanted in their place
  const int32_t* wanted;        // of these rows; null: of the first num_wanted
  float* out;                   // [num_wanted,V], or [num_wanted,D]

  int sequence(int row) const { return sequences ? sequences[row] : row; }
  int stop(int row) const { return stops ? stops[row] : positions[row] + 1; }
};

// Copy all that sequences see in the cache of a call, whose positions are their lengths, into another cache of the same
// capacity, in which each has a row of its own.
inline void copy_cells(Worker& worker, const Stack& stack, const Call& call, void* const* to) {
  worker.each(call.rows * stack.num_layers, [&](int task) {
    const int row = task / stack.num_layers, layer = task % stack.num_layers;
    const int32_t* rows = call.cells ? call.cells + size_t(row) * call.capacity : nullptr;
    stack.with_number([&]<class Number>(Number) {
      for (int group = 0; group < stack.groups; group++) {
        const auto from = stack.cells<Number>(call.cache[layer], group, call.capacity, rows, call.homes[row]);
        const auto cells = stack.cells<Number>(to[layer], group, call.capacity, nullptr, row);
        for (int j = 0; j < call.positions[row]; j++) cells.block_of(j).copy(j, from.block_of(j));
      }
    });
  });
}

// Add the vector of a token, times `factor`, to `out`.
inline void add_vector(const Table& table, int64_t token, float factor, float* out) {
  const size_t start = size_t(token) * table.width;
  for (int i = 0; i < table.width; i++) {
    float number;
    switch (table.kind) {
      case FLOAT32: number = ((const float*)table.rows)[start + i]; break;
      case BFLOAT16:
      case FLOAT16: number = widened(((const uint16_t*)table.rows)[start + i], table.kind); break;
      case INT8: number = ((const int8_t*)table.rows)[start + i]; break;
      default: number = (((const uint8_t*)table.rows)[size_t(token) * ((table.width + 1) / 2) + i / 2] >> i % 2 * 4 & 15) - 8;
    }
    if (table.scales) number *= table.scales[size_t(token) * ((table.width + BLOCK - 1) / BLOCK) + i / BLOCK];
    out[i] += number * factor;
  }
}

// The n-grams that end at a token, as txtgen.model.ngrams hashes them.
inline void add_ngrams(const Stack& stack, const int64_t* tokens, int position, float* out) {
  int64_t hash = tokens[position] + 1;
  for (int back = 1; back < stack.ngram_order; back++) {
    int64_t before = position >= back ? tokens[position - back] + 1 : 0;
    hash = (hash * 1000003 + before) % 2147483647;
    add_vector(stack.ngrams, hash % stack.ngram_buckets + int64_t(back - 1) * stack.ngram_buckets, 1.0f, out);
  }
}

inline void normalise(const float* x, int width, const Norm& norm, bool rms, float eps, float* out) {
  float mean = 0, squares = 0;
  if (!rms) {
    for (int i = 0; i < width; i++) out[i] = 1;
    mean = dot(x, out, width) / width;
  }
  for (int i = 0; i < width; i++) out[i] = x[i] - mean;
  squares = dot(out, out, width);
  const float scale = 1 / std::sqrt(squares / width + eps);
  for (int i = 0; i < width; i++) out[i] *= scale * norm.weight[i];
  if (norm.bias)
    for (int i = 0; i < width; i++) out[i] += norm.bias[i];
}

// Turn a head by its position: column i against column i + K/2.
inline void rotate(float* head, int width, const float* cosines, const float* sines) {
  for (int i = 0, j = width / 2; j < width; i++, j++) {
    float a = head[i], b = head[j];
    head[i] = a * cosines[i] + b * sines[i];
    head[j] = b * cosines[j] + a * sines[j];
  }
}

inline Floats activated(Floats x, int activation) {
  switch (activation) {
    case RELU: return larger(x, Floats{});
    case RELU_SQUARED: return larger(x, Floats{}) * larger(x, Floats{});
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
    default: return x / (1.0f + exponential(-x));
  }
}

// Rows of floats, each filled up so that whole panels can be written.
struct Grid {
  Buffer<float> numbers;
  int stride = 0;
  void reserve(int rows, int width) {
    stride = rounded_up(width, 4 * 16);
    numbers.reserve(size_t(rows) * stride);
  }
  float* row(int number) const { return numbers.data() + size_t(number) * stride; }
};

// What is computed on the way, shared by the workers.
struct Scratch {
  Grid x, projected, gathered, hidden[2];
  InputRoom input;
};

// One worker's part in reading some tokens. All workers go through the same steps together.
class Pass {
 public:
  Pass(const Stack& stack, const Call& call, Scratch& scratch, Worker& worker)
      : stack_(stack), call_(call), scratch_(scratch), worker_(worker) {}

  static void reserve(const Stack& stack, const Call& call, Scratch& scratch) {
    int hidden = 0, heads = stack.heads * stack.head_width, groups = stack.groups * stack.head_width;
    for (int number = 0; number < stack.num_layers; number++) hidden = std::max(hidden, stack.layers[number].up.rows);
    scratch.x.reserve(call.rows, stack.width);
    scratch.projected.reserve(call.rows, heads + 2 * groups);
    scratch.gathered.reserve(call.rows, heads);
    for (Grid& grid : scratch.hidden) grid.reserve(call.rows, hidden);
    scratch.input.reserve(call.rows, std::max({stack.width, heads, hidden}));
  }

  void read() {
    worker_.each(call_.rows, [&](int row) { embed(row); });
    for (int number = 0; number < stack_.num_layers; number++) {
      const Layer& layer = stack_.layers[number];
      attend_to_itself(layer, number);
      if (layer.cross_queries.rows) attend_to_source(layer, number);
      feed_forward(layer);
    }
    call_.vectors ? write_vectors() : write_logits(before(stack_.final_norm));
  }

  // Logits of vectors that were written before, [rows,D].
  void score(const float* vectors) {
    worker_.each(call_.rows, [&](int row) { std::copy_n(vectors + size_t(row) * stack_.width, stack_.width, x(row)); });
    write_logits({});
  }

  // Keep keys and values of an encoded source, [rows,D].
  void remember_source(const float* encoded) {
    const int groups = stack_.groups * stack_.head_width;
    worker_.each(call_.rows, [&](int row) { std::copy_n(encoded + size_t(row) * stack_.width, stack_.width, x(row)); });
    for (int number = 0; number < stack_.num_layers; number++) {
      const Layer& layer = stack_.layers[number];
      const Input input = prepare(scratch_.x, stack_.width, {}, layer.cross_keys_values);
      project(layer.cross_keys_values, input);
      worker_.each(call_.rows, [&](int row) {
        float* keys = scratch_.projected.row(row);
        for (int group = 0; group < stack_.groups; group++)
          keep(keys + group * stack_.head_width, keys + groups + group * stack_.head_width, layer.cross_key_norm, false,
               row, group, call_.source_cache[number], call_.source_capacity);
      });
    }
  }

 private:
  float* x(int row) const { return scratch_.x.row(row); }

  void embed(int row) {
    float* out = x(row);
    const int position = call_.positions[row];
    std::fill_n(out, scratch_.x.stride, 0.0f);
    add_vector(stack_.tokens, call_.tokens[row], stack_.embedding_scale, out);
    if (stack_.ngram_order)
      add_ngrams(stack_, call_.history + size_t(call_.sequence(row)) * call_.capacity, position, out);
    if (stack_.positions)
      for (int i = 0; i < stack_.width; i++) out[i] += stack_.positions[size_t(position) * stack_.width + i];
    normalise_in_place(stack_.embedding_norm, row);
  }

  void normalise_in_place(const Norm& norm, int row) {
    if (!norm.weight) return;
    static thread_local std::vector<float> before;
    before.assign(x(row), x(row) + stack_.width);
    normalise(before.data(), stack_.width, norm, stack_.rms, stack_.eps, x(row));
  }

  // What a matrix reads of some rows (all of them, or those that `which` names): normalised, if there is a norm, and in
  // 8 bits if that is what the matrix is made for. Of a row or two every worker makes its own copy, which is sooner done
  // than the others are waited for.
  Input prepare(const Grid& from, int width, const Norm& norm, const Matrix& matrix, int rows, const int32_t* which,
                float factor) {
    static thread_local InputRoom own;
    const bool alone = rows <= 2;
    if (alone) own.reserve(rows, width);
    const Input input = (alone ? own : scratch_.input).of_width(width);
    auto prepare_row = [&](int row) {
      const float* numbers = from.row(which ? which[row] : row);
      float* out = input.row(row);
      if (norm.weight)
        normalise(numbers, width, norm, stack_.rms, stack_.eps, out);
      else
        std::copy_n(numbers, width, out);
      if (factor != 1.0f)
        for (int i = 0; i < width; i++) out[i] *= factor;
      std::fill(out + width, out + input.width, 0.0f);
      if (is_quantised(matrix.kind)) input.quantise(row);
    };
    if (alone && !worker_.late())
      for (int row = 0; row < rows; row++) prepare_row(row);
    if (!alone)
      worker_.each(rows, prepare_row);
    return input;
  }

  Input prepare(const Grid& from, int width, const Norm& norm, const Matrix& matrix) {
    return prepare(from, width, norm, matrix, call_.rows, nullptr, 1.0f);
  }

  void project(const Matrix& matrix, const Input& input) {
    product(worker_, matrix, input, call_.rows,
            [&](int row, int column, Floats y) { store(scratch_.projected.row(row) + column, y); });
  }

  // A block reads x, normalised if the norm comes before; its last matrix adds to x what it makes of `from`.
  Norm before(const Norm& norm) const { return stack_.post_norm ? Norm{} : norm; }

  void add_to_x(const Matrix& matrix, const Grid& from, int width, const Norm& norm) {
    const Input input = prepare(from, width, {}, matrix);
    product(worker_, matrix, input, call_.rows, [&](int row, int column, Floats y) {
      float* place = x(row) + column;
      store(place, load<Floats>(place) + y);
    });
    if (stack_.post_norm) worker_.each(call_.rows, [&](int row) { normalise_in_place(norm, row); });
  }

  void attend_to_itself(const Layer& layer, int number) {
    const int groups = stack_.groups;
    project(layer.queries_keys_values,
            prepare(scratch_.x, stack_.width, before(layer.attention_norm), layer.queries_keys_values));
    auto keep_one = [&](int row, int group) {
      float* keys = scratch_.projected.row(row) + (stack_.heads + group) * stack_.head_width;
      keep(keys, keys + groups * stack_.head_width, layer.key_norm, true, row, group, call_.cache[number], call_.capacity);
    };
    // Where several rows belong to one sequence, all of them must be kept before one is looked at.
    if (!call_.one_each) worker_.each(call_.rows * groups, [&](int task) { keep_one(task / groups, task % groups); });
    worker_.each(call_.rows * groups, [&](int task) {
      const int row = task / groups, group = task % groups;
      if (call_.one_each) keep_one(row, group);
      const int sequence = call_.sequence(row), position = call_.positions[row], stop = call_.stop(row);
      const int start = layer.window ? std::max(0, position - layer.window + 1) : 0;
      const int32_t* rows = call_.cells ? call_.cells + size_t(sequence) * call_.capacity : nullptr;
      const int per_group = stack_.heads / groups;
      for (int head = group * per_group; head < (group + 1) * per_group; head++)
        attend(layer.query_norm, true, row, head, call_.cache[number], call_.capacity, rows, call_.homes[sequence], start, stop);
    });
    add_to_x(layer.attention_output, scratch_.gathered, stack_.heads * stack_.head_width, layer.attention_norm);
  }

  void attend_to_source(const Layer& layer, int number) {
    project(layer.cross_queries, prepare(scratch_.x, stack_.width, before(layer.cross_norm), layer.cross_queries));
    worker_.each(call_.rows * stack_.heads, [&](int task) {
      const int row = task / stack_.heads, source = call_.sources[call_.sequence(row)];
      attend(layer.cross_query_norm, false, row, task % stack_.heads, call_.source_cache[number], call_.source_capacity,
             nullptr, source, 0, call_.source_lengths[source]);
    });
    add_to_x(layer.cross_output, scratch_.gathered, stack_.heads * stack_.head_width, layer.cross_norm);
  }

  // What a head of a row gathers from positions `start` to `stop`; within the row's own sequence it knows their distance.
  void attend(const float* norm, bool own, int row, int head, void* cache, int capacity, const int32_t* rows, int home,
              int start, int stop) {
    const int width = stack_.head_width, position = call_.positions[row];
    float* query = scratch_.projected.row(row) + head * width;
    if (norm) normalise_head(query, norm);
    if (own) turn(query, position);
    static thread_local Buffer<float> room;
    room.reserve(rounded_up(stop, LANES));
    float* scores = room.data();
    stack_.with_number([&]<class Number>(Number) {
      const auto cells = stack_.cells<Number>(cache, head / (stack_.heads / stack_.groups), capacity, rows, home);
      look(query, cells, start, stop, stack_.attention_scale, scores);
      if (own) add_distances(scores, head, position, start, stop);
      softmax(scores + start, stop - start);
      gather(scores, cells, start, stop, scratch_.gathered.row(row) + head * width);
    });
  }

  // Put a row's key and value of one group, which are changed on the way, into its cell.
  void keep(float* key, const float* value, const float* norm, bool own, int row, int group, void* cache, int capacity) {
    const int position = call_.positions[row], home = call_.homes[call_.sequence(row)];
    if (norm) normalise_head(key, norm);
    if (own) turn(key, position);
    stack_.with_number([&]<class Number>(Number) {
      stack_.cells<Number>(cache, group, capacity, nullptr, home).block_of(position).put(position, key, value);
    });
  }

  void turn(float* head, int position) const {
    const size_t start = size_t(position) * stack_.head_width;
    if (stack_.cosines) rotate(head, stack_.head_width, stack_.cosines + start, stack_.sines + start);
  }

  void normalise_head(float* head, const float* weight) {
    const float scale = 1 / std::sqrt(dot(head, head, stack_.head_width) / stack_.head_width + stack_.eps);
    for (int i = 0; i < stack_.head_width; i++) head[i] *= scale * weight[i];
  }

  void add_distances(float* scores, int head, int position, int start, int stop) {
    if (stack_.slopes)
      for (int j = start; j < stop; j++) scores[j] -= stack_.slopes[head] * std::abs(position - j);
    if (stack_.distance_scores) {
      const float* centre = stack_.distance_scores + size_t(head) * (2 * stack_.reach + 1) + stack_.reach;
      for (int j = start; j < stop; j++) scores[j] += centre[std::clamp(j - position, -stack_.reach, stack_.reach)];
    }
  }

  void feed_forward(const Layer& layer) {
    const int activation = stack_.activation;
    Grid *hidden = &scratch_.hidden[0], *next = &scratch_.hidden[1];
    const Input input = prepare(scratch_.x, stack_.width, before(layer.feed_forward_norm), layer.up);
    if (layer.gate.rows)
      product(worker_, layer.gate, input, call_.rows,
              [&](int row, int column, Floats y) { store(next->row(row) + column, activated(y, activation)); });
    product(worker_, layer.up, input, call_.rows, [&](int row, int column, Floats y) {
      Floats made = layer.gate.rows ? y * load<Floats>(next->row(row) + column) : activated(y, activation);
      store(hidden->row(row) + column, made);
    });
    for (int number = 0; number < layer.num_hidden; number++, std::swap(hidden, next))
      product(worker_, layer.hidden[number], prepare(*hidden, layer.up.rows, {}, layer.hidden[number]), call_.rows,
              [&](int row, int column, Floats y) { store(next->row(row) + column, activated(y, activation)); });
    add_to_x(layer.down, *hidden, layer.up.rows, layer.feed_forward_norm);
  }

  void write_logits(const Norm& norm) {
    const float factor = stack_.scaled_output ? 1 / std::sqrt(float(stack_.width)) : 1.0f, cap = stack_.softcap;
    const Input input =
        prepare(scratch_.x, stack_.width, norm, stack_.head, call_.num_wanted, call_.wanted, factor);
    product(worker_, stack_.head, input, call_.num_wanted, [&](int row, int column, Floats y) {
      if (cap) y = cap * hyperbolic_tangent(y / cap);
      store_first(call_.out + size_t(row) * stack_.head.rows + column, y, stack_.head.rows - column);
    });
  }

  void write_vectors() {
    worker_.each(call_.num_wanted, [&](int number) {
      const float* vector = x(call_.wanted ? call_.wanted[number] : number);
      float* out = call_.out + size_t(number) * stack_.width;
      if (stack_.final_norm.weight)
        normalise(vector, stack_.width, stack_.final_norm, stack_.rms, stack_.eps, out);
      else
        std::copy_n(vector, stack_.width, out);
    });
  }

  const Stack& stack_;
  const Call& call_;
  Scratch& scratch_;
  Worker& worker_;
};
