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

/* Bytes (n, channels, plane), each channel with a factor and a shift; NULL for none. */
typedef struct {
    const uint8_t *x;
    const float *factor, *shift;
    i64 channels, plane;
} bnn_images;

/* Elements i .. i + n - 1. */
BNN_INLINE void bnn_normalize_at(const bnn_images *p, i64 i, i64 n, float *y) {
    while (n > 0) {
        const i64 c = i / p->plane % p->channels;
        const i64 left = p->plane == 1 ? p->channels - c : p->plane - i % p->plane;
        const i64 count = bnn_min(n, left);
        if (p->plane == 1)
            bnn_normalize_row(p->x + i, count, p->factor + c, p->shift + c, y);
        else
            bnn_normalize(p->x + i, count, 1, p->factor[c], p->shift[c], y);
        i += count, n -= count, y += count;
    }
}

#endif
