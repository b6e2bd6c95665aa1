/* The gradient of y = x where x > 0, else slope x: dx, and sums of x dy over what a slope serves.

   x is (outer, middle, inner), the slope (middle). Sums are float64. */
#include "bnn_variants.h"

enum { STRIP = 64 }; /* slopes of neighbours that are taken along */

struct prelu {
    const float *dy, *x, *slope;
    float *dx, *dslope;
    i64 outer, middle, inner;
};

/* Slopes begin .. end - 1, each of planes. */
BNN_INLINE void prelu_planes(void *context, i64 begin, i64 end) {
    const struct prelu p = *(const struct prelu *)context;
    for (i64 c = begin; c < end; c++) {
        const float slope = p.slope[c];
        double sum = 0;
        for (i64 n = 0; n < p.outer; n++) {
            const i64 first = (n * p.middle + c) * p.inner;
            const float *x = p.x + first, *dy = p.dy + first;
            float *dx = p.dx + first;
            v4d sums = {0};
            i64 i = 0;
            for (; i + 4 <= p.inner; i += 4)
                for (int lane = 0; lane < 4; lane++)
                    sums[lane] += x[i + lane] > 0 ? 0.0f : dy[i + lane] * x[i + lane];
            for (; i < p.inner; i++) sums[0] += x[i] > 0 ? 0.0f : dy[i] * x[i];
            sum += bnn_sum4(&sums);
            BNN_SAME_OR_APART
            for (i = 0; i < p.inner; i++) dx[i] = x[i] > 0 ? dy[i] : dy[i] * slope;
        }
        p.dslope[c] = (float)sum;
    }
}
BNN_BOTH(prelu_planes)

/* Strips begin .. end - 1 of slopes, each of one element of a row. */
BNN_INLINE void prelu_strips(void *context, i64 begin, i64 end) {
    const struct prelu p = *(const struct prelu *)context;
    for (i64 at = begin * STRIP; at < bnn_min(end * STRIP, p.middle); at += STRIP) {
        const i64 width = bnn_min(STRIP, p.middle - at);
        const float *slope = p.slope + at;
        double sums[STRIP] = {0};
        for (i64 n = 0; n < p.outer; n++) {
            const float *x = p.x + n * p.middle + at, *dy = p.dy + n * p.middle + at;
            float *dx = p.dx + n * p.middle + at;
            for (i64 i = 0; i < width; i++) sums[i] += x[i] > 0 ? 0.0f : dy[i] * x[i];
            BNN_SAME_OR_APART
            for (i64 i = 0; i < width; i++) dx[i] = x[i] > 0 ? dy[i] : dy[i] * slope[i];
        }
        for (i64 i = 0; i < width; i++) p.dslope[at + i] = (float)sums[i];
    }
}
BNN_BOTH(prelu_strips)

/* dx may be dy. */
BNN_EXPORT void bnn_prelu_grad_f32(const float *dy, const float *x, const float *slope, float *dx,
                                   float *dslope, i64 outer, i64 middle, i64 inner) {
    struct prelu p = {dy, x, slope, dx, dslope, outer, middle, inner};
    if (inner > 1)
        bnn_parallel(middle, bnn_grain_of(2 * outer * inner), BNN_PICK(prelu_planes), &p);
    else
        bnn_parallel(bnn_ceil_div(middle, STRIP), bnn_grain_of(2 * outer * STRIP),
                     BNN_PICK(prelu_strips), &p);
}
