/* Normalisation of rows, each by its own mean and variance, and its gradient. Sums are float64.

   The gradient measures its rows once more: nothing but x is kept for it. Sums over the rows are
   made by units of them, whose number follows from the shape alone. */
#include <math.h>

#include "bnn_variants.h"

enum {
    BLOCK = 64,
    LAYER_UNITS = 16 /* as UNITS in compiled/layer_normalization.py */
};

struct layer {
    const float *x, *scale, *bias, *dy;
    float *y, *mean, *inv_std, *dx; /* mean, inv_std: or NULL */
    double *sums;                   /* (units, 2, n): of dy normal and of dy */
    i64 n_rows, n;
    float epsilon;
};

struct row {
    float mean, low, inv_std; /* low: what rounding the mean has left, for rows that are far from 0 */
};

#define NORMAL(x, r) ((((x) - (r).mean) - (r).low) * (r).inv_std)

BNN_INLINE double squares_of(const float *x, i64 n, double mean) {
    v4d a, b, sums[2] = {{0}};
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        bnn_load_wide(&a, x + i);
        bnn_load_wide(&b, x + i + 4);
        a -= mean, b -= mean;
        sums[0] += a * a, sums[1] += b * b;
    }
    for (; i < n; i++) sums[0][i % 4] += (x[i] - mean) * (x[i] - mean);
    a = sums[0] + sums[1];
    return bnn_sum4(&a);
}

BNN_INLINE struct row measured(const float *x, i64 n, float epsilon) {
    const double mean = bnn_sum(x, n) / (double)n;
    const float variance = (float)(squares_of(x, n, mean) / (double)n);
    return (struct row){(float)mean, (float)(mean - (float)mean), 1 / sqrtf(variance + epsilon)};
}

BNN_INLINE void layer_rows(void *context, i64 begin, i64 end) {
    const struct layer l = *(const struct layer *)context;
    for (i64 i = begin; i < end; i++) {
        const float *x = l.x + i * l.n, *scale = l.scale, *bias = l.bias;
        const struct row r = measured(x, l.n, l.epsilon);
        float *y = l.y + i * l.n;
        if (bias) for (i64 j = 0; j < l.n; j++) y[j] = NORMAL(x[j], r) * scale[j] + bias[j];
        else for (i64 j = 0; j < l.n; j++) y[j] = NORMAL(x[j], r) * scale[j];
        if (l.mean) l.mean[i] = r.mean;
        if (l.inv_std) l.inv_std[i] = r.inv_std;
    }
}
BNN_ALL(layer_rows)

/* a = dy scale, h = normal: dx = inv_std (a - mean(a) - h mean(a h)). */
BNN_INLINE void grad_row(const struct layer *l, i64 i, double *of_scale, double *of_bias) {
    const float *x = l->x + i * l->n, *dy = l->dy + i * l->n, *scale = l->scale;
    const struct row r = measured(x, l->n, l->epsilon);
    float *dx = l->dx + i * l->n, a[BLOCK], ah[BLOCK];
    double sum = 0, along = 0;
    for (i64 at = 0; at < l->n; at += BLOCK) {
        const i64 width = bnn_min(BLOCK, l->n - at);
        for (i64 j = 0; j < width; j++) {
            const float normal = NORMAL(x[at + j], r);
            a[j] = dy[at + j] * scale[at + j];
            ah[j] = a[j] * normal;
            of_scale[at + j] += dy[at + j] * normal;
            of_bias[at + j] += dy[at + j];
        }
        sum += bnn_sum(a, width), along += bnn_sum(ah, width);
    }
    const float level = (float)(sum / (double)l->n), slope = (float)(along / (double)l->n);
    BNN_SAME_OR_APART
    for (i64 j = 0; j < l->n; j++)
        dx[j] = r.inv_std * (dy[j] * scale[j] - level - NORMAL(x[j], r) * slope);
}

BNN_INLINE void grad_units(void *context, i64 begin, i64 end) {
    const struct layer l = *(const struct layer *)context;
    const i64 unit = bnn_ceil_div(l.n_rows, LAYER_UNITS);
    for (i64 u = begin; u < end; u++) {
        double *sums = l.sums + u * 2 * l.n;
        memset(sums, 0, (size_t)(2 * l.n) * sizeof *sums);
        for (i64 i = u * unit; i < bnn_min(l.n_rows, (u + 1) * unit); i++)
            grad_row(&l, i, sums, sums + l.n);
    }
}
BNN_ALL(grad_units)

/* x, y: (n_rows, n); scale, bias: (n), bias or NULL; mean, inv_std: (n_rows) or NULL. */
BNN_EXPORT void bnn_layer_normalization_f32(const float *x, const float *scale, const float *bias,
                                            float *y, float *mean, float *inv_std, i64 n_rows,
                                            i64 n, float epsilon) {
    struct layer l = {.x = x, .scale = scale, .bias = bias, .y = y, .mean = mean,
                      .inv_std = inv_std, .n_rows = n_rows, .n = n, .epsilon = epsilon};
    bnn_parallel(n_rows, bnn_grain_of(4 * n), BNN_PICK_ALL(layer_rows), &l);
}

/* dx: (n_rows, n), may be dy; dscale, dbias: (n). `sums` has LAYER_UNITS x 2 x n of room. */
BNN_EXPORT void bnn_layer_normalization_grad_f32(const float *dy, const float *x,
                                                 const float *scale, float *dx, float *dscale,
                                                 float *dbias, void *sums, i64 n_rows, i64 n,
                                                 float epsilon) {
    struct layer l = {.x = x, .scale = scale, .dy = dy, .dx = dx, .sums = sums, .n_rows = n_rows,
                      .n = n, .epsilon = epsilon};
    const i64 unit = bnn_ceil_div(n_rows, LAYER_UNITS), n_units = bnn_ceil_div(n_rows, unit);
    bnn_parallel(n_units, bnn_grain_of(4 * unit * n), BNN_PICK_ALL(grad_units), &l);
    for (i64 j = 0; j < n; j++) {
        double of_scale = 0, of_bias = 0;
        for (i64 u = 0; u < n_units; u++) {
            of_scale += l.sums[u * 2 * n + j];
            of_bias += l.sums[(u * 2 + 1) * n + j];
        }
        dscale[j] = (float)of_scale;
        dbias[j] = (float)of_bias;
    }
}
