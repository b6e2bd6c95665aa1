/* Sums and means over some axes of floats, taken in float64; and the largest of them.

   x is (kept[0], summed[0], kept[1], summed[1]). One thread takes all of a sum, in the order of x:
   it does not matter how many there are. */
#include <math.h>

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

BNN_INLINE float largest(const float *x, i64 n, float most) {
    enum { LANES = 32 };
    float lanes[LANES];
    i64 i = 0;
    if (n >= LANES) {
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = most;
        for (; i + LANES <= n; i += LANES)
            for (int lane = 0; lane < LANES; lane++) lanes[lane] = bnn_larger(x[i + lane], lanes[lane]);
        for (int half = LANES / 2; half > 0; half /= 2)
            for (int lane = 0; lane < half; lane++)
                lanes[lane] = bnn_larger(lanes[half + lane], lanes[lane]);
        most = lanes[0];
    }
    for (; i < n; i++) most = bnn_larger(x[i], most);
    return most;
}

/* As `sum_runs`, the largest. */
BNN_INLINE void most_of_runs(void *context, i64 begin, i64 end) {
    const struct reduction r = *(const struct reduction *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 first = i / r.kept[1] * r.summed[0] * r.kept[1] + i % r.kept[1];
        float most = -INFINITY;
        for (i64 j = 0; j < r.summed[0]; j++)
            most = largest(r.x + (first + j * r.kept[1]) * r.summed[1], r.summed[1], most);
        r.y[i] = most;
    }
}

/* As `sum_rows`. */
BNN_INLINE void most_of_rows(void *context, i64 begin, i64 end) {
    const struct reduction r = *(const struct reduction *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 outer = i / r.strips, at = i % r.strips * STRIP;
        const i64 width = bnn_min(STRIP, r.kept[1] - at);
        const float *x = r.x + outer * r.summed[0] * r.kept[1] + at;
        float most[STRIP];
        for (i64 j = 0; j < width; j++) most[j] = -INFINITY;
        for (i64 row = 0; row < r.summed[0]; row++, x += r.kept[1])
            for (i64 j = 0; j < width; j++) most[j] = bnn_larger(x[j], most[j]);
        memcpy(r.y + outer * r.kept[1] + at, most, (size_t)width * sizeof *most);
    }
}
BNN_BOTH(most_of_runs)
BNN_BOTH(most_of_rows)

static void run(struct reduction *r, bnn_body runs, bnn_body rows) {
    const i64 size = r->summed[0] * r->summed[1];
    r->strips = bnn_ceil_div(r->kept[1], STRIP);
    if (r->summed[1] > 1) bnn_parallel(r->kept[0] * r->kept[1], bnn_grain_of(size), runs, r);
    else bnn_parallel(r->kept[0] * r->strips, bnn_grain_of(size * STRIP), rows, r);
}

/* y: (kept_0, kept_1), the sums by `divisor`. */
BNN_EXPORT void bnn_reduce_f32(const float *x, float *y, i64 kept_0, i64 summed_0, i64 kept_1,
                               i64 summed_1, i64 divisor) {
    struct reduction r = {.x = x, .y = y, .kept = {kept_0, kept_1}, .summed = {summed_0, summed_1},
                          .divisor = (double)divisor};
    run(&r, BNN_PICK(sum_runs), BNN_PICK(sum_rows));
}

/* y: (kept_0, kept_1), the largest of the same; NaN wins. */
BNN_EXPORT void bnn_reduce_max_f32(const float *x, float *y, i64 kept_0, i64 over_0, i64 kept_1,
                                   i64 over_1) {
    struct reduction r = {.x = x, .y = y, .kept = {kept_0, kept_1}, .summed = {over_0, over_1}};
    run(&r, BNN_PICK(most_of_runs), BNN_PICK(most_of_rows));
}
