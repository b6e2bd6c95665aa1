/* Rows of elements with a bit each, every row from a whole byte on, shared out among the threads. */
#ifndef BNN_ROWS_H
#define BNN_ROWS_H

#include "bnn_variants.h"

struct bnn_rows {
    i64 row, row_bytes, piece, pieces; /* elements and bytes a row, elements and number of pieces */
};

/* A part of a row: its first element and byte, counted through all rows, and its elements. */
struct bnn_piece {
    i64 element, byte, n;
};

BNN_INLINE struct bnn_piece bnn_piece_of(const struct bnn_rows *r, i64 i) {
    const i64 row = i / r->pieces, start = i % r->pieces * r->piece;
    return (struct bnn_piece){row * r->row + start, row * r->row_bytes + start / 8,
                              bnn_min(r->piece, r->row - start)};
}

/* Run `body` over the pieces of so many rows; r, of which `row` is set, is for the body. */
static inline void bnn_parallel_rows(struct bnn_rows *r, i64 rows, bnn_body body, void *context) {
    if (r->row % 8 == 0) { /* no spare bits: one long row */
        r->row *= rows;
        rows = rows > 0;
    }
    r->row_bytes = bnn_ceil_div(r->row, 8);
    r->piece = BNN_GRAIN;
    r->pieces = bnn_ceil_div(r->row, r->piece);
    bnn_parallel(rows * r->pieces, bnn_grain_of(bnn_min(r->row, r->piece)), body, context);
}

#endif
