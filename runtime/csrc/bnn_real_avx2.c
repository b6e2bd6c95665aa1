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
#include "bnn_real_cores.inc"
BNN_TARGET_END
#endif
