/* A tensor in its bitmap form, for kernels that decode stretches of it where they need them. */
#ifndef BNN_BITMAP_H
#define BNN_BITMAP_H

#include "bnn.h"

typedef struct {
    const float *x;  /* dense input: what is encoded, or dy */
    float *y;        /* dense output */
    uint8_t *bits;
    float *values;   /* including the 0 in front */
    i64 n_values;    /* that there are, where they are read */
    i64 *offsets;    /* values before each block, and the number of all */
    const uint32_t *floors; /* for every row the least magnitude to keep, as bits; or NULL */
    i64 block;       /* elements of a block */
    i64 row, row_bytes, blocks; /* elements and bytes of a row, blocks a row */
    i64 n_blocks;    /* of all rows */
} bnn_bitmap;

/* The tensor of rows x row elements with these bits and values, to be counted. */
bnn_bitmap bnn_bitmap_of(const uint8_t *bits, const float *values, i64 n_values, i64 rows,
                         i64 row);

/* Bytes of `offsets`, which the caller has to set. */
i64 bnn_bitmap_offset_bytes(const bnn_bitmap *b);

/* Fills the offsets: what decoding needs to begin anywhere. 0 if there are fewer values than bits. */
int bnn_bitmap_count(bnn_bitmap *b);

/* Elements first .. first + n - 1 of the tensor, which are of one row; `room` has n + 7 floats. */
const float *bnn_bitmap_take(const bnn_bitmap *b, i64 first, i64 n, float *room);

#endif
