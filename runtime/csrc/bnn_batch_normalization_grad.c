/* The gradient of batch normalisation in training mode. */

#include "bnn_normalization.h"

struct norm_grad {
    const void *dy, *x;
    void *dx; /* of dy's type */
    enum bnn_type dy_type, x_type;
    const float *scale, *mean, *inv_std;
    float *dscale, *dbias;
    int l1;
    i64 n, c, length, step; /* step: channels that go together, a strip or a group */
};

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

/* Sums of |x - mean| and of its sign, for L1. */
struct deviations {
    v4d sizes[2];
    i64 signs;
};

BNN_INLINE void add_deviations(const float *x, i64 n, float mean, struct deviations *d) {
    bnn_add_deviations(x, n, mean, d->sizes);
    int32_t signs = 0; /* of at most a tile */
    for (i64 i = 0; i < n; i++) signs += (x[i] > mean) - (x[i] < mean);
    d->signs += signs;
}

/* dx = (dy - (direction along + shift)) factor: along and shift are dscale / count and
   dbias / count, factor is scale inv_std. The direction is xh = (x - mean) inv_std, or in L1
   (sgn(xh) - sign) size, with the means of sgn(xh) and |xh|. */
struct slope {
    float mean, inv_std, along, shift, factor, sign, size;
};

BNN_INLINE struct slope finish_grad(const struct norm_grad *p, i64 c, double sum, double products,
                                    const struct deviations *d) {
    const float dbias = (float)sum, dscale = (float)(products * p->inv_std[c]);
    const double n = (double)(p->n * p->length);
    const float count = (float)n;
    if (p->dscale) p->dscale[c] = dscale;
    if (p->dbias) p->dbias[c] = dbias;
    return (struct slope){.mean = p->mean[c], .inv_std = p->inv_std[c], .along = dscale / count,
                          .shift = dbias / count, .factor = p->scale[c] * p->inv_std[c],
                          .sign = (float)((double)d->signs / n),
                          .size = (float)(bnn_sum_pair(d->sizes) / n * p->inv_std[c])};
}

BNN_INLINE float grad_of(float dy, float x, const struct slope *s, int l1) {
    const float centred = x - s->mean;
    const float sign = (float)((centred > 0) - (centred < 0));
    const float direction = l1 ? (sign - s->sign) * s->size : centred * s->inv_std;
    return (dy - (direction * s->along + s->shift)) * s->factor;
}

BNN_INLINE void apply_grad(const float *dy, const float *x, float *dx, i64 n,
                           const struct slope *slope, int l1) {
    const struct slope s = *slope;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) dx[i] = grad_of(dy[i], x[i], &s, l1);
}

/* Calls DO for every tile of a group's planes: elements i .. i + m - 1, of channel first + j. */
#define EACH_TILE(DO)                                                                    \
    for (i64 n = 0; n < p.n; n++)                                                        \
        for (i64 j = 0; j < width; j++)                                                  \
            for (i64 at = 0; at < p.length; at += BNN_TILE) {                            \
                const i64 m = bnn_min(BNN_TILE, p.length - at);                          \
                const i64 i = (n * p.c + first + j) * p.length + at;                     \
                const float *dy = bnn_floats(p.dy, i, m, p.dy_type, dy_room);            \
                const float *x = bnn_floats(p.x, i, m, p.x_type, x_room);                \
                DO                                                                       \
            }

BNN_INLINE void differentiate_planes(void *context, i64 begin, i64 end) {
    const struct norm_grad p = *(const struct norm_grad *)context;
    float dy_room[BNN_TILE], x_room[BNN_TILE];
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        v4d sums[GROUP][4] = {{{0}}};
        struct deviations deviations[GROUP] = {{{{0}}, 0}};
        struct slope slope[GROUP];
        EACH_TILE({
            add_products(dy, x, m, p.mean[first + j], sums[j]);
            if (p.l1) add_deviations(x, m, p.mean[first + j], deviations + j);
        })
        for (i64 j = 0; j < width; j++)
            slope[j] = finish_grad(&p, first + j, bnn_sum_pair(sums[j]), bnn_sum_pair(sums[j] + 2),
                                   deviations + j);
        EACH_TILE({
            float *dx = bnn_room(p.dx, i, p.dy_type, dy_room);
            if (p.l1) apply_grad(dy, x, dx, m, slope + j, 1);
            else apply_grad(dy, x, dx, m, slope + j, 0);
            bnn_keep(dx, p.dx, i, m, p.dy_type);
        })
    }
}

BNN_INLINE void differentiate_rows(void *context, i64 begin, i64 end) {
    const struct norm_grad p = *(const struct norm_grad *)context;
    float dy_room[BNN_TILE], x_room[BNN_TILE];
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        const float *mean = p.mean + first;
        double sum[STRIP] = {0}, products[STRIP] = {0};
        struct deviations deviations[STRIP];
        struct slope slope[STRIP];
        for (i64 j = 0; j < width; j++) deviations[j] = (struct deviations){{{0}}, 0};
        for (i64 n = 0; n < p.n; n++) {
            const float *dy = bnn_floats(p.dy, n * p.c + first, width, p.dy_type, dy_room);
            const float *x = bnn_floats(p.x, n * p.c + first, width, p.x_type, x_room);
            for (i64 j = 0; j < width; j++) {
                sum[j] += dy[j];
                products[j] += dy[j] * ((double)x[j] - mean[j]);
            }
            for (i64 j = 0; p.l1 && j < width; j++)
                add_deviations(x + j, 1, mean[j], deviations + j);
        }
        for (i64 j = 0; j < width; j++)
            slope[j] = finish_grad(&p, first + j, sum[j], products[j], deviations + j);
        for (i64 n = 0; n < p.n; n++) {
            const i64 i = n * p.c + first;
            const float *dy = bnn_floats(p.dy, i, width, p.dy_type, dy_room);
            const float *x = bnn_floats(p.x, i, width, p.x_type, x_room);
            float *dx = bnn_room(p.dx, i, p.dy_type, dy_room);
            for (i64 j = 0; j < width; j++) dx[j] = grad_of(dy[j], x[j], slope + j, p.l1);
            bnn_keep(dx, p.dx, i, width, p.dy_type);
        }
    }
}

BNN_BOTH(differentiate_planes)
BNN_BOTH(differentiate_rows)

/* dx is of dy's type and may be dy, or x where that is of the same size; dscale and dbias may be
   NULL. */
BNN_EXPORT void bnn_batch_normalization_grad(const void *dy, const void *x, const float *scale,
                                             const float *batch_mean, const float *inv_std,
                                             void *dx, float *dscale, float *dbias, i64 l1,
                                             i64 dy_type, i64 x_type, i64 n, i64 c, i64 length) {
    const i64 step = bnn_channels_together(c, length, 1);
    struct norm_grad p = {.dy = dy, .x = x, .dx = dx, .l1 = l1 != 0, .dy_type = dy_type,
                          .x_type = x_type, .scale = scale, .mean = batch_mean,
                          .inv_std = inv_std, .dscale = dscale, .dbias = dbias, .n = n, .c = c, .length = length,
                          .step = step};
    bnn_body body = length == 1 ? BNN_PICK(differentiate_rows) : BNN_PICK(differentiate_planes);
    bnn_parallel(bnn_ceil_div(c, step), bnn_grain_of(4 * n * length * step), body, &p);
}
