/* Inner loops of real-valued convolutions with AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bnn_real.h"

BNN_TARGET("avx2,fma,f16c,popcnt")

#define CORES bnn_real_cores_avx2
#define BYTES 32
#define ROWS 4
#define MULTIPLY_ADD_VECTORS(a, b, c) (vf) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define MULTIPLY_ADD(x, b, c) MULTIPLY_ADD_VECTORS(_mm256_set1_ps(x), b, c)
#define LOAD_HALVES(x) (vf) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x)))
#define STORE_HALVES(y, v)                                                                         \
    _mm_storeu_si128((__m128i *)(y), _mm256_cvtps_ph((__m256)(v), _MM_FROUND_TO_NEAREST_INT))

typedef float vf256 __attribute__((vector_size(32)));

/* x[0], x[2] .. x[14], and nothing behind that is read. */
static inline vf256 load_even_halves(const bnn_half *x) {
    __m128i low = _mm_loadu_si128((const __m128i *)x);
    __m128i high = _mm_loadu_si128((const __m128i *)(x + 7));
    low = _mm_and_si128(low, _mm_set1_epi32(0xffff));
    return (vf256)_mm256_cvtph_ps(_mm_packus_epi32(low, _mm_srli_epi32(high, 16)));
}
#include "bnn_real_cores.inc"
BNN_TARGET_END
#endif
