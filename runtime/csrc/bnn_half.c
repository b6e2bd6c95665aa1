/* Arrays of half precision from and to float32. */
#include "bnn_half.h"

#if BNN_X86_64
#include <immintrin.h>
#endif

static void decode_any(const bnn_half *x, float *y, i64 n) {
#if BNN_AARCH64
    for (i64 i = 0; i < n; i++) {
        __fp16 half;
        memcpy(&half, x + i, sizeof half);
        y[i] = half;
    }
#else
    for (i64 i = 0; i < n; i++) y[i] = bnn_half_to_float(x[i]);
#endif
}

static void encode_any(const float *x, bnn_half *y, i64 n) {
#if BNN_AARCH64
    for (i64 i = 0; i < n; i++) {
        __fp16 half = (__fp16)x[i];
        memcpy(y + i, &half, sizeof half);
    }
#else
    for (i64 i = 0; i < n; i++) y[i] = bnn_float_to_half(x[i]);
#endif
}

#if BNN_X86_64
BNN_AVX2 static void decode_avx2(const bnn_half *x, float *y, i64 n) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
    for (; i < n; i++) y[i] = bnn_half_to_float(x[i]);
}

BNN_AVX2 static void encode_avx2(const float *x, bnn_half *y, i64 n) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(y + i), eight);
    }
    for (; i < n; i++) y[i] = bnn_float_to_half(x[i]);
}
#endif

void bnn_decode_halves(const bnn_half *x, float *y, i64 n) { BNN_PICK(decode)(x, y, n); }
void bnn_encode_halves(const float *x, bnn_half *y, i64 n) { BNN_PICK(encode)(x, y, n); }

struct cast {
    const void *x;
    void *y;
};

static void decode_range(void *context, i64 begin, i64 end, int thread) {
    const struct cast *c = context;
    (void)thread;
    bnn_decode_halves((const bnn_half *)c->x + begin, (float *)c->y + begin, end - begin);
}

static void encode_range(void *context, i64 begin, i64 end, int thread) {
    const struct cast *c = context;
    (void)thread;
    bnn_encode_halves((const float *)c->x + begin, (bnn_half *)c->y + begin, end - begin);
}

BNN_EXPORT void bnn_cast_f16f32(const bnn_half *x, float *y, i64 n) {
    struct cast c = {x, y};
    bnn_parallel(n, BNN_GRAIN, decode_range, &c);
}

BNN_EXPORT void bnn_cast_f32f16(const float *x, bnn_half *y, i64 n) {
    struct cast c = {x, y};
    bnn_parallel(n, BNN_GRAIN, encode_range, &c);
}
