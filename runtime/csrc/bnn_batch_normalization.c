/* Batch normalisation in training mode, of floats, halves or integers; the result as floats, or as
   bits alone: its signs, and which elements lie in a range.

   A channel's planes are read for the sums and again for the result, mostly from the cache. */
#include "bnn_normalization.h"
#include "bnn_pack.h"

#include <math.h>

struct norm {
    const void *x;
    enum bnn_type type;
    const float *scale, *bias, *mean, *var;
    float *y; /* or NULL: then the bits, of which one may be NULL */
    uint8_t *signs, *ranges;
    float *next_mean, *next_var, *batch_mean, *inv_std;
    i64 n, c, length, step; /* step: channels that go together, a strip or a group */
    i64 row_bytes;
    float epsilon, momentum, rest, low, high;
    enum bnn_test sign_test;
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

/* What channel c's elements are shifted by: its first, unless that would make all sums NaN. */
BNN_INLINE float pivot_of(const struct norm *p, i64 c) {
    float first = bnn_float_at(p->x, c * p->length, p->type);
    return isfinite(first) ? first : 0;
}

/* How a channel's elements become its result: (x - mean) * factor + bias. */
struct line {
    float mean, factor, bias;
};

/* From channel c's sums: its line, and all that is kept of them. */
BNN_INLINE struct line finish(const struct norm *p, i64 c, double pivot, double sum,
                              double squares) {
    const double count = (double)(p->n * p->length), shift = sum / count;
    double spread = squares / count - shift * shift;
    const float var = (float)(spread < 0 ? 0 : spread), centre = (float)(pivot + shift);
    const float inv_std = 1 / sqrtf(var + p->epsilon);
    if (p->next_mean) p->next_mean[c] = p->mean[c] * p->momentum + centre * p->rest;
    if (p->next_var) p->next_var[c] = p->var[c] * p->momentum + var * p->rest;
    if (p->batch_mean) p->batch_mean[c] = centre;
    if (p->inv_std) p->inv_std[c] = inv_std;
    return (struct line){centre, inv_std * p->scale[c], p->bias[c]};
}

BNN_INLINE void apply(const float *x, float *y, i64 n, struct line line) {
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) y[i] = (x[i] - line.mean) * line.factor + line.bias;
}

/* The bits of y, from element `at` of a sample's row on: a multiple of 8. */
BNN_INLINE void put_bits(const struct norm *p, i64 sample, i64 at, const float *y, i64 n) {
    const i64 byte = sample * p->row_bytes + at / 8;
    if (p->signs) bnn_pack_floats(y, p->signs + byte, n, p->sign_test, 0, 0);
    if (p->ranges) bnn_pack_floats(y, p->ranges + byte, n, BNN_RANGE, p->low, p->high);
}

BNN_INLINE void write_floats(const struct norm *p, i64 first, i64 width, const struct line *line) {
    float room[BNN_TILE];
    for (i64 n = 0; n < p->n; n++)
        for (i64 j = 0; j < width; j++)
            for (i64 at = 0; at < p->length; at += BNN_TILE) {
                const i64 m = bnn_min(BNN_TILE, p->length - at);
                const i64 i = (n * p->c + first + j) * p->length + at;
                apply(bnn_floats(p->x, i, m, p->type, room), p->y + i, m, line[j]);
            }
}

/* Planes follow one another without a gap, so a tile may hold the end of one and the next. */
BNN_INLINE void write_bits(const struct norm *p, i64 first, i64 width, const struct line *line) {
    float room[BNN_TILE], y[BNN_TILE];
    for (i64 n = 0; n < p->n; n++) {
        i64 filled = 0, done = first * p->length;
        for (i64 j = 0; j < width; j++)
            for (i64 at = 0, m; at < p->length; at += m) {
                m = bnn_min(BNN_TILE - filled, p->length - at);
                const i64 i = (n * p->c + first + j) * p->length + at;
                apply(bnn_floats(p->x, i, m, p->type, room), y + filled, m, line[j]);
                filled += m;
                if (filled < BNN_TILE && (j + 1 < width || at + m < p->length)) continue;
                put_bits(p, n, done, y, filled);
                done += filled, filled = 0;
            }
    }
}

/* Groups begin .. end - 1 of channels. */
BNN_INLINE void normalize_planes(void *context, i64 begin, i64 end) {
    const struct norm p = *(const struct norm *)context;
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        v4d sums[GROUP][4] = {{{0}}};
        double pivot[GROUP];
        struct line line[GROUP];
        float room[BNN_TILE];
        for (i64 j = 0; j < width; j++) pivot[j] = pivot_of(&p, first + j);
        for (i64 n = 0; n < p.n; n++)
            for (i64 j = 0; j < width; j++)
                for (i64 at = 0; at < p.length; at += BNN_TILE) {
                    const i64 m = bnn_min(BNN_TILE, p.length - at);
                    const i64 i = (n * p.c + first + j) * p.length + at;
                    add_squares(bnn_floats(p.x, i, m, p.type, room), m, pivot[j], sums[j]);
                }
        for (i64 j = 0; j < width; j++)
            line[j] = finish(&p, first + j, pivot[j], bnn_sum_pair(sums[j]),
                             bnn_sum_pair(sums[j] + 2));
        if (p.y) write_floats(&p, first, width, line);
        else write_bits(&p, first, width, line);
    }
}

/* Strips begin .. end - 1 of (N, C), row by row. */
BNN_INLINE void normalize_rows(void *context, i64 begin, i64 end) {
    const struct norm p = *(const struct norm *)context;
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        double pivot[STRIP], sum[STRIP] = {0}, squares[STRIP] = {0};
        float mean[STRIP], factor[STRIP], bits_of[STRIP], room[BNN_TILE];
        const float *bias = p.bias + first;
        for (i64 j = 0; j < width; j++) pivot[j] = pivot_of(&p, first + j);
        for (i64 n = 0; n < p.n; n++) {
            const float *x = bnn_floats(p.x, n * p.c + first, width, p.type, room);
            for (i64 j = 0; j < width; j++) {
                double d = x[j] - pivot[j];
                sum[j] += d;
                squares[j] += d * d;
            }
        }
        for (i64 j = 0; j < width; j++) {
            struct line line = finish(&p, first + j, pivot[j], sum[j], squares[j]);
            mean[j] = line.mean, factor[j] = line.factor;
        }
        for (i64 n = 0; n < p.n; n++) {
            const float *x = bnn_floats(p.x, n * p.c + first, width, p.type, room);
            float *y = p.y ? p.y + n * p.c + first : bits_of;
            BNN_SAME_OR_APART
            for (i64 j = 0; j < width; j++) y[j] = (x[j] - mean[j]) * factor[j] + bias[j];
            if (!p.y) put_bits(&p, n, first, y, width);
        }
    }
}

BNN_BOTH(normalize_planes)
BNN_BOTH(normalize_rows)

/* Channels whose bits, together, are whole bytes. */
static i64 whole_bytes(i64 length) {
    i64 channels = 1;
    while (channels * length % 8) channels *= 2;
    return channels;
}

static void normalize(struct norm *p) {
    p->row_bytes = bnn_ceil_div(p->c * p->length, 8);
    p->step = bnn_channels_together(p->c, p->length, p->y ? 1 : whole_bytes(p->length));
    bnn_body body = p->length == 1 ? BNN_PICK(normalize_rows) : BNN_PICK(normalize_planes);
    const i64 grain = bnn_grain_of(4 * p->n * p->length * p->step);
    bnn_parallel(bnn_ceil_div(p->c, p->step), grain, body, p);
}

/* x is of `type`; y may be x where that is float. next_mean, next_var, batch_mean and inv_std may be
   NULL. `rest` is 1 - momentum. */
BNN_EXPORT void bnn_batch_normalization_training(
    const void *x, const float *scale, const float *bias, const float *running_mean,
    const float *running_var, float *y, float *next_mean, float *next_var, float *batch_mean,
    float *inv_std, i64 type, i64 n, i64 c, i64 length, float epsilon, float momentum,
    float rest) {
    struct norm p = {.x = x, .type = type, .scale = scale, .bias = bias, .mean = running_mean,
                     .var = running_var, .y = y, .next_mean = next_mean, .next_var = next_var,
                     .batch_mean = batch_mean, .inv_std = inv_std, .n = n, .c = c,
                     .length = length, .epsilon = epsilon, .momentum = momentum, .rest = rest};
    normalize(&p);
}

/* signs: the bits of y >= 0 (`plus`: of not y < 0) or y > 0; ranges: of low <= y <= high. Rows of
   ceil(C length / 8) bytes; either may be NULL. */
BNN_EXPORT void bnn_batch_normalization_signs(
    const void *x, const float *scale, const float *bias, const float *running_mean,
    const float *running_var, uint8_t *signs, uint8_t *ranges, float *next_mean, float *next_var,
    float *batch_mean, float *inv_std, i64 type, i64 n, i64 c, i64 length, float epsilon,
    float momentum, float rest, i64 plus, float low, float high) {
    struct norm p = {.x = x, .type = type, .scale = scale, .bias = bias, .mean = running_mean,
                     .var = running_var, .signs = signs, .ranges = ranges,
                     .next_mean = next_mean, .next_var = next_var, .batch_mean = batch_mean,
                     .inv_std = inv_std, .n = n, .c = c, .length = length, .epsilon = epsilon,
                     .momentum = momentum, .rest = rest, .low = low, .high = high,
                     .sign_test = plus ? BNN_NOT_LESS : BNN_GREATER};
    normalize(&p);
}
