/* Tensors of six axes, each with strides of its own. */
#ifndef BNN_AXES_H
#define BNN_AXES_H

#include "bnn_variants.h"

enum { BNN_AXES = 6 };

/* A walk over the rows of two tensors of one shape: all axes but the last. `axes`: six lengths, the
   strides of the first tensor, those of the second, in elements. */
struct bnn_walk {
    const i64 *axes;
    i64 at[BNN_AXES - 1];
    i64 first, second; /* elements up to the row in each */
};

BNN_INLINE i64 bnn_rows_of(const i64 *axes) {
    i64 n = 1;
    for (int axis = 0; axis < BNN_AXES - 1; axis++) n *= axes[axis];
    return n;
}

/* Items of `bnn_parallel`, which are rows, to a chunk. */
BNN_INLINE i64 bnn_row_grain(const i64 *axes) { return bnn_grain_of(axes[BNN_AXES - 1]); }

BNN_INLINE struct bnn_walk bnn_walk_from(const i64 *axes, i64 row) {
    struct bnn_walk w = {axes, {0}, 0, 0};
    for (int axis = BNN_AXES - 2; axis >= 0; axis--) {
        w.at[axis] = row % axes[axis];
        w.first += w.at[axis] * axes[BNN_AXES + axis];
        w.second += w.at[axis] * axes[2 * BNN_AXES + axis];
        row /= axes[axis];
    }
    return w;
}

BNN_INLINE void bnn_walk_on(struct bnn_walk *w) {
    for (int axis = BNN_AXES - 2; axis >= 0; axis--) {
        const i64 length = w->axes[axis], back = ++w->at[axis] < length ? 1 : 1 - length;
        w->first += back * w->axes[BNN_AXES + axis];
        w->second += back * w->axes[2 * BNN_AXES + axis];
        if (back == 1) return;
        w->at[axis] = 0;
    }
}

#endif
