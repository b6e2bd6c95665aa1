/* Sums over integers for the mean and the mean absolute deviation of channels: exact, so that their
   order is free and no element becomes a float64. */
#ifndef BNN_INTEGER_MOMENTS_H
#define BNN_INTEGER_MOMENTS_H

#include "bnn_variants.h"

#include <math.h>

enum { INTEGER_RUN = 1 << 15 }; /* whose sum fits 32 bits */

/* Over the elements of a channel, and those above its mean. */
struct integer_sums {
    i64 all, above, n_above;
};

BNN_INLINE void bnn_add_integers(const int16_t *x, i64 n, struct integer_sums *sums) {
    for (i64 at = 0; at < n; at += INTEGER_RUN) {
        int32_t all = 0;
        for (i64 i = at; i < bnn_min(n, at + INTEGER_RUN); i++) all += x[i];
        sums->all += all;
    }
}

BNN_INLINE void bnn_add_above(const int16_t *x, i64 n, int16_t limit, struct integer_sums *sums) {
    for (i64 at = 0; at < n; at += INTEGER_RUN) {
        int32_t above = 0, count = 0;
        for (i64 i = at; i < bnn_min(n, at + INTEGER_RUN); i++) {
            above += x[i] > limit ? x[i] : 0;
            count += x[i] > limit;
        }
        sums->above += above, sums->n_above += count;
    }
}

/* x > mean just where x > this. */
BNN_INLINE int16_t bnn_limit_of(float mean) { return (int16_t)floorf(mean); }

/* The sum of |x - mean| over `count` elements: what lies above less what lies below. */
BNN_INLINE double bnn_deviations_of(const struct integer_sums *sums, double mean, double count) {
    return (double)(2 * sums->above - sums->all) + (count - 2 * (double)sums->n_above) * mean;
}

#endif
