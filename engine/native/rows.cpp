// What a CPU step does to rows beside matrix products: norms, gates, rotary turns and writing keys and values.
// Plain C functions over raw pointers: nothing here depends on a version of torch. engine/native/__init__.py checks
// the shapes.
#include "vectors.h"

namespace {

constexpr int64_t SMALL = 1 << 15;  // numbers for which waking other threads costs more than it brings

template <typename T>
void norm_row(const T *x, const T *weight, T *out, int64_t width, float eps) {
  Floats squares{};
  for (int64_t i = 0; i < width; i += LANES) squares = fused(load(x + i), load(x + i), squares);
  const float factor = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i += LANES) store(out + i, load(x + i) * factor * load(weight + i));
}

template <typename T>
void add_norm(T *x, const T *added, const T *weight, T *out, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > SMALL)
  for (int64_t row = 0; row < rows; row++) {
    T *mine = x + row * width;
    if (added)
      for (int64_t i = 0; i < width; i += LANES) store(mine + i, load(mine + i) + load(added + row * width + i));
    norm_row(mine, weight, out + row * width, width, eps);
  }
}

template <typename T>
void gated(const T *x, T *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > SMALL)
  for (int64_t row = 0; row < rows; row++) {
    const T *gate = x + 2 * row * width, *up = gate + width;
    for (int64_t i = 0; i < width; i += LANES) {
      const Floats g = load(gate + i);
      store(out + row * width + i, g / (exponential(-g) + 1.0f) * load(up + i));
    }
  }
}

// One head of one token: normed if there is a weight, then turned by its position.
template <typename T>
void turn(const T *x, const T *weight, const T *cos, const T *sin, T *out, int64_t size, float eps) {
  float from[size], turns[2][size];
  T normed[size];
  if (weight) norm_row(x, weight, normed, size, eps);
  for (int64_t i = 0; i < size; i += LANES) {
    store(from + i, load((weight ? normed : x) + i));
    store(turns[0] + i, load(cos + i));
    store(turns[1] + i, load(sin + i));
  }
  const int64_t half = size / 2;
  float turned[size];
  for (int64_t i = 0; i < half; i++) {
    turned[i] = from[i] * turns[0][i] + from[half + i] * turns[1][i];
    turned[half + i] = from[half + i] * turns[0][half + i] + from[i] * turns[1][half + i];
  }
  for (int64_t i = 0; i < size; i += LANES) store(out + i, load(turned + i));
}

template <typename T>
void place(T *qkv, const T *query_norm, const T *key_norm, float eps, const T *cos, const T *sin,
           const int64_t *slots, T *keys, T *values, int64_t tokens, Heads heads, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens * heads.row() > SMALL)
  for (int64_t token = 0; token < tokens; token++) {
    T *query = qkv + token * heads.row(), *key = query + heads.queries * heads.size;
    const T *turns[2] = {cos + token * heads.size, sin + token * heads.size};
    for (int64_t head = 0; head < heads.queries; head++, query += heads.size)
      turn(query, query_norm, turns[0], turns[1], query, heads.size, eps);
    const int64_t slot = slots[token] * heads.keys * heads.size;
    for (int64_t head = 0; head < heads.keys; head++)
      turn(key + head * heads.size, key_norm, turns[0], turns[1], keys + slot + head * heads.size, heads.size, eps);
    const int64_t size = heads.keys * heads.size;
    std::memcpy(values + slot, key + size, size * sizeof(T));
  }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                              \
  extern "C" void add_norm_##SUFFIX(T *x, const T *added, const T *weight, T *out, int64_t rows, int64_t width,        \
                                    float eps, int threads) {                                                          \
    add_norm(x, added, weight, out, rows, width, eps, threads);                                                        \
  }                                                                                                                    \
  extern "C" void gated_##SUFFIX(const T *x, T *out, int64_t rows, int64_t width, int threads) {                       \
    gated(x, out, rows, width, threads);                                                                               \
  }                                                                                                                    \
  extern "C" void place_##SUFFIX(T *qkv, const T *query_norm, const T *key_norm, float eps, const T *cos,              \
                                 const T *sin, const int64_t *slots, T *keys, T *values, int64_t tokens,               \
                                 int64_t query_heads, int64_t kv_heads, int64_t size, int threads) {                   \
    place(qkv, query_norm, key_norm, eps, cos, sin, slots, keys, values, tokens, {query_heads, kv_heads, size},        \
          threads);                                                                                                    \
  }

EXPORT(float, f32)
EXPORT(bfloat16, bf16)
