/* Inner loops of the binary products with AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bnn_products.h"

#if !defined(__clang__) /* it takes vectors as wide as they are written */
#pragma GCC target("prefer-vector-width=512")
#endif
BNN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt")

#define CORES bnn_cores_avx512
#define BYTES 64

typedef uint8_t lanes64 __attribute__((vector_size(64)));

static inline __attribute__((always_inline)) lanes64 lookup(uint8_t index, lanes64 lanes) {
    __m128i table = _mm_load_si128((const __m128i *)(bnn_differing + index));
    return (lanes64)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), (__m512i)lanes);
}

#define SCATTER_ROWS
#include "bnn_products_scatter_avx512.inc"

#include "bnn_products_cores.inc"
BNN_TARGET_END
#endif
