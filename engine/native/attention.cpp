// Attention over paged KV on a CPU: decodes and chunks of prefills alike, keys and values read where they lie.
// A plain C function over raw pointers: nothing here depends on a version of torch. engine/native/__init__.py checks
// the shapes.
#include <vector>

#include "vectors.h"

namespace {

constexpr int WIDE = LANES == 16 ? 4 : 2;  // vectors of a head that are summed at once: with 4 rows, most registers
constexpr int TILE = 64;                   // keys taken together: those from a multiple of TILE on
constexpr int TASK_ROWS = 64;              // rows (a query of one head) of one task, so that they stay in the cache
constexpr float LOWEST = -1e30f;           // finite: less itself is 0, where infinity less itself is no number

// The lanes of pairs of vectors that a fold adds: each vector holds groups of SIZE lanes, of which the first or second
// halves are taken, a's and b's in turn.
template <int SIZE, int SECOND, int... LANE>
inline Floats halves(Floats a, Floats b, std::integer_sequence<int, LANE...>) {
  constexpr int HALF = SIZE / 2;
  return __builtin_shufflevector(a, b, (LANE / HALF % 2 * LANES + LANE / SIZE * SIZE + LANE % HALF + SECOND * HALF)...);
}

// Sums of LANES vectors at once, in a tree that is the same for each: lane i of the result is the sum of a[i].
template <int SIZE = LANES>
inline void fold(Floats *a) {
  if constexpr (SIZE > 1) {
#pragma GCC unroll 8
    for (int i = 0; i < SIZE / 2; i++)
      a[i] = halves<SIZE, 0>(a[i], a[i + SIZE / 2], Every{}) + halves<SIZE, 1>(a[i], a[i + SIZE / 2], Every{});
    fold<SIZE / 2>(a);
  }
}

// Online softmax (Milakov and Gimelshein, 2018) of some rows over the tiles so far.
struct Rows {
  int64_t size;
  std::vector<float> queries, sums, highest;  // queries come scaled; sums are weighted values [rows, size]
  std::vector<Floats> totals;

  void begin(int64_t rows, int64_t head_size) {
    size = head_size;
    queries.resize(rows * size);
    sums.assign(rows * size, 0.0f);
    highest.assign(rows, LOWEST);
    totals.assign(rows, Floats{});
  }
};

// A tile of one KV head: where each of its keys and values is.
template <typename T>
struct Tile {
  const T *keys[TILE], *values[TILE];
  int64_t first;
  int count;
};

template <int N, typename T>
inline void score(const float *queries, const Tile<T> &tile, int64_t size, float (*scores)[TILE]) {
  constexpr int KEYS = LANES / N;
  for (int key = 0; key < tile.count; key += KEYS) {
    Floats products[LANES] = {};
    for (int64_t i = 0; i < size; i += LANES) {
#pragma GCC unroll 16
      for (int k = 0; k < KEYS; k++) {
        const Floats from = load(tile.keys[key + k] + i);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) products[n * KEYS + k] = fused(load(queries + n * size + i), from, products[n * KEYS + k]);
      }
    }
    fold(products);
    float flat[LANES];
    store(flat, products[0]);
    for (int n = 0; n < N; n++) std::memcpy(scores[n] + key, flat + n * KEYS, sizeof(float) * KEYS);
  }
}

template <int N, int COUNT, typename T>
inline void weigh(const float (*weights)[TILE], const float *decays, const Tile<T> &tile, int seen, int64_t offset,
                  int64_t size, float *sums) {
  Floats totals[N][COUNT];
#pragma GCC unroll 4
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int c = 0; c < COUNT; c++) totals[n][c] = load(sums + n * size + offset + c * LANES) * decays[n];
  for (int key = 0; key < seen; key++) {
    Floats value[COUNT];
#pragma GCC unroll 4
    for (int c = 0; c < COUNT; c++) value[c] = load(tile.values[key] + offset + c * LANES);
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      const Floats weight = all(weights[n][key]);
#pragma GCC unroll 4
      for (int c = 0; c < COUNT; c++) totals[n][c] = fused(value[c], weight, totals[n][c]);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int c = 0; c < COUNT; c++) store(sums + n * size + offset + c * LANES, totals[n][c]);
}

// Rows `row` to `row + N`, whose queries are at `positions`, take in a tile.
template <int N, typename T>
void take(Rows &rows, int64_t row, const Tile<T> &tile, const int64_t *positions, int64_t window) {
  float scores[N][TILE], decays[N];
  score<N>(&rows.queries[row * rows.size], tile, rows.size, scores);
  int seen = 0;
  for (int n = 0; n < N; n++) {
    const int64_t position = positions[n];
    const int start = std::clamp<int64_t>(position - window + 1 - tile.first, 0, TILE);
    const int stop = std::clamp<int64_t>(position + 1 - tile.first, 0, tile.count);
    std::fill(scores[n], scores[n] + start, -INFINITY);
    std::fill(scores[n] + stop, scores[n] + TILE, -INFINITY);
    seen = std::max(seen, stop);
    Floats highest = load(scores[n]);
    for (int i = LANES; i < TILE; i += LANES) highest = larger(highest, load(scores[n] + i));
    const float before = rows.highest[row + n], now = std::max(before, largest(highest));
    rows.highest[row + n] = now;
    decays[n] = before == now ? 1.0f : exponential(all(before - now))[0];
    Floats total = rows.totals[row + n] * decays[n];
    for (int i = 0; i < TILE; i += LANES) {
      const Floats weight = exponential(load(scores[n] + i) - now);
      store(scores[n] + i, weight);
      total += weight;
    }
    rows.totals[row + n] = total;
  }
  float *sums = &rows.sums[row * rows.size];
  int64_t offset = 0;
  for (; offset + WIDE * LANES <= rows.size; offset += WIDE * LANES)
    weigh<N, WIDE>(scores, decays, tile, seen, offset, rows.size, sums);
  for (; offset < rows.size; offset += LANES) weigh<N, 1>(scores, decays, tile, seen, offset, rows.size, sums);
}

// Some consecutive queries of one sequence, and some KV heads with their groups of query heads.
struct Task {
  int64_t sequence, token, position, queries, head, heads;
};

template <typename T>
struct Paged {
  const T *query;
  int64_t query_stride;
  T *out;
  const T *keys, *values;
  const int32_t *tables;
  int64_t table_width, block_tokens, window;
  Heads heads;
  float scale;

  int64_t group() const { return heads.queries / heads.keys; }

  void find(const Task &task, int64_t head, int64_t first, int count, Tile<T> &tile) const {
    const int64_t stride = heads.keys * heads.size;
    tile.first = first;
    tile.count = count;
    for (int key = 0; key < count; key += LANES) {  // blocks are multiples of LANES
      const int64_t at = slot(task, first + key) * stride + head * heads.size;
      for (int k = 0; k < LANES; k++) {
        tile.keys[key + k] = keys + at + k * stride;
        tile.values[key + k] = values + at + k * stride;
      }
    }
  }

  // Reads a tile of all heads once in the order it lies in memory: a processor guesses what comes next of such a stream,
  // and not of one head's keys, between which lie those of the others.
  void stream(const T *pool, const Task &task, int64_t first, int64_t last) const {
    const int64_t stride = heads.keys * heads.size;
    for (int64_t position = first; position < last; position += LANES)
      for (int64_t i = 0; i < LANES * stride; i += 64 / sizeof(T)) {
        const T touched = *(pool + slot(task, position) * stride + i);
        asm volatile("" ::"r"(touched));
      }
  }

  // Where a position of the task's sequence is, in tokens of the pool.
  int64_t slot(const Task &task, int64_t position) const {
    return tables[task.sequence * table_width + position / block_tokens] * block_tokens + position % block_tokens;
  }

  void run(const Task &task, Rows &rows) const {
    const int64_t size = heads.size, each = task.queries * group();  // rows of a KV head: token outer, group inner
    rows.begin(each * task.heads, size);
    int64_t positions[each];
    for (int64_t row = 0; row < each; row++) positions[row] = task.position + row / group();
    for (int64_t row = 0; row < each * task.heads; row++) {
      const T *from = query + at(task, row, each, query_stride);
      for (int64_t i = 0; i < size; i += LANES) store(&rows.queries[row * size + i], load(from + i) * scale);
    }
    const int64_t last = positions[each - 1];
    Tile<T> tile;
    for (int64_t first = std::max<int64_t>(task.position - window + 1, 0) / TILE * TILE; first <= last; first += TILE) {
      if (task.heads > 1) {
        stream(keys, task, first, std::min(last + 1, first + TILE));
        stream(values, task, first, std::min(last + 1, first + TILE));
      }
      // Whole vectors of keys: what lies beyond the last one seen is masked.
      const int count = std::min<int64_t>((last - first + LANES) / LANES * LANES, TILE);
      for (int64_t head = 0; head < task.heads; head++) {
        find(task, task.head + head, first, count, tile);
        int64_t row = 0;
        for (; row + 4 <= each; row += 4)
          if (positions[row + 3] >= first) take<4>(rows, head * each + row, tile, positions + row, window);
        for (; row + 2 <= each; row += 2)
          if (positions[row + 1] >= first) take<2>(rows, head * each + row, tile, positions + row, window);
        for (; row < each; row++)
          if (positions[row] >= first) take<1>(rows, head * each + row, tile, positions + row, window);
      }
    }
    for (int64_t row = 0; row < each * task.heads; row++) {
      T *to = out + at(task, row, each, heads.queries * size);
      const float factor = 1.0f / sum(rows.totals[row]);
      for (int64_t i = 0; i < size; i += LANES) store(to + i, load(&rows.sums[row * size + i]) * factor);
    }
  }

  int64_t at(const Task &task, int64_t row, int64_t each, int64_t stride) const {
    const int64_t within = row % each, head = (task.head + row / each) * group() + within % group();
    return (task.token + within / group()) * stride + head * heads.size;
  }
};

template <typename T>
void attend(const Paged<T> &paged, const int64_t *contexts, const int64_t *num_tokens, int64_t sequences, int threads) {
  // A sequence's heads lie side by side: one thread that takes them all reads memory in order.
  const int64_t at_once = sequences >= 4 * threads ? paged.heads.keys : 1;
  const int64_t queries = std::max<int64_t>(TASK_ROWS / paged.group(), 1);
  std::vector<Task> tasks;
  int64_t token = 0;
  for (int64_t sequence = 0; sequence < sequences; token += num_tokens[sequence], sequence++) {
    const int64_t start = contexts[sequence] - num_tokens[sequence], heads = num_tokens[sequence] > 1 ? 1 : at_once;
    for (int64_t query = 0; query < num_tokens[sequence]; query += queries)
      for (int64_t head = 0; head < paged.heads.keys; head += heads)
        tasks.push_back({sequence, token + query, start + query, std::min(queries, num_tokens[sequence] - query), head,
                         std::min(heads, paged.heads.keys - head)});
  }
  const int64_t num_tasks = static_cast<int64_t>(tasks.size());
#pragma omp parallel num_threads(threads) if (num_tasks > 1)
  {
    Rows rows;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < num_tasks; i++) paged.run(tasks[i], rows);
  }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                               \
  extern "C" void attend_##SUFFIX(const T *query, int64_t query_stride, T *out, const T *keys, const T *values,        \
                                  const int32_t *tables, int64_t table_width, const int64_t *contexts,                 \
                                  const int64_t *num_tokens, int64_t sequences, int64_t block_tokens, int64_t window,  \
                                  int64_t query_heads, int64_t kv_heads, int64_t size, float scale, int threads) {     \
    attend<T>({query, query_stride, out, keys, values, tables, table_width, block_tokens, window,                      \
               {query_heads, kv_heads, size}, scale},                                                                  \
              contexts, num_tokens, sequences, threads);                                                               \
  }

EXPORT(float, f32)
EXPORT(bfloat16, bf16)
