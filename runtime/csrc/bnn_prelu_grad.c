/* The gradient of y = x where x > 0, else slope x: dx, and sums of x dy over what a slope serves.

   x is (outer, middle, inner), the slope (middle). Sums are float64; those of one slope alone are made
   by parts, whose number follows from the shape. */
#include "bnn_variants.h"

enum {
    STRIP = 64, /* slopes of neighbours that are taken along */
    PARTS = 16, /* of all elements, where they have one slope */
};

struct prelu {
    const float *dy, *x, *slope;
    float *dx, *dslope;
    i64 outer, middle, inner;
    double *sums; /* of the parts, or NULL */
};

/* dx of n elements from `first` on; the sum of their x dy where that goes to the slope. */
BNN_INLINE double prelu_plane(const struct prelu *p, i64 first, i64 n, float slope) {
    const float *x = p->x + first, *dy = p->dy + first;
    float *dx = p->dx + first;
    v4d sums = {0};
    i64 i = 0;
    for (; i + 4 <= n; i += 4) {
        v4f at, part;
        bnn_load(&at, x + i);
        bnn_load(&part, dy + i);
        const v4i is_positive = at > 0;
        part = (v4f)((v4i)(part * at) & ~is_positive);
        sums += __builtin_convertvector(part, v4d);
    }
    for (; i < n; i++) sums[0] += x[i] > 0 ? 0.0f : dy[i] * x[i];
    BNN_SAME_OR_APART
    for (i = 0; i < n; i++) dx[i] = x[i] > 0 ? dy[i] : dy[i] * slope;
    return bnn_sum4(&sums);
}

/* Slopes begin .. end - 1, each of planes. */
BNN_INLINE void prelu_planes(void *context, i64 begin, i64 end) {
    const struct prelu p = *(const struct prelu *)context;
    for (i64 c = begin; c < end; c++) {
        double sum = 0;
        for (i64 n = 0; n < p.outer; n++)
            sum += prelu_plane(&p, (n * p.middle + c) * p.inner, p.inner, p.slope[c]);
        p.dslope[c] = (float)sum;
    }
}
BNN_BOTH(prelu_planes)

/* Parts begin .. end - 1 of all elements. */
BNN_INLINE void prelu_parts(void *context, i64 begin, i64 end) {
    const struct prelu p = *(const struct prelu *)context;
    const i64 part = bnn_ceil_div(p.inner, PARTS);
    for (i64 i = begin; i < end; i++)
        p.sums[i] = prelu_plane(&p, i * part, bnn_min(part, p.inner - i * part), p.slope[0]);
}
BNN_BOTH(prelu_parts)

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
    struct prelu p = {.dy = dy, .x = x, .slope = slope, .dx = dx, .dslope = dslope,
                      .outer = outer, .middle = middle, .inner = inner};
    if (outer == 1 && middle == 1) {
        double sums[PARTS] = {0}, sum = 0;
        const i64 part = bnn_ceil_div(inner, PARTS);
        p.sums = sums;
        bnn_parallel(bnn_ceil_div(inner, bnn_max(part, 1)), bnn_grain_of(2 * part),
                     BNN_PICK(prelu_parts), &p);
        for (int i = 0; i < PARTS; i++) sum += sums[i];
        dslope[0] = (float)sum;
    } else if (inner > 1) {
        bnn_parallel(middle, bnn_grain_of(2 * outer * inner), BNN_PICK(prelu_planes), &p);
    } else {
        bnn_parallel(bnn_ceil_div(middle, STRIP), bnn_grain_of(2 * outer * STRIP),
                     BNN_PICK(prelu_strips), &p);
    }
}
