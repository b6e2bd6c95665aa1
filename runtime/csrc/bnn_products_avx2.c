/* Inner loops of the binary products with AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bnn_products.h"

BNN_TARGET("avx2,fma,popcnt")

#define CORES bnn_cores_avx2
#define BYTES 32

typedef uint8_t lanes32 __attribute__((vector_size(32)));

static inline __attribute__((always_inline)) lanes32 lookup(uint8_t index, lanes32 lanes) {
    __m128i table = _mm_load_si128((const __m128i *)(bnn_differing + index));
    return (lanes32)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)lanes);
}
#include "bnn_products_cores.inc"
BNN_TARGET_END
#endif
