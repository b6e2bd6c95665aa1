/* Inner loops of real-valued convolutions with AVX-512. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")
#include <immintrin.h>

#include "bnn_real.h"

#define CORES bnn_real_cores_avx512
#define BYTES 64
#define ROWS 8
#define MULTIPLY_ADD_VECTORS(a, b, c) (vf) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define MULTIPLY_ADD(x, b, c) MULTIPLY_ADD_VECTORS(_mm512_set1_ps(x), b, c)

#define LOAD_PART
typedef float vf512 __attribute__((vector_size(64)));

static inline __mmask16 first(long n) { return (__mmask16)((1u << n) - 1); }
static inline vf512 load_part(const float *x, long n) {
    return (vf512)_mm512_maskz_loadu_ps(first(n), x);
}
static inline void store_part(float *y, vf512 v, long n) {
    _mm512_mask_storeu_ps(y, first(n), (__m512)v);
}
#include "bnn_real_cores.inc"
#endif
