/* Inner loops of real-valued convolutions with AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bnn_real.h"

BNN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")

#define CORES bnn_real_cores_avx512
#define BYTES 64
#define ROWS 8
#define MULTIPLY_ADD_VECTORS(a, b, c) (vf) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define MULTIPLY_ADD(x, b, c) MULTIPLY_ADD_VECTORS(_mm512_set1_ps(x), b, c)

#define LOAD_HALVES(x) (vf) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x)))
#define STORE_HALVES(y, v)                                                                         \
    _mm256_storeu_si256((__m256i *)(y), _mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT))

#define LOAD_PART
typedef float vf512 __attribute__((vector_size(64)));

static inline __mmask16 first(long n) { return (__mmask16)((1u << n) - 1); }
static inline vf512 load_part(const float *x, long n) {
    return (vf512)_mm512_maskz_loadu_ps(first(n), x);
}
static inline void store_part(float *y, vf512 v, long n) {
    _mm512_mask_storeu_ps(y, first(n), (__m512)v);
}

#define LOAD_EVEN
/* x[0], x[2], .. of the first n even ones. */
static inline vf512 load_even(const float *x, long n) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512 low = _mm512_maskz_loadu_ps(n > 8 ? 0xffff : first(2 * n - 1), x);
    __m512 high = _mm512_maskz_loadu_ps(n > 8 ? first(2 * n - 17) : 0, x + 16);
    return (vf512)_mm512_permutex2var_ps(low, even, high);
}

/* x[0], x[2] .. x[30], and nothing behind that is read. */
static inline vf512 load_even_halves(const bnn_half *x) {
    __m256i low = _mm256_loadu_si256((const __m256i *)x);
    __m256i high = _mm256_loadu_si256((const __m256i *)(x + 15));
    low = _mm256_and_si256(low, _mm256_set1_epi32(0xffff));
    __m256i even = _mm256_packus_epi32(low, _mm256_srli_epi32(high, 16));
    return (vf512)_mm512_cvtph_ps(_mm256_permute4x64_epi64(even, 0xd8));
}

#define PAD_ROW
static inline void pad_row(const float *x, long low, long high, long pitch, float *out) {
    for (long i = 0; i < pitch; i += 16) {
        long begin = low - i, end = high - i;
        __mmask16 inside = (end >= 16 ? 0xffff : end > 0 ? first(end) : 0);
        inside &= begin <= 0 ? 0xffff : begin >= 16 ? 0 : (__mmask16)~first(begin);
        __mmask16 wanted = pitch - i >= 16 ? 0xffff : first(pitch - i);
        _mm512_mask_storeu_ps(out + i, wanted, _mm512_maskz_loadu_ps(inside, x + i));
    }
}

#define TURN
enum { SIDE = 16, TURN_PITCH = 48 };

/* Exchange what differs in bit `by` of the row with what differs in it of the column. */
#define EXCHANGE(by)                                                                               \
    for (int i = 0; i < 16; i++) {                                                                 \
        if (i & by) continue;                                                                      \
        __m512 a = r[i], b = r[i + by];                                                            \
        r[i] = _mm512_permutex2var_ps(a, low_##by, b);                                             \
        r[i + by] = _mm512_permutex2var_ps(a, high_##by, b);                                       \
    }
#define LOW(j, by) ((j) & (by) ? 16 + (j) - (by) : (j))
#define HIGH(j, by) ((j) & (by) ? 16 + (j) : (j) + (by))
#define INDICES(PICK, by)                                                                          \
    _mm512_set_epi32(PICK(15, by), PICK(14, by), PICK(13, by), PICK(12, by), PICK(11, by),         \
                     PICK(10, by), PICK(9, by), PICK(8, by), PICK(7, by), PICK(6, by),             \
                     PICK(5, by), PICK(4, by), PICK(3, by), PICK(2, by), PICK(1, by), PICK(0, by))

static inline __attribute__((always_inline)) void turn_rows(__m512 r[16], float *panel) {
    const __m512i low_1 = INDICES(LOW, 1), high_1 = INDICES(HIGH, 1);
    const __m512i low_2 = INDICES(LOW, 2), high_2 = INDICES(HIGH, 2);
    const __m512i low_4 = INDICES(LOW, 4), high_4 = INDICES(HIGH, 4);
    const __m512i low_8 = INDICES(LOW, 8), high_8 = INDICES(HIGH, 8);
#pragma GCC unroll 16
    EXCHANGE(1)
#pragma GCC unroll 16
    EXCHANGE(2)
#pragma GCC unroll 16
    EXCHANGE(4)
#pragma GCC unroll 16
    EXCHANGE(8)
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm512_store_ps(panel + i * TURN_PITCH, r[i]);
}

static inline void turn_floats(const float *x, long plane, float *panel) {
    __m512 r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(x + i * plane);
    turn_rows(r, panel);
}

static inline void turn_halves(const uint16_t *x, long plane, float *panel) {
    __m512 r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x + i * plane)));
    turn_rows(r, panel);
}
#include "bnn_real_cores.inc"
BNN_TARGET_END
#endif
