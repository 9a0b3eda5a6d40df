// y (M, N) = x (M, K) times w (N, K) transposed, for a handful of rows M: every weight is read once, in order, so that
// memory decides how long it takes. Weights are fp32, bf16 or int8 with a scale a row; sums are fp32.
// Built and called by rows.py. OpenMP is torch's own: the library is linked without one (two would wait for each other).

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;  // floats of a vector
#else
constexpr int W = 8;
#endif
typedef float Vector __attribute__((vector_size(W * 4)));
typedef float Unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));

static inline float value(float w) { return w; }
static inline float value(int8_t w) { return w; }
static inline float value(uint16_t w) {  // bf16: the upper half of a float
  uint32_t bits = static_cast<uint32_t>(w) << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

static inline Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
#if defined(__AVX512F__)
static inline Vector load(const int8_t* p) {
  return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
static inline Vector load(const uint16_t* p) {
  return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
#elif defined(__AVX2__)
static inline Vector load(const int8_t* p) {
  return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
static inline Vector load(const uint16_t* p) {
  return (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
}
#else
template <class T>
static inline Vector load(const T* p) {
  Vector v;
  for (int i = 0; i < W; i++) v[i] = value(p[i]);
  return v;
}
#endif

// R rows of w against M rows of x, U vectors of a row at a time: R * M * U sums, as many as registers hold.
template <class T, int M, int R, int U>
static inline void tile(const T* w, const float* x, float* y, long N, long K) {
  Vector sums[R * M * U] = {};
  const long whole = K - K % (W * U);
  for (long k = 0; k < whole; k += W * U)
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Vector v = load(w + r * K + k + u * W);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) sums[(r * M + m) * U + u] += v * load(x + m * K + k + u * W);
      }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      Vector all = sums[(r * M + m) * U];
#pragma GCC unroll 8
      for (int u = 1; u < U; u++) all += sums[(r * M + m) * U + u];
      float sum = 0;
      for (int i = 0; i < W; i++) sum += all[i];
      for (long k = whole; k < K; k++) sum += value(w[r * K + k]) * x[m * K + k];
      y[m * N + r] = sum;
    }
}

template <class T, int R>
static inline void outputs(const T* w, const float* x, float* y, long M, long N, long K) {
  long m = 0;
  for (; m + 4 <= M; m += 4) tile<T, 4, R, 1>(w, x + m * K, y + m * N, N, K);
  for (; m + 2 <= M; m += 2) tile<T, 2, R, 2>(w, x + m * K, y + m * N, N, K);
  for (; m < M; m++) tile<T, 1, R, 4>(w, x + m * K, y + m * N, N, K);
}

template <class T>
static void product(const T* w, const float* x, const float* scale, const float* bias, float* y, long M, long N, long K) {
#pragma omp parallel for schedule(static)
  for (long n = 0; n < N; n += 2) {
    const long end = n + 2 < N ? n + 2 : N;
    if (M > 1 && end == n + 2)
      outputs<T, 2>(w + n * K, x, y + n, M, N, K);
    else  // one stream of weights is what the processor fetches ahead best
      for (long i = n; i < end; i++) outputs<T, 1>(w + i * K, x, y + i, M, N, K);
    for (long i = n; i < end; i++)
      for (long m = 0; m < M; m++) y[m * N + i] = y[m * N + i] * (scale ? scale[i] : 1) + (bias ? bias[i] : 0);
  }
}

#define EXPORT(name, T)                                                                                           \
  extern "C" void name(const T* w, const float* x, const float* scale, const float* bias, float* y, long M, long N, \
                       long K) {                                                                                  \
    product(w, x, scale, bias, y, M, N, K);                                                                       \
  }
EXPORT(rows_fp32, float)
EXPORT(rows_bf16, uint16_t)
EXPORT(rows_int8, int8_t)
