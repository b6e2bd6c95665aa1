/* Bits to booleans, to -1 and +1, and as a mask of gradients. The layout is that of bnn_pack.c; the
   spare bits of a row's last byte are not read. */
#include "bnn_rows.h"
#include "bnn_tiles.h"

#if BNN_X86_64
#include <immintrin.h>
#endif

struct unpack {
    const uint8_t *packed;
    const void *dy; /* as out, of `type` */
    void *out;
    enum bnn_type type;
    struct bnn_rows rows;
};

BNN_INLINE unsigned bit_of(const uint8_t *packed, i64 i) { return packed[i / 8] >> (i % 8) & 1u; }

/* All ones in the lanes whose bits are set, for elements 0 .. 3 and 4 .. 7 of a byte. */
BNN_INLINE void lanes_of(v4i *a, v4i *b, uint8_t byte) {
    const v4i low_bits = {1, 2, 4, 8}, high_bits = {16, 32, 64, 128};
    const v4i all = {byte, byte, byte, byte};
    *a = (all & low_bits) == low_bits;
    *b = (all & high_bits) == high_bits;
}

BNN_INLINE void sign4(float *y, v4i mask) {
    const v4i one = {0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000};
    v4i signs = one | (~mask & INT32_MIN);
    memcpy(y, &signs, sizeof signs);
}

BNN_INLINE void keep4(float *dx, const float *dy, v4i mask) {
    const v4i one = {0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000};
    v4i factor = mask & one;
    v4f v, f;
    bnn_load(&v, dy);
    memcpy(&f, &factor, sizeof f);
    v *= f; /* 0 times NaN or infinity is NaN, as in the operator's body */
    memcpy(dx, &v, sizeof v);
}

BNN_INLINE void sign_unpack_any(const uint8_t *packed, void *out, i64 n) {
    float *y = out;
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v4i a, b;
        lanes_of(&a, &b, packed[i / 8]);
        sign4(y + i, a);
        sign4(y + i + 4, b);
    }
    for (; i < n; i++) y[i] = bit_of(packed, i) ? 1.0f : -1.0f;
}

BNN_INLINE void masked_grad_any(const uint8_t *packed, const float *dy, float *dx, i64 n) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v4i a, b;
        lanes_of(&a, &b, packed[i / 8]);
        keep4(dx + i, dy + i, a);
        keep4(dx + i + 4, dy + i + 4, b);
    }
    for (; i < n; i++) dx[i] = dy[i] * (float)bit_of(packed, i);
}

BNN_INLINE void unpack_bits_any(const uint8_t *packed, void *out, i64 n) {
    uint8_t *mask = out;
    i64 i = 0;
    for (; i + 8 <= n; i += 8) { /* bit j alone in byte j, carried to the byte's top, then down */
        uint64_t v = packed[i / 8] * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201);
        v = (v + UINT64_C(0x7f7f7f7f7f7f7f7f)) >> 7 & UINT64_C(0x0101010101010101);
        memcpy(mask + i, &v, sizeof v);
    }
    for (; i < n; i++) mask[i] = (uint8_t)bit_of(packed, i);
}

#if BNN_X86_64
BNN_INLINE BNN_AVX2 __m256i lanes_of_avx2(uint8_t byte) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(byte), bits), bits);
}

BNN_INLINE BNN_AVX2 void sign_unpack_avx2(const uint8_t *packed, void *out, i64 n) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    float *y = out;
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 set = _mm256_castsi256_ps(lanes_of_avx2(packed[i / 8]));
        _mm256_storeu_ps(y + i, _mm256_or_ps(one, _mm256_andnot_ps(set, sign)));
    }
    sign_unpack_any(packed + i / 8, y + i, n - i);
}

BNN_INLINE BNN_AVX2 void masked_grad_avx2(const uint8_t *packed, const float *dy, float *dx,
                                          i64 n) {
    const __m256 one = _mm256_set1_ps(1.0f);
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 factor = _mm256_and_ps(one, _mm256_castsi256_ps(lanes_of_avx2(packed[i / 8])));
        _mm256_storeu_ps(dx + i, _mm256_mul_ps(_mm256_loadu_ps(dy + i), factor));
    }
    masked_grad_any(packed + i / 8, dy + i, dx + i, n - i);
}

BNN_INLINE BNN_AVX2 void unpack_bits_avx2(const uint8_t *packed, void *out, i64 n) {
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                                              0x0303030303030303);
    const __m256i bits = _mm256_set1_epi64x((long long)0x8040201008040201u);
    uint8_t *mask = out;
    i64 i = 0;
    for (; i + 32 <= n; i += 32) {
        int32_t four;
        memcpy(&four, packed + i / 8, sizeof four);
        __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(four), spread);
        __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
        _mm256_storeu_si256((void *)(mask + i), _mm256_and_si256(set, _mm256_set1_epi8(1)));
    }
    unpack_bits_any(packed + i / 8, mask + i, n - i);
}
#endif

/* Calls UNPACK on every piece of begin .. end - 1; SIZE is the bytes of an output element. */
#define PIECES(UNPACK, SIZE)                                                                 \
    const struct unpack *u = context;                                                        \
    (void)thread;                                                                            \
    for (i64 i = begin; i < end; i++) {                                                      \
        const struct bnn_piece piece = bnn_piece_of(&u->rows, i);                            \
        UNPACK(u->packed + piece.byte, (char *)u->out + piece.element * (SIZE), piece.n);    \
    }

/* What has to be converted goes tile by tile. */
#define MASKED_GRAD(ISA)                                                                       \
    static void masked_grad_body_##ISA(void *context, i64 begin, i64 end, int thread) {        \
        const struct unpack *u = context;                                                      \
        float room[BNN_TILE];                                                                  \
        (void)thread;                                                                          \
        for (i64 i = begin; i < end; i++) {                                                    \
            const struct bnn_piece piece = bnn_piece_of(&u->rows, i);                          \
            const i64 tile = u->type == BNN_F32 ? piece.n : BNN_TILE;                          \
            for (i64 at = 0; at < piece.n; at += tile) {                                       \
                const i64 element = piece.element + at, m = bnn_min(tile, piece.n - at);       \
                const float *dy = bnn_floats(u->dy, element, m, u->type, room);                \
                float *dx = bnn_room(u->out, element, u->type, room);                          \
                masked_grad_##ISA(u->packed + piece.byte + at / 8, dy, dx, m);                 \
                bnn_keep(dx, u->out, element, m, u->type);                                     \
            }                                                                                  \
        }                                                                                      \
    }

#define BODY(NAME, ISA, SIZE)                                                              \
    static void NAME##_body_##ISA(void *context, i64 begin, i64 end, int thread) {         \
        PIECES(NAME##_##ISA, SIZE)                                                         \
    }

BODY(sign_unpack, any, 4)
MASKED_GRAD(any)
BODY(unpack_bits, any, 1)
#if BNN_X86_64
BNN_AVX2 BODY(sign_unpack, avx2, 4)
BNN_AVX2 MASKED_GRAD(avx2)
BNN_AVX2 BODY(unpack_bits, avx2, 1)
#endif

/* packed: rows x ceil(row / 8) bytes. y: rows x row, +1 where the bit is set, else -1. */
BNN_EXPORT void bnn_sign_unpack_f32(const uint8_t *packed, float *y, i64 rows, i64 row) {
    struct unpack u = {.packed = packed, .out = y, .rows = {.row = row}};
    bnn_parallel_rows(&u.rows, rows, BNN_PICK(sign_unpack_body), &u);
}

BNN_EXPORT void bnn_unpack_bits_b8(const uint8_t *packed, uint8_t *mask, i64 rows, i64 row) {
    struct unpack u = {.packed = packed, .out = mask, .rows = {.row = row}};
    bnn_parallel_rows(&u.rows, rows, BNN_PICK(unpack_bits_body), &u);
}

/* dx = dy times the bit, both of `type`; dx may be dy. */
BNN_EXPORT void bnn_masked_grad(const void *dy, const uint8_t *packed, void *dx, i64 rows, i64 row,
                                i64 type) {
    struct unpack u = {.packed = packed, .dy = dy, .out = dx, .type = type, .rows = {.row = row}};
    bnn_parallel_rows(&u.rows, rows, BNN_PICK(masked_grad_body), &u);
}
