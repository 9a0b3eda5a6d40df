// y (M, N) = x (M, K) times w (N, K) transposed, for a handful of rows M: every weight is read once, in two streams, so
// that memory decides how long it takes. Weights are fp32, bf16 or int8 with a scale a row; sums are fp32. With AVX2 inputs of
// int8 are rounded to 16 bits, and a vector's sums are whole numbers.
// Built and called by rows.py, blocks by fused.py. OpenMP is torch's own: the library is linked without one (two would wait for each other).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
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

constexpr long GROUP = 16;   // rows of w, of each stream, that meet a chunk of x before the next one does
constexpr long CHUNK = 768;  // of 8 rows of x: 24 KiB, which stay in the nearest cache

static inline float total(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sum = 0;
  for (int i = 0; i < W; i++) sum += v[i];
  return sum;
#endif
}

// Products of weights T with inputs X, N at a time: in floats.
template <class T>
struct Arithmetic {
  typedef float X;
  typedef Vector V;
  static constexpr int N = W;
  static V weights(const T* w) { return load(w); }
  static V plus(V sum, V w, const X* x) { return sum + w * load(x); }
  static V plus(V a, V b) { return a + b; }
  static float all(V sum) { return total(sum); }
  static float one(T w, X x) { return value(w) * x; }
};

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
// Bytes with inputs of 16 bits: half the work of floats. A lane of 32 bits adds two products of each vector, all below
// 2^22, so that SAFE of them do not leave it.
template <>
struct Arithmetic<int8_t> {
  typedef int16_t X;
  static constexpr int N = 2 * W;
  static float one(int8_t w, X x) { return static_cast<float>(w * x); }
#if defined(__AVX512BW__)
  typedef __m512i V;
  static V weights(const int8_t* w) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)w)); }
  static V plus(V a, V b) { return _mm512_add_epi32(a, b); }
  static V plus(V sum, V w, const X* x) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, w, _mm512_loadu_si512(x));
#else
    return plus(sum, _mm512_madd_epi16(w, _mm512_loadu_si512(x)));
#endif
  }
  static float all(V sum) { return total((Vector)_mm512_cvtepi32_ps(sum)); }
#else
  typedef __m256i V;
  static V weights(const int8_t* w) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w)); }
  static V plus(V a, V b) { return _mm256_add_epi32(a, b); }
  static V plus(V sum, V w, const X* x) {
    return plus(sum, _mm256_madd_epi16(w, _mm256_loadu_si256((const __m256i*)x)));
  }
  static float all(V sum) { return total((Vector)_mm256_cvtepi32_ps(sum)); }
#endif
};
#endif
constexpr long SAFE = 256 * Arithmetic<int8_t>::N;

// R rows of w, `apart` from each other, against M of x over n elements, U vectors of a row at a time: R * M * U sums, as
// many as registers hold.
template <class T, int M, int R, int U, class A = Arithmetic<T>>
static inline void tile(const T* w, const typename A::X* x, float* y, long n, long N, long K, bool add, long apart) {
  typename A::V sums[R * M * U] = {};
  const long whole = n - n % A::N;
  long k = 0;
  for (; k + A::N * U <= n; k += A::N * U)
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const typename A::V v = A::weights(w + r * apart * K + k + u * A::N);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++)
          sums[(r * M + m) * U + u] = A::plus(sums[(r * M + m) * U + u], v, x + m * K + k + u * A::N);
      }
  for (; k < whole; k += A::N)
    for (int r = 0; r < R; r++) {
      const typename A::V v = A::weights(w + r * apart * K + k);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) sums[(r * M + m) * U] = A::plus(sums[(r * M + m) * U], v, x + m * K + k);
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      typename A::V all = sums[(r * M + m) * U];
#pragma GCC unroll 8
      for (int u = 1; u < U; u++) all = A::plus(all, sums[(r * M + m) * U + u]);
      float sum = A::all(all) + (add ? y[m * N + r * apart] : 0);
      for (long k = whole; k < n; k++) sum += A::one(w[r * apart * K + k], x[m * K + k]);
      y[m * N + r * apart] = sum;
    }
}

template <class T, int R, class X>
static inline void outputs(const T* w, const X* x, float* y, long M, long n, long N, long K, bool add, long apart) {
  constexpr int half = W == 16 ? 1 : R;  // vectors of 32 bytes have half as many registers
  long m = 0;
  if (half == 1)
    for (; m + 8 <= M; m += 8) tile<T, 8, R, 1>(w, x + m * K, y + m * N, n, N, K, add, apart);
  for (; m + 4 <= M; m += 4) tile<T, 4, R, 2 / half>(w, x + m * K, y + m * N, n, N, K, add, apart);
  for (; m + 2 <= M; m += 2) tile<T, 2, R, 4 / half>(w, x + m * K, y + m * N, n, N, K, add, apart);
  for (; m < M; m++) tile<T, 1, R, 4>(w, x + m * K, y + m * N, n, N, K, add, apart);
}

// y (M, N) from rows begin to end of w and those that are `apart` from them: two streams far from each other are what the
// processor fetches ahead best.
template <class T, class X>
static inline void rows(const T* w, const X* x, float* y, long begin, long end, long M, long N, long K, long apart) {
  const long chunk = M > 2 ? CHUNK : SAFE;
  for (long k = 0; k < K; k += chunk) {
    const long n = std::min(chunk, K - k);
    for (long i = begin; i < end; i++) {
      const T* at = w + i * K + k;
      if (i + apart < N)
        outputs<T, 2>(at, x + k, y + i, M, n, N, K, k > 0, apart);
      else
        outputs<T, 1>(at, x + k, y + i, M, n, N, K, k > 0, apart);
    }
  }
}

// Inputs as products read them, and the step of each row in which sums then count.
static inline const float* inputs(const float* x, std::vector<float>&, std::vector<float>& steps, long M, long) {
  steps.assign(M, 1.0f);
  return x;
}

// Nearest of 32,767 steps each way of a row's largest; what is not finite makes the step so, and with it all sums.
static inline const int16_t* inputs(const float* x, std::vector<int16_t>& all, std::vector<float>& steps, long M, long K) {
  typedef int16_t Shorts __attribute__((vector_size(W * 2), aligned(2)));
  all.resize(M * K);
  steps.resize(M);
  int16_t* rounded = all.data();
  for (long m = 0; m < M; m++, x += K, rounded += K) {
    Vector most = {}, odd = {};
    const long whole = K - K % W;
    for (long k = 0; k < whole; k += W) {
      const Vector v = load(x + k), size = v < 0 ? -v : v;
      most = size > most ? size : most;
      odd += v * 0;
    }
    float largest = 0, strange = total(odd);
    for (int i = 0; i < W; i++) largest = std::max(largest, most[i]);
    for (long k = whole; k < K; k++) largest = std::max(largest, std::fabs(x[k])), strange += x[k] * 0;
    const float over = largest > 0 ? 32767 / largest : 0;
    for (long k = 0; k < whole; k += W) {
      const Vector v = load(x + k) * over;
      *(Shorts*)(rounded + k) = __builtin_convertvector(v + (v < 0 ? -0.5f : 0.5f) * (Vector{} + 1), Shorts);
    }
    for (long k = whole; k < K; k++) rounded[k] = static_cast<int16_t>(std::lround(x[k] * over));
    steps[m] = largest / 32767 + strange;
  }
  return all.data();
}

struct Linear {
  const void* weight;  // (N, K)
  const float* scale;  // (N), or none
  const float* bias;   // (N), or none
};

// The part of a team's product that is this thread's. finish(y, m, n) is what is stored.
template <class T, class Finish>
static void product(const Linear& l, const float* x, float* y, long M, long N, long K, Finish finish) {
  typedef typename Arithmetic<T>::X X;
  const T* w = static_cast<const T*>(l.weight);
  static thread_local std::vector<X> rounded;  // each thread its own: waiting for one takes longer
  static thread_local std::vector<float> steps;
  const X* read = inputs(x, rounded, steps, M, K);
  const long apart = (N + 1) / 2;
#pragma omp for schedule(static)
  for (long n = 0; n < apart; n += GROUP) {
    const long end = std::min(n + GROUP, apart);
    rows(w, read, y, n, end, M, N, K, apart);
    for (long first = n; first < end; first++)
      for (long i = first; i < N; i += apart)  // one of each stream
        for (long m = 0; m < M; m++)
          y[m * N + i] = finish(y[m * N + i] * steps[m] * (l.scale ? l.scale[i] : 1) + (l.bias ? l.bias[i] : 0), m, i);
  }
}

// GPT-2's block, a token of each row behind what the cache holds; called by fused.py.
struct Block {
  const float *norm_1, *norm_1_bias, *norm_2, *norm_2_bias;  // (D), each or none
  Linear qkv, proj, fc, out;
  long D, H, F;  // width, heads, inner width
  float eps;
};

static void normalise(const float* x, const float* weight, const float* bias, float eps, float* y, long M, long D) {
#pragma omp for schedule(static)
  for (long m = 0; m < M; m++) {
    double mean = 0, square = 0;
    for (long d = 0; d < D; d++) mean += x[m * D + d];
    mean /= D;
    for (long d = 0; d < D; d++) square += (x[m * D + d] - mean) * (x[m * D + d] - mean);
    const float centre = mean, over = 1 / std::sqrt(square / D + eps);
    for (long d = 0; d < D; d++)
      y[m * D + d] = (x[m * D + d] - centre) * over * (weight ? weight[d] : 1) + (bias ? bias[d] : 0);
  }
}

static inline float dot(const float* a, const float* b, long n) {
  Vector sums = {};
  long i = 0;
  for (; i + W <= n; i += W) sums += load(a + i) * load(b + i);
  float sum = total(sums);
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// qkv (M, 3 D) -> y (M, D). Keys and values (M, H, slots, D / H): this token's are put into `slot`; row m sees the slots
// from starts[m] on.
static void attend(const float* qkv, float* y, float* keys, float* values, const int64_t* starts, float scale, long M,
                   long D, long H, long slot, long slots) {
  const long C = D / H;
#pragma omp for schedule(static)
  for (long i = 0; i < M * H; i++) {
    const float* q = qkv + i / H * 3 * D + i % H * C;
    float *k = keys + i * slots * C, *v = values + i * slots * C, *out = y + i * C;
    memcpy(k + slot * C, q + D, C * sizeof(float));
    memcpy(v + slot * C, q + 2 * D, C * sizeof(float));
    const long first = starts ? starts[i / H] : 0;
    std::vector<float> scores(slot + 1);
    float best = -INFINITY, sum = 0;
    for (long s = first; s <= slot; s++) best = std::max(best, scores[s] = scale * dot(q, k + s * C, C));
    for (long c = 0; c < C; c++) out[c] = 0;
    for (long s = first; s <= slot; s++) {
      const float p = std::exp(scores[s] - best);
      sum += p;
      for (long c = 0; c < C; c++) out[c] += p * v[s * C + c];
    }
    for (long c = 0; c < C; c++) out[c] /= sum;
  }
}

static float gelu(float x, long, long) {  // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
  return x / (1 + std::exp(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
}

// x (M, D) -> y (M, D); scratch (M, 6 D + F).
template <class T>
static void block(const Block& b, const float* x, float* y, float* scratch, float* keys, float* values,
                  const int64_t* starts, float scale, long M, long slot, long slots) {
  const long D = b.D;
  float *normed = scratch, *qkv = normed + M * D, *attended = qkv + 3 * M * D, *middle = attended + M * D,
        *inner = middle + M * D;
  const auto plain = [](float v, long, long) { return v; };
#pragma omp parallel
  {
    normalise(x, b.norm_1, b.norm_1_bias, b.eps, normed, M, D);
    product<T>(b.qkv, normed, qkv, M, 3 * D, D, plain);
    attend(qkv, attended, keys, values, starts, scale, M, D, b.H, slot, slots);
    product<T>(b.proj, attended, middle, M, D, D, [=](float v, long m, long n) { return x[m * D + n] + v; });
    normalise(middle, b.norm_2, b.norm_2_bias, b.eps, normed, M, D);
    product<T>(b.fc, normed, inner, M, b.F, D, gelu);
    product<T>(b.out, inner, y, M, D, b.F, [=](float v, long m, long n) { return middle[m * D + n] + v; });
  }
}

#define EXPORT(name, T)                                                                                           \
  extern "C" void rows_##name(const Linear* l, const float* x, float* y, long M, long N, long K) {                \
    const auto plain = [](float v, long, long) { return v; };                                                     \
    _Pragma("omp parallel") product<T>(*l, x, y, M, N, K, plain);                                                 \
  }                                                                                                               \
  extern "C" void block_##name(const Block* b, const float* x, float* y, float* scratch, float* keys,             \
                               float* values, const int64_t* starts, float scale, long M, long slot, long slots) { \
    block<T>(*b, x, y, scratch, keys, values, starts, scale, M, slot, slots);                                     \
  }
EXPORT(fp32, float)
EXPORT(bf16, uint16_t)
EXPORT(int8, int8_t)
