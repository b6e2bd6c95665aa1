/* Bytes that are read as floats: x * factor + shift, rounded after each of the two. */
#ifndef BNN_NORMALIZE_H
#define BNN_NORMALIZE_H

#include "bnn_variants.h"

/* y[i] of x[i * step]. */
BNN_INLINE void bnn_normalize(const uint8_t *x, i64 n, i64 step, float factor, float shift,
                              float *y) {
    if (step == 1)
        for (i64 i = 0; i < n; i++) y[i] = (float)x[i] * factor + shift;
    else
        for (i64 i = 0; i < n; i++) y[i] = (float)x[i * step] * factor + shift;
}

/* The same where each element is of a channel of its own. */
BNN_INLINE void bnn_normalize_row(const uint8_t *x, i64 n, const float *factor, const float *shift,
                                  float *y) {
    for (i64 i = 0; i < n; i++) y[i] = (float)x[i] * factor[i] + shift[i];
}

#endif
