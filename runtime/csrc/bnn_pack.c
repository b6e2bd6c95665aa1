/* Floats and booleans to bits. Bit j of byte b is element 8 b + j of its row; every row starts at a
   byte, the spare bits of its last byte are 0. */
#include "bnn_pack.h"

#include "bnn_rows.h"
#include "bnn_tiles.h"

#if BNN_X86_64
#include <immintrin.h>
#endif

struct pack {
    const void *x;
    enum bnn_type type;
    uint8_t *packed;
    struct bnn_rows rows;
    enum bnn_test test;
    float low, high;
};

BNN_INLINE unsigned bit_of_f32(float x, enum bnn_test test, float low, float high) {
    if (test == BNN_GREATER) return x > 0;
    if (test == BNN_NOT_LESS) return !(x < 0);
    return (x >= low) & (x <= high);
}

BNN_INLINE void bits4_of_f32(v4i *bits, const float *x, enum bnn_test test, float low, float high) {
    v4f v;
    bnn_load(&v, x);
    if (test == BNN_GREATER) *bits = v > 0;
    if (test == BNN_NOT_LESS) *bits = ~(v < 0);
    if (test == BNN_RANGE) *bits = (v >= low) & (v <= high);
}

BNN_INLINE void pack_f32_any(const float *x, uint8_t *out, i64 n, enum bnn_test test, float low,
                             float high) {
    const v4i low_bits = {1, 2, 4, 8}, high_bits = {16, 32, 64, 128};
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v4i a, b;
        bits4_of_f32(&a, x + i, test, low, high);
        bits4_of_f32(&b, x + i + 4, test, low, high);
        a = (a & low_bits) | (b & high_bits);
        *out++ = (uint8_t)(a[0] | a[1] | a[2] | a[3]);
    }
    if (i == n) return;
    unsigned last = 0;
    for (i64 j = i; j < n; j++) last |= bit_of_f32(x[j], test, low, high) << (j - i);
    *out = (uint8_t)last;
}

/* Eight bytes to eight bits, in one word: bit 0 of every byte says whether the byte is not 0, and
   the product collects those bits in the last byte. */
BNN_INLINE void pack_b8_any(const uint8_t *x, uint8_t *out, i64 n) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t v;
        memcpy(&v, x + i, sizeof v);
        v |= v >> 4, v |= v >> 2, v |= v >> 1;
        *out++ = (uint8_t)((v & UINT64_C(0x0101010101010101)) * UINT64_C(0x0102040810204080) >> 56);
    }
    if (i == n) return;
    unsigned last = 0;
    for (i64 j = i; j < n; j++) last |= (unsigned)(x[j] != 0) << (j - i);
    *out = (uint8_t)last;
}

#if BNN_X86_64
BNN_INLINE BNN_AVX2 unsigned bits8_of_f32_avx2(const float *x, enum bnn_test test, float low,
                                               float high) {
    const __m256 v = _mm256_loadu_ps(x), nil = _mm256_setzero_ps();
    if (test == BNN_GREATER) return _mm256_movemask_ps(_mm256_cmp_ps(v, nil, _CMP_GT_OQ));
    if (test == BNN_NOT_LESS) return _mm256_movemask_ps(_mm256_cmp_ps(v, nil, _CMP_NLT_UQ));
    __m256 over = _mm256_cmp_ps(v, _mm256_set1_ps(low), _CMP_GE_OQ);
    __m256 under = _mm256_cmp_ps(v, _mm256_set1_ps(high), _CMP_LE_OQ);
    return _mm256_movemask_ps(_mm256_and_ps(over, under));
}

BNN_INLINE BNN_AVX2 void pack_f32_avx2(const float *x, uint8_t *out, i64 n, enum bnn_test test,
                                       float low, float high) {
    i64 i = 0;
    for (; i + 32 <= n; i += 32) {
        uint32_t bits = bits8_of_f32_avx2(x + i, test, low, high);
        bits |= bits8_of_f32_avx2(x + i + 8, test, low, high) << 8;
        bits |= bits8_of_f32_avx2(x + i + 16, test, low, high) << 16;
        bits |= bits8_of_f32_avx2(x + i + 24, test, low, high) << 24;
        memcpy(out + i / 8, &bits, sizeof bits);
    }
    pack_f32_any(x + i, out + i / 8, n - i, test, low, high);
}

BNN_INLINE BNN_AVX2 void pack_b8_avx2(const uint8_t *x, uint8_t *out, i64 n) {
    const __m256i nil = _mm256_setzero_si256();
    i64 i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i v = _mm256_loadu_si256((const void *)(x + i));
        uint32_t bits = ~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, nil));
        memcpy(out + i / 8, &bits, sizeof bits);
    }
    pack_b8_any(x + i, out + i / 8, n - i);
}
#endif

/* The test a constant, so that loops don't ask. */
#define PACK_F32(ISA)                                                                          \
    static void pack_tested_##ISA(const float *x, uint8_t *packed, i64 n, enum bnn_test test,  \
                                  float low, float high) {                                     \
        if (test == BNN_GREATER) pack_f32_##ISA(x, packed, n, BNN_GREATER, 0, 0);              \
        if (test == BNN_NOT_LESS) pack_f32_##ISA(x, packed, n, BNN_NOT_LESS, 0, 0);            \
        if (test == BNN_RANGE) pack_f32_##ISA(x, packed, n, BNN_RANGE, low, high);             \
    }

PACK_F32(any)
#if BNN_X86_64
BNN_AVX2 PACK_F32(avx2)
#endif

void bnn_pack_floats(const float *x, uint8_t *packed, i64 n, enum bnn_test test, float low,
                     float high) {
    BNN_PICK(pack_tested)(x, packed, n, test, low, high);
}

/* Pieces begin .. end - 1; what has to be converted goes tile by tile. */
static void pack_pieces(void *context, i64 begin, i64 end, int thread) {
    const struct pack *p = context;
    (void)thread;
    for (i64 i = begin; i < end; i++) {
        const struct bnn_piece piece = bnn_piece_of(&p->rows, i);
        const i64 tile = p->type == BNN_F32 ? piece.n : BNN_TILE;
        uint8_t *out = p->packed + piece.byte;
        for (i64 at = 0; at < piece.n; at += tile) {
            const i64 m = bnn_min(tile, piece.n - at);
            float room[BNN_TILE];
            const float *x = bnn_floats(p->x, piece.element + at, m, p->type, room);
            bnn_pack_floats(x, out + at / 8, m, p->test, p->low, p->high);
        }
    }
}

#define PACK_B8(PACK)                                                          \
    const struct pack *p = context;                                            \
    (void)thread;                                                              \
    for (i64 i = begin; i < end; i++) {                                        \
        const struct bnn_piece piece = bnn_piece_of(&p->rows, i);              \
        PACK((const uint8_t *)p->x + piece.element, p->packed + piece.byte, piece.n); \
    }

static void pack_b8_body_any(void *context, i64 begin, i64 end, int thread) {
    PACK_B8(pack_b8_any)
}

#if BNN_X86_64
BNN_AVX2 static void pack_b8_body_avx2(void *context, i64 begin, i64 end, int thread) {
    PACK_B8(pack_b8_avx2)
}
#endif

/* x: rows x row elements of a type. packed: rows x ceil(row / 8) bytes. */
BNN_EXPORT void bnn_sign_pack(const void *x, uint8_t *packed, i64 rows, i64 row, i64 type) {
    struct pack p = {.x = x, .packed = packed, .rows = {.row = row}, .type = type, .test = BNN_GREATER};
    bnn_parallel_rows(&p.rows, rows, pack_pieces, &p);
}

BNN_EXPORT void bnn_not_negative_pack(const void *x, uint8_t *packed, i64 rows, i64 row,
                                      i64 type) {
    struct pack p = {.x = x, .packed = packed, .rows = {.row = row}, .type = type, .test = BNN_NOT_LESS};
    bnn_parallel_rows(&p.rows, rows, pack_pieces, &p);
}

BNN_EXPORT void bnn_range_pack(const void *x, uint8_t *packed, i64 rows, i64 row, i64 type,
                               float low, float high) {
    struct pack p = {.x = x, .packed = packed, .rows = {.row = row}, .type = type, .test = BNN_RANGE,
                     .low = low, .high = high};
    bnn_parallel_rows(&p.rows, rows, pack_pieces, &p);
}

BNN_EXPORT void bnn_pack_bits_b8(const uint8_t *mask, uint8_t *packed, i64 rows, i64 row) {
    struct pack p = {.x = mask, .packed = packed, .rows = {.row = row}};
    bnn_parallel_rows(&p.rows, rows, BNN_PICK(pack_b8_body), &p);
}
