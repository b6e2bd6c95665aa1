/* Floats to signed powers of two in 5 bits, and back; see bnn_pow2.h for the layout. */
#include "bnn_pow2.h"

#include "bnn_tiles.h"

enum {
    TOP = 15,                    /* exponent of the largest element */
    LOWEST = 1, HIGHEST = 239,   /* of the unit, as a float has it: multiples are normal numbers */
    ONE = 127,                   /* exponent of 1, as a float has it */
    TO_NEAREST = 0x800000 - 0x3504F4, /* carries into the exponent from sqrt(2) on */
    INFINITE = 0x7f800000,
};

/* ---- Decoding ---- */

BNN_INLINE float one_of_row(const uint8_t *row, const uint8_t *signs, i64 i, float unit) {
    const uint32_t code = row[i / 2] >> 4 * (i % 2) & 15, sign = signs[i / 8] >> i % 8 & 1;
    const float power = bnn_float_of_bits(code ? (code + ONE) << 23 : 0);
    return bnn_float_of_bits(bnn_bits_of_float(power) | sign << 31) * unit;
}

/* Eight elements of 32 bits of exponents and 8 of signs. */
BNN_INLINE void decode8(uint32_t exponents, unsigned signs, float unit, float *y) {
    const v8i places = {0, 4, 8, 12, 16, 20, 24, 28}, marks = {1, 2, 4, 8, 16, 32, 64, 128};
    const v8i code = ((v8i){0} + (int32_t)exponents) >> places & 15;
    const v8i sign = ((((v8i){0} + (int32_t)signs) & marks) == marks) & INT32_MIN;
    const v8i bits = ((code + ONE) << 23 & (code > 0)) | sign;
    const v8f x = (v8f)bits * unit;
    memcpy(y, &x, sizeof x);
}

BNN_INLINE void decode(const uint8_t *row, i64 length, i64 begin, float unit, float *y, i64 n) {
    const uint8_t *signs = row + bnn_pow2_exponent_bytes(length);
    const i64 end = begin + n;
    i64 i = begin;
    if (begin % 8 == 0) {
        for (; i + 8 <= end; i += 8) {
            uint32_t exponents;
            memcpy(&exponents, row + i / 2, sizeof exponents);
            decode8(exponents, signs[i / 8], unit, y + i - begin);
        }
    } else { /* reads to the end of the next eight, which have to be there */
        for (; i + 8 <= end && i + 16 <= length; i += 8) {
            uint64_t exponents;
            uint16_t both;
            memcpy(&exponents, row + i / 2, sizeof exponents);
            memcpy(&both, signs + i / 8, sizeof both);
            decode8((uint32_t)(exponents >> 4 * (i % 2)), both >> i % 8 & 255, unit, y + i - begin);
        }
    }
    for (; i < end; i++) y[i - begin] = one_of_row(row, signs, i, unit);
}

static void decode_any(const uint8_t *row, i64 length, i64 begin, float unit, float *y, i64 n) {
    decode(row, length, begin, unit, y, n);
}

#if BNN_X86_64
BNN_AVX2 static void decode_avx2(const uint8_t *row, i64 length, i64 begin, float unit, float *y,
                                 i64 n) {
    decode(row, length, begin, unit, y, n);
}
#endif

void bnn_decode_pow2(const uint8_t *row, i64 length, i64 begin, float unit, float *y, i64 n) {
    BNN_PICK(decode)(row, length, begin, unit, y, n);
}

struct codec {
    const void *x;
    enum bnn_type type;
    uint8_t *packed;
    const uint8_t *bytes;
    float *y, unit;
    i64 row, row_bytes, piece, pieces; /* elements and bytes a row, elements and number of pieces */
    i64 n;
    int32_t base; /* exponent of the unit, as a float has it */
};

static void decode_pieces(void *context, i64 begin, i64 end, int thread) {
    const struct codec *p = context;
    (void)thread;
    for (i64 i = begin; i < end; i++) {
        const i64 row = i / p->pieces, start = i % p->pieces * p->piece;
        bnn_decode_pow2(p->bytes + row * p->row_bytes, p->row, start, p->unit,
                        p->y + row * p->row + start, bnn_min(p->piece, p->row - start));
    }
}

/* ---- Encoding ---- */

BNN_INLINE uint32_t code_of(float x, int32_t base) {
    const int32_t magnitude = (int32_t)(bnn_bits_of_float(x) & INT32_MAX);
    const int32_t code = ((magnitude + TO_NEAREST) >> 23) - base;
    return (uint32_t)(code < 0 ? 0 : code > TOP ? TOP : code);
}

/* In every lane the bits of all. */
BNN_INLINE void united(v8i *v) {
    *v |= BNN_SHUFFLE(v8i, *v, *v, 4, 5, 6, 7, 0, 1, 2, 3);
    *v |= BNN_SHUFFLE(v8i, *v, *v, 2, 3, 0, 1, 6, 7, 4, 5);
    *v |= BNN_SHUFFLE(v8i, *v, *v, 1, 0, 3, 2, 5, 4, 7, 6);
}

/* The exponents of eight elements in 32 bits, and their signs in eight. */
BNN_INLINE uint32_t encode8(const float *x, int32_t base, uint8_t *signs) {
    const v8i places = {0, 4, 8, 12, 16, 20, 24, 28}, marks = {1, 2, 4, 8, 16, 32, 64, 128};
    v8f v;
    memcpy(&v, x, sizeof v);
    v8i code = ((((v8i)v & INT32_MAX) + TO_NEAREST) >> 23) - base;
    code &= code > 0;
    code = (code & (code <= TOP)) | ((code > TOP) & TOP);
    v8i both = code << places, marked = (v < 0) & marks;
    united(&both), united(&marked);
    *signs = (uint8_t)marked[0];
    return (uint32_t)both[0];
}

/* n elements, a multiple of 8 or the last of a row, whose bytes are exponents and signs. */
BNN_INLINE void encode(const float *x, i64 n, int32_t base, uint8_t *exponents, uint8_t *signs) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        const uint32_t eight = encode8(x + i, base, signs + i / 8);
        memcpy(exponents + i / 2, &eight, sizeof eight);
    }
    if (i == n) return;
    signs[i / 8] = 0;
    for (i64 j = i; j < n; j++) {
        const uint32_t code = code_of(x[j], base);
        exponents[j / 2] = (uint8_t)(j % 2 ? exponents[j / 2] | code << 4 : code);
        signs[i / 8] |= (uint8_t)((x[j] < 0) << (j - i));
    }
}

BNN_INLINE void encode_pieces(void *context, i64 begin, i64 end, int thread) {
    const struct codec *p = context;
    float room[BNN_TILE];
    (void)thread;
    for (i64 i = begin; i < end; i++) {
        const i64 row = i / p->pieces, start = i % p->pieces * p->piece;
        const i64 last = bnn_min(start + p->piece, p->row);
        uint8_t *exponents = p->packed + row * p->row_bytes;
        uint8_t *signs = exponents + bnn_pow2_exponent_bytes(p->row);
        for (i64 at = start; at < last; at += BNN_TILE) {
            const i64 m = bnn_min(BNN_TILE, last - at);
            const float *x = bnn_floats(p->x, row * p->row + at, m, p->type, room);
            encode(x, m, p->base, exponents + at / 2, signs + at / 8);
        }
    }
}

#define VARIANT(NAME, ISA)                                                             \
    static void NAME##_##ISA(void *context, i64 begin, i64 end, int thread) {          \
        NAME(context, begin, end, thread);                                             \
    }

VARIANT(encode_pieces, any)
#if BNN_X86_64
BNN_AVX2 VARIANT(encode_pieces, avx2)
#endif

static void run(struct codec *p, bnn_body body, i64 rows) {
    p->piece = BNN_GRAIN;
    p->pieces = bnn_ceil_div(p->row, p->piece);
    bnn_parallel(rows * p->pieces, bnn_grain_of(bnn_min(p->row, p->piece)), body, p);
}

/* The unit for a largest magnitude, both as bits: NaN where that is not finite, 0 where it is 0. */
static float unit_of(int32_t largest, int32_t *base) {
    if (largest == 0) return 0;
    if (largest >= INFINITE) return bnn_float_of_bits(0x7fc00000);
    const int32_t low = ((largest + TO_NEAREST) >> 23) - TOP;
    *base = low < LOWEST ? LOWEST : low > HIGHEST ? HIGHEST : low;
    return bnn_float_of_bits((uint32_t)*base << 23);
}

/* x: rows x row elements of a type. packed: rows x bnn_pow2_row_bytes(row) bytes. */
BNN_EXPORT void bnn_pow2_pack(const void *x, uint8_t *packed, float *unit, i64 rows, i64 row,
                              i64 type) {
    struct codec p = {.x = x, .packed = packed, .row = row, .type = type,
                      .row_bytes = bnn_pow2_row_bytes(row)};
    *unit = unit_of(bnn_largest_magnitude(x, rows * row, type), &p.base);
    if (*unit > 0) run(&p, BNN_PICK(encode_pieces), rows);
    else memset(packed, 0, (size_t)(rows * p.row_bytes));
}

BNN_EXPORT void bnn_pow2_unpack_f32(const uint8_t *packed, const float *unit, float *y, i64 rows,
                                    i64 row) {
    struct codec p = {.bytes = packed, .y = y, .unit = *unit, .row = row,
                      .row_bytes = bnn_pow2_row_bytes(row)};
    run(&p, decode_pieces, rows);
}
