/* What the kernels of batch normalisation share; x is (N, C, length), or (N, C) with length 1.

   Sums are taken in float64, of one channel on one thread, always in the same order: tiles of a
   plane, counted from its start, so that it does not matter which channels a thread takes. */
#ifndef BNN_NORMALIZATION_H
#define BNN_NORMALIZATION_H

#include "bnn_tiles.h"

#include <math.h>

enum {
    STRIP = 256, /* most channels that a walk down the rows of (N, C) takes along */
    GROUP = 16,  /* most channels whose planes, where they are small, are read in one run */
    RUN = 128    /* elements of such a run, where GROUP allows */
};

/* Channels that one thread takes together: enough for long runs, few enough for every thread, and
   a multiple of `whole`. It does not change the results. */
static inline i64 bnn_channels_together(i64 c, i64 length, i64 whole) {
    const i64 share = bnn_ceil_div(c, bnn_threads()), line = 16;
    if (length == 1) return bnn_min(STRIP, bnn_ceil_div(share, line) * line);
    const i64 wanted = bnn_max(1, bnn_min(bnn_min(GROUP, RUN / length), share));
    return bnn_ceil_div(wanted, whole) * whole;
}

/* Both halves of sums in two vectors. */
BNN_INLINE double bnn_sum_pair(const v4d *sums) {
    v4d both = sums[0] + sums[1];
    return bnn_sum4(&both);
}

typedef i64 v4l __attribute__((vector_size(32)));

/* Two vectors of sums of |x - mean|. */
BNN_INLINE void bnn_add_deviations(const float *x, i64 n, double mean, v4d *sums) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v4d a, b;
        bnn_load_wide(&a, x + i);
        bnn_load_wide(&b, x + i + 4);
        a -= mean, b -= mean;
        sums[0] += (v4d)((v4l)a & INT64_MAX), sums[1] += (v4d)((v4l)b & INT64_MAX);
    }
    for (; i < n; i++) sums[0][i % 4] += fabs(x[i] - mean);
}

#endif
