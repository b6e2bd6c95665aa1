/* A gradient in four bits: integers of -7 to 7 times one unit, rounded up or down by chance, two to
   a byte. The unit leaves out what few elements exceed. */
#include "bnn_int4.h"

#include "bnn_rounding.h"
#include "bnn_tiles.h"

enum { TOP = 7, MIDDLE = 8, HALVINGS = 5, MAX_THREADS = 64, INFINITE = 0x7f800000 };
static const float LEAST = 0x1p-100f; /* below which a largest magnitude counts as this */

/* ---- The unit ---- */

struct count {
    const void *x;
    enum bnn_type type;
    int32_t bounds[HALVINGS];                  /* as bits, which order as magnitudes do */
    i64 above[MAX_THREADS][HALVINGS];
};

BNN_INLINE void count_above(void *context, i64 begin, i64 end, int thread) {
    struct count *c = context;
    float room[BNN_TILE];
    for (i64 at = begin; at < end; at += BNN_TILE) {
        const i64 n = bnn_min(BNN_TILE, end - at);
        const float *x = bnn_floats(c->x, at, n, c->type, room);
        for (int k = 0; k < HALVINGS; k++) {
            const int32_t bound = c->bounds[k];
            int32_t found = 0;
            for (i64 i = 0; i < n; i++)
                found += (int32_t)(bnn_bits_of_float(x[i]) & INT32_MAX) > bound;
            c->above[thread][k] += found;
        }
    }
}

#define VARIANT(NAME, ISA)                                                             \
    static void NAME##_##ISA(void *context, i64 begin, i64 end, int thread) {          \
        NAME(context, begin, end, thread);                                             \
    }

VARIANT(count_above, any)
#if BNN_X86_64
BNN_AVX2 VARIANT(count_above, avx2)
#endif

/* What the largest magnitude comes to when it is halved as often as no more than one in `one_in`
   elements exceeds the half. */
static float reach_of(const void *x, i64 n, enum bnn_type type, float largest, i64 one_in) {
    struct count c = {.x = x, .type = type};
    for (int k = 0; k < HALVINGS; k++)
        c.bounds[k] = (int32_t)bnn_bits_of_float(largest / (float)(2 << k));
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(count_above), &c);
    int halvings = 0;
    for (int k = 0; k < HALVINGS; k++) {
        i64 above = 0;
        for (int i = 0; i < MAX_THREADS; i++) above += c.above[i][k];
        halvings += above * one_in <= n;
    }
    return largest / (float)(1 << halvings);
}

/* ---- The integers ---- */

struct packing {
    const void *x;
    enum bnn_type type;
    uint8_t *packed;
    float inverse;
    uint32_t stream;
    i64 row, pieces; /* elements of a row, and the pieces of BNN_GRAIN that it is cut into */
};

/* floor(place + fraction), within -7 and 7, and 8 more. */
BNN_INLINE uint8_t code_of(float place, uint32_t drawn) {
    const float moved = place + (float)(int32_t)(drawn >> 8) * 0x1p-24f;
    const float inside = moved < -TOP ? -TOP : moved > TOP + 1 ? TOP + 1 : moved;
    const int32_t whole = (int32_t)inside, below = whole - ((float)whole > inside);
    return (uint8_t)((below > TOP ? TOP : below) + MIDDLE);
}

/* n elements, from an even one of the row on; `first` is the number of the first in the tensor. */
BNN_INLINE void pack_tile(const struct packing *p, const float *x, i64 first, i64 n, uint8_t *out) {
    uint8_t codes[BNN_TILE + 1];
    for (i64 i = 0; i < n; i++)
        codes[i] = code_of(x[i] * p->inverse, random32(p->stream + (uint32_t)(first + i)));
    codes[n] = 0;
    for (i64 i = 0; i < (n + 1) / 2; i++)
        out[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
}

BNN_INLINE void pack_pieces(void *context, i64 begin, i64 end, int thread) {
    const struct packing *p = context;
    float room[BNN_TILE];
    (void)thread;
    for (i64 piece = begin; piece < end; piece++) {
        const i64 row = piece / p->pieces, start = piece % p->pieces * BNN_GRAIN;
        const i64 last = bnn_min(start + BNN_GRAIN, p->row);
        uint8_t *out = p->packed + row * bnn_int4_row_bytes(p->row);
        for (i64 at = start; at < last; at += BNN_TILE) {
            const i64 n = bnn_min(BNN_TILE, last - at), first = row * p->row + at;
            pack_tile(p, bnn_floats(p->x, first, n, p->type, room), first, n, out + at / 2);
        }
    }
}

VARIANT(pack_pieces, any)
#if BNN_X86_64
BNN_AVX2 VARIANT(pack_pieces, avx2)
#endif

/* As if all integers were 0. */
static void pack_none(uint8_t *packed, i64 rows, i64 row) {
    const i64 n_bytes = bnn_int4_row_bytes(row);
    memset(packed, MIDDLE | MIDDLE << 4, (size_t)(rows * n_bytes));
    for (i64 i = 0; row % 2 && i < rows; i++) packed[(i + 1) * n_bytes - 1] = MIDDLE;
}

/* x: rows x row elements; packed: rows x bnn_int4_row_bytes(row) bytes. The bits are those of the
   seed and `step`. */
BNN_EXPORT void bnn_int4_pack(const void *x, const i64 *step, uint8_t *packed, float *unit,
                              i64 rows, i64 row, i64 seed, i64 one_in, i64 type) {
    const int32_t bits = bnn_largest_magnitude(x, rows * row, type);
    if (bits >= INFINITE) {
        *unit = bnn_float_of_bits(0x7fc00000);
        pack_none(packed, rows, row);
        return;
    }
    const float found = bnn_float_of_bits((uint32_t)bits), largest = found > LEAST ? found : LEAST;
    const float reach = reach_of(x, rows * row, type, largest, one_in);
    struct packing p = {.x = x, .type = type, .packed = packed, .inverse = TOP / reach,
                        .stream = stream_start(*step, seed), .row = row,
                        .pieces = bnn_ceil_div(row, BNN_GRAIN)};
    *unit = reach / TOP;
    bnn_parallel(rows * p.pieces, bnn_grain_of(bnn_min(row, BNN_GRAIN)), BNN_PICK(pack_pieces), &p);
}

/* q: rows x row integers. */
BNN_EXPORT void bnn_int4_unpack(const uint8_t *packed, int8_t *q, i64 rows, i64 row) {
    for (i64 i = 0; i < rows; i++)
        bnn_decode_int4(packed + i * bnn_int4_row_bytes(row), 0, q + i * row, row);
}
