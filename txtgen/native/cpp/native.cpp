// What Python calls. Plain functions over plain memory: no header of torch, so that a compiler takes seconds.
#include "transformer.h"

extern "C" {

// Python's picture of the structures must be ours.
extern const int32_t txtgen_sizes[] = {sizeof(Matrix), sizeof(Rows), sizeof(Table), sizeof(Norm), sizeof(Layer), sizeof(Stack), sizeof(Call)};

// Positions of a block of the cache, and its size for one key/value head.
extern const int32_t txtgen_lanes = LANES;
size_t txtgen_block_bytes(const Stack* stack) { return stack->block_bytes(); }

size_t txtgen_packed_bytes(int kind, int rows, int width) { return packed_bytes(kind, rows, width); }

void txtgen_pack(const Rows* rows, uint8_t* out, int threads) {
  Team::of_this_process().run(threads, [&](Worker& worker) { pack(worker, *rows, out); });
}

enum Failure { NONE, NO_MEMORY, UNKNOWN_TOKEN };

static Failure in_passes(const Stack& stack, const Call& call, int threads, void (*work)(Pass&, const float*), const float* given) {
  static thread_local Scratch memory;
  Scratch& scratch = memory;  // that of the calling thread, also where the workers speak of it
  try {
    Pass::reserve(stack, call, scratch);
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
  Team::of_this_process().run(threads, [&](Worker& worker) {
    Pass pass(stack, call, scratch, worker);
    work(pass, given);
  });
  return NONE;
}

// Read the tokens of a call into the cache.
int txtgen_read(const Stack* stack, const Call* call, int threads) {
  for (int row = 0; row < call->rows; row++)
    if (call->tokens[row] < 0 || call->tokens[row] >= stack->tokens.count) return UNKNOWN_TOKEN;
  return in_passes(*stack, *call, threads, [](Pass& pass, const float*) { pass.read(); }, nullptr);
}

// Keep keys and values of what an encoder has made of the tokens of a call, [rows,D].
int txtgen_remember_source(const Stack* stack, const Call* call, const float* encoded, int threads) {
  return in_passes(*stack, *call, threads, [](Pass& pass, const float* given) { pass.remember_source(given); }, encoded);
}

// Logits of vectors [rows,D] that an earlier call has written.
int txtgen_score(const Stack* stack, const Call* call, const float* vectors, int threads) {
  return in_passes(*stack, *call, threads, [](Pass& pass, const float* given) { pass.score(given); }, vectors);
}

// Copy what the sequences of a call see into a cache in which each has a row of its own.
void txtgen_copy_cells(const Stack* stack, const Call* call, void* const* to, int threads) {
  Team::of_this_process().run(threads, [&](Worker& worker) { copy_cells(worker, *stack, *call, to); });
}
}
