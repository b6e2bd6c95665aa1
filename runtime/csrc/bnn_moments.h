/* Mean and spread of the channels of a batch normalisation, by planes or by rows. Of integers an L1
   spread is exact sums; what else there is becomes float64. */
#ifndef BNN_MOMENTS_H
#define BNN_MOMENTS_H

#include "bnn_integer_moments.h"
#include "bnn_normalization.h"
#include "bnn_pack.h"

struct norm {
    const void *x;
    enum bnn_type type;
    const float *scale, *bias, *mean, *var;
    void *y; /* or NULL: then the bits, of which one may be NULL */
    enum bnn_type y_type;
    uint8_t *signs, *ranges;
    float *next_mean, *next_var, *batch_mean, *inv_std;
    float *levels, *slopes; /* (c, 4), or NULL; see finish_groups */
    int l1;
    i64 n, c, length, step; /* step: channels that go together, a strip or a group */
    i64 row_bytes;
    float epsilon, momentum, rest, low, high;
    enum bnn_test sign_test;
};

/* Calls DO for every tile of the group's planes: elements i .. i + m - 1, of channel first + j. */
#define EACH_TILE(DO)                                                     \
    for (i64 n = 0; n < p->n; n++)                                        \
        for (i64 j = 0; j < width; j++)                                   \
            for (i64 at = 0; at < p->length; at += BNN_TILE) {            \
                const i64 m = bnn_min(BNN_TILE, p->length - at);          \
                const i64 i = (n * p->c + first + j) * p->length + at;    \
                DO;                                                       \
            }

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

/* The sum of x - pivot alone, as L1 needs it. */
BNN_INLINE void add_sums(const float *x, i64 n, double pivot, v4d *sums) {
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v4d a, b;
        bnn_load_wide(&a, x + i);
        bnn_load_wide(&b, x + i + 4);
        sums[0] += a - pivot, sums[1] += b - pivot;
    }
    for (; i < n; i++) sums[0][i % 4] += x[i] - pivot;
}

/* What channel c's elements are shifted by: its first, unless that would make all sums NaN. */
BNN_INLINE float pivot_of(const struct norm *p, i64 c) {
    float first = bnn_float_at(p->x, c * p->length, p->type);
    return isfinite(first) ? first : 0;
}

struct moments {
    float mean, var; /* var: the square of the mean absolute deviation in L1 */
    double rest;     /* the sum of x - mean, which rounding the mean has left */
};

BNN_INLINE struct moments moments_of(const struct norm *p, double pivot, double sum,
                                     double squares) {
    const double count = (double)(p->n * p->length), shift = sum / count;
    const double spread = squares / count - shift * shift;
    const float mean = (float)(pivot + shift);
    return (struct moments){mean, (float)(spread < 0 ? 0 : spread), (pivot + shift - mean) * count};
}

BNN_INLINE void set_deviation(const struct norm *p, struct moments *m, double deviations) {
    const float deviation = (float)(deviations / (double)(p->n * p->length));
    m->var = deviation * deviation;
}

/* L1 of integers. */
BNN_INLINE void measure_integers(const struct norm *p, i64 first, i64 width,
                                 struct moments *moments) {
    struct integer_sums sums[GROUP] = {{0}};
    const int16_t *x = (const int16_t *)p->x + first * p->length;
    const i64 sample = p->c * p->length;
    const double count = (double)(p->n * p->length);
    for (i64 n = 0; n < p->n; n++)
        for (i64 j = 0; j < width; j++)
            bnn_add_integers(x + n * sample + j * p->length, p->length, sums + j);
    for (i64 j = 0; j < width; j++) {
        const double pivot = pivot_of(p, first + j);
        moments[j] = moments_of(p, pivot, (double)sums[j].all - pivot * count, 0);
    }
    for (i64 n = 0; n < p->n; n++)
        for (i64 j = 0; j < width; j++)
            bnn_add_above(x + n * sample + j * p->length, p->length, bnn_limit_of(moments[j].mean),
                          sums + j);
    for (i64 j = 0; j < width; j++)
        set_deviation(p, moments + j, bnn_deviations_of(sums + j, moments[j].mean, count));
}

BNN_INLINE void measure(const struct norm *p, i64 first, i64 width, struct moments *moments) {
    if (p->l1 && p->type == BNN_I16) {
        measure_integers(p, first, width, moments);
        return;
    }
    v4d sums[GROUP][4] = {{{0}}}, deviations[GROUP][2] = {{{0}}};
    double pivot[GROUP];
    float room[BNN_TILE];
    for (i64 j = 0; j < width; j++) pivot[j] = pivot_of(p, first + j);
    if (p->l1) EACH_TILE(add_sums(bnn_floats(p->x, i, m, p->type, room), m, pivot[j], sums[j]))
    else EACH_TILE(add_squares(bnn_floats(p->x, i, m, p->type, room), m, pivot[j], sums[j]))
    for (i64 j = 0; j < width; j++)
        moments[j] = moments_of(p, pivot[j], bnn_sum_pair(sums[j]), bnn_sum_pair(sums[j] + 2));
    if (!p->l1) return;
    EACH_TILE(bnn_add_deviations(bnn_floats(p->x, i, m, p->type, room), m, moments[j].mean,
                                 deviations[j]))
    for (i64 j = 0; j < width; j++) set_deviation(p, moments + j, bnn_sum_pair(deviations[j]));
}

/* L1 of integers. */
BNN_INLINE void measure_integer_rows(const struct norm *p, i64 first, i64 width,
                                     struct moments *moments) {
    const int16_t *x = (const int16_t *)p->x + first;
    const double count = (double)p->n;
    struct integer_sums sums[STRIP] = {{0}};
    int32_t part[STRIP], n_part[STRIP];
    int16_t limit[STRIP];
    for (i64 at = 0; at < p->n; at += INTEGER_RUN) {
        memset(part, 0, sizeof part);
        for (i64 n = at; n < bnn_min(p->n, at + INTEGER_RUN); n++)
            for (i64 j = 0; j < width; j++) part[j] += x[n * p->c + j];
        for (i64 j = 0; j < width; j++) sums[j].all += part[j];
    }
    for (i64 j = 0; j < width; j++) {
        const double pivot = pivot_of(p, first + j);
        moments[j] = moments_of(p, pivot, (double)sums[j].all - pivot * count, 0);
        limit[j] = bnn_limit_of(moments[j].mean);
    }
    for (i64 at = 0; at < p->n; at += INTEGER_RUN) {
        memset(part, 0, sizeof part), memset(n_part, 0, sizeof n_part);
        for (i64 n = at; n < bnn_min(p->n, at + INTEGER_RUN); n++)
            for (i64 j = 0; j < width; j++) {
                const int16_t here = x[n * p->c + j];
                part[j] += here > limit[j] ? here : 0;
                n_part[j] += here > limit[j];
            }
        for (i64 j = 0; j < width; j++) sums[j].above += part[j], sums[j].n_above += n_part[j];
    }
    for (i64 j = 0; j < width; j++)
        set_deviation(p, moments + j, bnn_deviations_of(sums + j, moments[j].mean, count));
}

BNN_INLINE void measure_rows(const struct norm *p, i64 first, i64 width, struct moments *moments) {
    if (p->l1 && p->type == BNN_I16) {
        measure_integer_rows(p, first, width, moments);
        return;
    }
    double pivot[STRIP], sum[STRIP] = {0}, squares[STRIP] = {0}, deviations[STRIP] = {0};
    float room[BNN_TILE];
    for (i64 j = 0; j < width; j++) pivot[j] = pivot_of(p, first + j);
    for (i64 n = 0; n < p->n; n++) {
        const float *x = bnn_floats(p->x, n * p->c + first, width, p->type, room);
        for (i64 j = 0; j < width; j++) {
            double d = x[j] - pivot[j];
            sum[j] += d;
            squares[j] += d * d;
        }
    }
    for (i64 j = 0; j < width; j++) moments[j] = moments_of(p, pivot[j], sum[j], squares[j]);
    if (!p->l1) return;
    for (i64 n = 0; n < p->n; n++) {
        const float *x = bnn_floats(p->x, n * p->c + first, width, p->type, room);
        for (i64 j = 0; j < width; j++) deviations[j] += fabs(x[j] - (double)moments[j].mean);
    }
    for (i64 j = 0; j < width; j++) set_deviation(p, moments + j, deviations[j]);
}

#endif
