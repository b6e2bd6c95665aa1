/* The windows of two-dimensional pooling. */
#ifndef BNN_WINDOW_H
#define BNN_WINDOW_H

#include "bnn_variants.h"

enum { TILE = 64 }; /* outputs of a row that are worked on together */

/* Output o of an axis has tap k on element o * stride + k * dilation - begin. */
struct bnn_window {
    i64 h, w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    i64 begin_h, begin_w, end_h, end_w;
};

/* A tile's outputs first .. last - 1, on row y. */
struct tile {
    i64 y, first, last;
};

/* How many outputs of the tile have the tap `offset` inside the row, and the first of them. */
BNN_INLINE i64 inside(const struct bnn_window *g, const struct tile *t, i64 stride, i64 offset,
                      i64 *first) {
    i64 least = offset < 0 ? bnn_ceil_div(-offset, stride) : 0;
    i64 most = offset < g->w ? (g->w - 1 - offset) / stride + 1 : 0;
    *first = bnn_max(t->first, least);
    return bnn_min(t->last, most) - *first;
}

#endif
