/* Batch normalisation in training mode, and its gradient; x is (N, C, length), or (N, C) with
   length 1.

   Sums are taken in float64, of one channel on one thread, always in the same order. A channel's
   planes are read for the sums and again for the result, mostly from the cache. */
#include "bnn_variants.h"

#include <math.h>

enum {
    STRIP = 256, /* most channels that a walk down the rows of (N, C) takes along */
    GROUP = 16,  /* most channels whose planes, where they are small, are read in one run */
    RUN = 128    /* elements of such a run, where GROUP allows */
};

struct norm {
    const float *x, *scale, *bias, *mean, *var;
    float *y, *next_mean, *next_var, *batch_mean, *inv_std;
    i64 n, c, length, step; /* step: channels that go together, a strip or a group */
    float epsilon, momentum, rest;
};

struct norm_grad {
    const float *dy, *x, *scale, *mean, *inv_std;
    float *dx, *dscale, *dbias;
    i64 n, c, length, step;
};

/* Sums of d = x - pivot and of d^2. Where the pivot is one of the x, the variance
   sum(d^2) / n - (sum(d) / n)^2 loses at most log2(n) of the 53 bits. */
BNN_INLINE void add_squares(const float *x, i64 n, double pivot, v4d *sums) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v4d a, b;
        bnn_load_wide(&a, x + i);
        bnn_load_wide(&b, x + i + 4);
        a -= pivot, b -= pivot;
        sums[0] += a, sums[1] += b;
        sums[2] += a * a, sums[3] += b * b;
    }
    for (; i < n; i++) {
        double d = x[i] - pivot;
        sums[0][i % 4] += d;
        sums[2][i % 4] += d * d;
    }
}

/* Sums of dy and of dy (x - mean). */
BNN_INLINE void add_products(const float *dy, const float *x, i64 n, double mean, v4d *sums) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v4d a, b, da, db;
        bnn_load_wide(&a, x + i);
        bnn_load_wide(&b, x + i + 4);
        bnn_load_wide(&da, dy + i);
        bnn_load_wide(&db, dy + i + 4);
        sums[0] += da, sums[1] += db;
        sums[2] += da * (a - mean), sums[3] += db * (b - mean);
    }
    for (; i < n; i++) {
        sums[0][i % 4] += dy[i];
        sums[2][i % 4] += dy[i] * (x[i] - mean);
    }
}

BNN_INLINE double pair(v4d *sums) {
    v4d both = sums[0] + sums[1];
    return bnn_sum4(&both);
}

/* What channel c's elements are shifted by: its first, unless that would make all sums NaN. */
BNN_INLINE float pivot_of(const struct norm *p, i64 c) {
    float first = p->x[c * p->length];
    return isfinite(first) ? first : 0;
}

/* From channel c's sums: mean and inv_std, and all that is kept of them. */
BNN_INLINE void finish(const struct norm *p, i64 c, double pivot, double sum, double squares,
                       float *mean, float *factor) {
    const double count = (double)(p->n * p->length), shift = sum / count;
    double spread = squares / count - shift * shift;
    const float var = (float)(spread < 0 ? 0 : spread), centre = (float)(pivot + shift);
    const float inv_std = 1 / sqrtf(var + p->epsilon);
    *mean = centre;
    *factor = inv_std * p->scale[c];
    if (p->next_mean) p->next_mean[c] = p->mean[c] * p->momentum + centre * p->rest;
    if (p->next_var) p->next_var[c] = p->var[c] * p->momentum + var * p->rest;
    if (p->batch_mean) p->batch_mean[c] = centre;
    if (p->inv_std) p->inv_std[c] = inv_std;
}

BNN_INLINE void apply(const float *x, float *y, i64 n, float mean, float factor, float bias) {
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) y[i] = (x[i] - mean) * factor + bias;
}

/* Groups begin .. end - 1 of channels. */
BNN_INLINE void normalize_planes(void *context, i64 begin, i64 end) {
    const struct norm p = *(const struct norm *)context;
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        v4d sums[GROUP][4] = {{{0}}};
        double pivot[GROUP];
        float mean[GROUP], factor[GROUP];
        for (i64 j = 0; j < width; j++) pivot[j] = pivot_of(&p, first + j);
        for (i64 n = 0; n < p.n; n++) {
            const float *x = p.x + (n * p.c + first) * p.length;
            for (i64 j = 0; j < width; j++)
                add_squares(x + j * p.length, p.length, pivot[j], sums[j]);
        }
        for (i64 j = 0; j < width; j++)
            finish(&p, first + j, pivot[j], pair(sums[j]), pair(sums[j] + 2), mean + j, factor + j);
        for (i64 n = 0; n < p.n; n++)
            for (i64 j = 0; j < width; j++) {
                const i64 at = (n * p.c + first + j) * p.length;
                apply(p.x + at, p.y + at, p.length, mean[j], factor[j], p.bias[first + j]);
            }
    }
}

/* Strips begin .. end - 1 of (N, C), row by row. */
BNN_INLINE void normalize_rows(void *context, i64 begin, i64 end) {
    const struct norm p = *(const struct norm *)context;
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        double pivot[STRIP], sum[STRIP] = {0}, squares[STRIP] = {0};
        float mean[STRIP], factor[STRIP];
        const float *bias = p.bias + first;
        for (i64 j = 0; j < width; j++) pivot[j] = pivot_of(&p, first + j);
        for (i64 n = 0; n < p.n; n++) {
            const float *x = p.x + n * p.c + first;
            for (i64 j = 0; j < width; j++) {
                double d = x[j] - pivot[j];
                sum[j] += d;
                squares[j] += d * d;
            }
        }
        for (i64 j = 0; j < width; j++)
            finish(&p, first + j, pivot[j], sum[j], squares[j], mean + j, factor + j);
        for (i64 n = 0; n < p.n; n++) {
            const float *x = p.x + n * p.c + first;
            float *y = p.y + n * p.c + first;
            BNN_SAME_OR_APART
            for (i64 j = 0; j < width; j++) y[j] = (x[j] - mean[j]) * factor[j] + bias[j];
        }
    }
}

struct slope {
    float along, shift, factor; /* dscale / count, dbias / count, scale inv_std */
};

BNN_INLINE struct slope finish_grad(const struct norm_grad *p, i64 c, double sum, double products) {
    const float dbias = (float)sum, dscale = (float)(products * p->inv_std[c]);
    const float count = (float)(p->n * p->length);
    const struct slope slope = {dscale / count, dbias / count, p->scale[c] * p->inv_std[c]};
    if (p->dscale) p->dscale[c] = dscale;
    if (p->dbias) p->dbias[c] = dbias;
    return slope;
}

BNN_INLINE float grad_of(float dy, float x, float mean, float inv_std, struct slope s) {
    return (dy - ((x - mean) * inv_std * s.along + s.shift)) * s.factor;
}

BNN_INLINE void apply_grad(const float *dy, const float *x, float *dx, i64 n, float mean,
                           float inv_std, struct slope slope) {
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) dx[i] = grad_of(dy[i], x[i], mean, inv_std, slope);
}

BNN_INLINE void differentiate_planes(void *context, i64 begin, i64 end) {
    const struct norm_grad p = *(const struct norm_grad *)context;
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        v4d sums[GROUP][4] = {{{0}}};
        struct slope slope[GROUP];
        for (i64 n = 0; n < p.n; n++)
            for (i64 j = 0; j < width; j++) {
                const i64 at = (n * p.c + first + j) * p.length;
                add_products(p.dy + at, p.x + at, p.length, p.mean[first + j], sums[j]);
            }
        for (i64 j = 0; j < width; j++)
            slope[j] = finish_grad(&p, first + j, pair(sums[j]), pair(sums[j] + 2));
        for (i64 n = 0; n < p.n; n++)
            for (i64 j = 0; j < width; j++) {
                const i64 c = first + j, at = (n * p.c + c) * p.length;
                apply_grad(p.dy + at, p.x + at, p.dx + at, p.length, p.mean[c], p.inv_std[c],
                           slope[j]);
            }
    }
}

BNN_INLINE void differentiate_rows(void *context, i64 begin, i64 end) {
    const struct norm_grad p = *(const struct norm_grad *)context;
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        const float *mean = p.mean + first, *inv_std = p.inv_std + first;
        double sum[STRIP] = {0}, products[STRIP] = {0};
        float along[STRIP], shift[STRIP], factor[STRIP];
        for (i64 n = 0; n < p.n; n++) {
            const float *x = p.x + n * p.c + first, *dy = p.dy + n * p.c + first;
            for (i64 j = 0; j < width; j++) {
                sum[j] += dy[j];
                products[j] += dy[j] * ((double)x[j] - mean[j]);
            }
        }
        for (i64 j = 0; j < width; j++) {
            struct slope s = finish_grad(&p, first + j, sum[j], products[j]);
            along[j] = s.along, shift[j] = s.shift, factor[j] = s.factor;
        }
        for (i64 n = 0; n < p.n; n++) {
            const float *x = p.x + n * p.c + first, *dy = p.dy + n * p.c + first;
            float *dx = p.dx + n * p.c + first;
            BNN_SAME_OR_APART
            for (i64 j = 0; j < width; j++) {
                struct slope s = {along[j], shift[j], factor[j]};
                dx[j] = grad_of(dy[j], x[j], mean[j], inv_std[j], s);
            }
        }
    }
}

BNN_BOTH(normalize_planes)
BNN_BOTH(normalize_rows)
BNN_BOTH(differentiate_planes)
BNN_BOTH(differentiate_rows)

/* Channels that one thread takes together: enough for long runs, few enough for every thread. It
   does not change the results. */
static i64 step_of(i64 c, i64 length) {
    const i64 share = bnn_ceil_div(c, bnn_threads()), line = 16;
    if (length == 1) return bnn_min(STRIP, bnn_ceil_div(share, line) * line);
    return bnn_max(1, bnn_min(bnn_min(GROUP, RUN / length), share));
}

/* y may be x; next_mean, next_var, batch_mean and inv_std may be NULL. `rest` is 1 - momentum. */
BNN_EXPORT void bnn_batch_normalization_training_f32(
    const float *x, const float *scale, const float *bias, const float *running_mean,
    const float *running_var, float *y, float *next_mean, float *next_var, float *batch_mean,
    float *inv_std, i64 n, i64 c, i64 length, float epsilon, float momentum, float rest) {
    const i64 step = step_of(c, length);
    struct norm p = {x,         scale,    bias,       running_mean, running_var, y,
                     next_mean, next_var, batch_mean, inv_std,      n,           c,
                     length,    step,     epsilon,    momentum,     rest};
    bnn_body body = length == 1 ? BNN_PICK(normalize_rows) : BNN_PICK(normalize_planes);
    bnn_parallel(bnn_ceil_div(c, step), bnn_grain_of(4 * n * length * step), body, &p);
}

/* dx may be dy or x; dscale and dbias may be NULL. */
BNN_EXPORT void bnn_batch_normalization_grad_f32(const float *dy, const float *x,
                                                 const float *scale, const float *batch_mean,
                                                 const float *inv_std, float *dx, float *dscale,
                                                 float *dbias, i64 n, i64 c, i64 length) {
    const i64 step = step_of(c, length);
    struct norm_grad p = {dy,     x,     scale, batch_mean, inv_std, dx,
                          dscale, dbias, n,     c,          length,  step};
    bnn_body body = length == 1 ? BNN_PICK(differentiate_rows) : BNN_PICK(differentiate_planes);
    bnn_parallel(bnn_ceil_div(c, step), bnn_grain_of(4 * n * length * step), body, &p);
}
