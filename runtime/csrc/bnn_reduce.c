/* Sums and means over some axes of floats, taken in float64.

   x is (kept[0], summed[0], kept[1], summed[1]). One thread takes all of a sum, in the order of x:
   it does not matter how many there are. */
#include "bnn_variants.h"

enum { STRIP = 256 }; /* most sums that a walk down the rows takes along */

struct reduction {
    const float *x;
    float *y;
    i64 kept[2], summed[2], strips;
    double divisor;
};

/* Sums begin .. end - 1 of kept[0] x kept[1]: each over runs of summed[1]. */
BNN_INLINE void sum_runs(void *context, i64 begin, i64 end) {
    const struct reduction r = *(const struct reduction *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 first = i / r.kept[1] * r.summed[0] * r.kept[1] + i % r.kept[1];
        double sum = 0;
        for (i64 j = 0; j < r.summed[0]; j++)
            sum += bnn_sum(r.x + (first + j * r.kept[1]) * r.summed[1], r.summed[1]);
        r.y[i] = (float)(sum / r.divisor);
    }
}

/* Strips begin .. end - 1 of kept[0] x strips: neighbours of kept[1] together; summed[1] is 1. */
BNN_INLINE void sum_rows(void *context, i64 begin, i64 end) {
    const struct reduction r = *(const struct reduction *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 outer = i / r.strips, at = i % r.strips * STRIP;
        const i64 width = bnn_min(STRIP, r.kept[1] - at);
        const float *x = r.x + outer * r.summed[0] * r.kept[1] + at;
        double sums[STRIP] = {0};
        for (i64 row = 0; row < r.summed[0]; row++, x += r.kept[1])
            for (i64 j = 0; j < width; j++) sums[j] += x[j];
        for (i64 j = 0; j < width; j++)
            r.y[outer * r.kept[1] + at + j] = (float)(sums[j] / r.divisor);
    }
}

BNN_BOTH(sum_runs)
BNN_BOTH(sum_rows)

/* y: (kept_0, kept_1), the sums by `divisor`. */
BNN_EXPORT void bnn_reduce_f32(const float *x, float *y, i64 kept_0, i64 summed_0, i64 kept_1,
                               i64 summed_1, i64 divisor) {
    struct reduction r = {x, y, {kept_0, kept_1}, {summed_0, summed_1},
                          bnn_ceil_div(kept_1, STRIP), (double)divisor};
    const i64 size = summed_0 * summed_1;
    if (summed_1 > 1) bnn_parallel(kept_0 * kept_1, bnn_grain_of(size), BNN_PICK(sum_runs), &r);
    else bnn_parallel(kept_0 * r.strips, bnn_grain_of(size * STRIP), BNN_PICK(sum_rows), &r);
}
