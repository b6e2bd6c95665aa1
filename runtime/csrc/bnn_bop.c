/* Bop: binary weights without latent ones, arXiv:1906.02107. The numpy kernel's operations in their
   order: equal to the last bit. The outputs may be the buffers of w and m. */
#include "bnn_rounding.h"

#include <math.h>

enum { BLOCK = 512 };

struct bop {
    const uint8_t *w;
    const float *dw;
    const void *m; /* float, or bnn_half if `half` */
    uint8_t *next_w;
    void *next_m;
    i64 row, row_bytes, piece, pieces;
    int half;
    uint32_t stream;
    float keep, take, threshold;
};

/* Eight weights or fewer: the bits that turn. */
BNN_INLINE unsigned turning(const float *m, unsigned signs, float threshold, i64 n) {
    unsigned turns = 0;
    for (i64 i = 0; i < n; i++) {
        unsigned pushes_plus = m[i] > 0, is_plus = signs >> i & 1;
        turns |= (unsigned)(fabsf(m[i]) > threshold && pushes_plus == is_plus) << i;
    }
    return turns;
}

BNN_INLINE void bop_block(const struct bop *b, i64 at, i64 byte, i64 n) {
    float m[BLOCK];
    const float *dw = b->dw + at;
    if (b->half) {
        bnn_decode_halves((const bnn_half *)b->m + at, m, n);
        for (i64 i = 0; i < n; i++) m[i] *= 1 / STATE_SCALE;
    } else {
        memcpy(m, (const float *)b->m + at, (size_t)n * sizeof *m);
    }
    for (i64 i = 0; i < n; i++) m[i] = m[i] * b->keep + dw[i] * b->take;
    for (i64 i = 0; i < n; i += 8) {
        unsigned signs = b->w[byte + i / 8], used = (1u << bnn_min(8, n - i)) - 1;
        unsigned turns = turning(m + i, signs, b->threshold, bnn_min(8, n - i));
        b->next_w[byte + i / 8] = (uint8_t)((signs ^ turns) & used);
    }
    if (b->half) {
        for (i64 i = 0; i < n; i++) m[i] *= STATE_SCALE;
        store_by_chance(m, (bnn_half *)b->next_m + at, b->stream + (uint32_t)at, n);
    } else {
        memcpy((float *)b->next_m + at, m, (size_t)n * sizeof *m);
    }
}

BNN_INLINE void bop_pieces(void *context, i64 begin, i64 end) {
    const struct bop *b = context;
    for (i64 i = begin; i < end; i++) {
        i64 row = i / b->pieces, start = i % b->pieces * b->piece;
        i64 n = bnn_min(b->piece, b->row - start);
        for (i64 j = 0; j < n; j += BLOCK)
            bop_block(b, row * b->row + start + j, row * b->row_bytes + (start + j) / 8,
                      bnn_min(BLOCK, n - j));
    }
}

BNN_BOTH(bop_pieces)

/* w, next_w: rows x ceil(row / 8) bytes. dw: rows x row floats. m, next_m: as many floats, or halves
   that hold STATE_SCALE times the momentum if `half`. keep is 1 - gamma, take is gamma. */
BNN_EXPORT void bnn_bop_step(const uint8_t *w, const float *dw, const void *m, uint8_t *next_w,
                             void *next_m, i64 rows, i64 row, i64 half, i64 stream, float keep,
                             float take, float threshold) {
    struct bop b = {.w = w, .dw = dw, .m = m, .next_w = next_w, .next_m = next_m, .row = row,
                    .half = (int)half, .stream = (uint32_t)stream, .keep = keep, .take = take,
                    .threshold = threshold};
    if (row % 8 == 0) { /* no spare bits: one long row */
        b.row *= rows;
        rows = rows > 0;
    }
    b.row_bytes = bnn_ceil_div(b.row, 8);
    b.piece = BNN_GRAIN;
    b.pieces = bnn_ceil_div(b.row, b.piece);
    bnn_parallel(rows * b.pieces, bnn_grain_of(bnn_min(b.row, b.piece)), BNN_PICK(bop_pieces), &b);
}
