/* Batch normalisation in training mode, of floats, halves or integers; the result as floats, or as
   bits alone: its signs, and which elements lie in a range. The spread of a channel is its standard
   deviation, or (L1) its mean absolute deviation.

   A channel's planes are read for the sums and again for the result, mostly from the cache. */
#include "bnn_moments.h"

/* How a channel's elements become its result: (x - mean) * factor + bias. */
struct line {
    float mean, factor, bias;
};

BNN_INLINE float inverse_of(const struct norm *p, float var) {
    return 1 / sqrtf(var + p->epsilon);
}

/* Channel c's line, and all that is kept of its statistics. */
BNN_INLINE struct line finish(const struct norm *p, i64 c, struct moments m) {
    const float inv_std = inverse_of(p, m.var);
    if (p->next_mean) p->next_mean[c] = p->mean[c] * p->momentum + m.mean * p->rest;
    if (p->next_var) p->next_var[c] = p->var[c] * p->momentum + m.var * p->rest;
    if (p->batch_mean) p->batch_mean[c] = m.mean;
    if (p->inv_std) p->inv_std[c] = inv_std;
    return (struct line){m.mean, inv_std * p->scale[c], p->bias[c]};
}

BNN_INLINE void apply(const float *x, float *y, i64 n, struct line line) {
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) y[i] = (x[i] - line.mean) * line.factor + line.bias;
}

/* Sums over the elements whose bits are set: sign, range, both; and over all. */
struct groups {
    double centred[4]; /* of x - mean */
    double signs[4];   /* of its sign; for L1 */
    double counts[4];
};

/* The same for planes, in lanes; of all elements only the signs. */
struct lanes {
    v4d centred[3][2];
    v8i counts[3], signs[4];
};

/* For at most a tile; x[i] became y[i]. */
BNN_INLINE void add_groups(const struct norm *p, const float *x, const float *y, i64 n, float mean,
                           struct lanes *sums) {
    v8f centred[3] = {{0}};
    v8i counts[3] = {{0}}, signs[4] = {{0}};
    for (i64 i = 0; i < n; i += 8) {
        v8f a, b;
        v8i there = {-1, -1, -1, -1, -1, -1, -1, -1};
        if (i + 8 <= n) {
            memcpy(&a, x + i, sizeof a), memcpy(&b, y + i, sizeof b);
        } else {
            for (i64 j = 0; j < 8; j++) {
                const i64 at = bnn_min(i + j, n - 1);
                a[j] = x[at], b[j] = y[at], there[j] = i + j < n ? -1 : 0;
            }
        }
        const v8f c = a - mean;
        const v8i range = (b >= p->low) & (b <= p->high) & there;
        const v8i sign = (p->sign_test == BNN_GREATER ? b > 0 : ~(b < 0)) & there;
        const v8i set[4] = {sign, range, sign & range, there};
        for (int k = 0; k < 3; k++) {
            centred[k] += (v8f)((v8i)c & set[k]);
            counts[k] -= set[k];
        }
        if (!p->l1) continue;
        const v8i direction = (c < 0) - (c > 0);
        for (int k = 0; k < 4; k++) signs[k] += direction & set[k];
    }
    for (int k = 0; k < 3; k++) {
        const v4f low = {centred[k][0], centred[k][1], centred[k][2], centred[k][3]};
        const v4f high = {centred[k][4], centred[k][5], centred[k][6], centred[k][7]};
        sums->centred[k][0] += __builtin_convertvector(low, v4d);
        sums->centred[k][1] += __builtin_convertvector(high, v4d);
        sums->counts[k] += counts[k];
    }
    for (int k = 0; p->l1 && k < 4; k++) sums->signs[k] += signs[k];
}

BNN_INLINE double sum8i(const v8i *v) {
    i64 sum = 0;
    for (int i = 0; i < 8; i++) sum += (*v)[i];
    return (double)sum;
}

BNN_INLINE struct groups groups_of(const struct norm *p, const struct lanes *sums, double rest) {
    struct groups g = {.centred = {0, 0, 0, rest}, .counts = {0, 0, 0, (double)(p->n * p->length)}};
    for (int k = 0; k < 3; k++) {
        g.centred[k] = bnn_sum_pair(sums->centred[k]);
        g.counts[k] = sum8i(sums->counts + k);
    }
    for (int k = 0; k < 4; k++) g.signs[k] = sum8i(sums->signs + k);
    return g;
}

/* The same sums for the four pairs of bits: neither, sign, range, both. */
BNN_INLINE void to_pairs(const double set[4], double pairs[4]) {
    pairs[0] = set[3] - set[0] - set[1] + set[2];
    pairs[1] = set[0] - set[2];
    pairs[2] = set[1] - set[2];
    pairs[3] = set[2];
}

/* Levels: the mean of xh = (x - mean) inv_std where the bits are such. Slopes: that of the second
   factor of the derivative of xh, which is xh itself, or in L1 (sgn(xh) - mean(sgn(xh))) mean|xh|. */
BNN_INLINE void finish_groups(const struct norm *p, i64 c, struct moments m,
                              const struct groups *g) {
    const float inv_std = inverse_of(p, m.var);
    double centred[4], signs[4], counts[4];
    to_pairs(g->centred, centred), to_pairs(g->signs, signs), to_pairs(g->counts, counts);
    for (int k = 0; k < 4; k++) {
        const double share = counts[k] > 0 ? 1 / counts[k] : 0;
        const double level = centred[k] * share * inv_std;
        const double sign = (signs[k] - counts[k] * g->signs[3] / g->counts[3]) * share;
        p->levels[4 * c + k] = (float)level;
        if (p->slopes) p->slopes[4 * c + k] = (float)(p->l1 ? sign * inv_std * sqrtf(m.var) : level);
    }
}

/* The bits of y, from element `at` of a sample's row on: a multiple of 8. */
BNN_INLINE void put_bits(const struct norm *p, i64 sample, i64 at, const float *y, i64 n) {
    const i64 byte = sample * p->row_bytes + at / 8;
    if (p->signs) bnn_pack_floats(y, p->signs + byte, n, p->sign_test, 0, 0);
    if (p->ranges) bnn_pack_floats(y, p->ranges + byte, n, BNN_RANGE, p->low, p->high);
}

BNN_INLINE void write_floats(const struct norm *p, i64 first, i64 width, const struct line *line) {
    float room[BNN_TILE];
    EACH_TILE({
        float *y = bnn_room(p->y, i, p->y_type, room);
        apply(bnn_floats(p->x, i, m, p->type, room), y, m, line[j]);
        bnn_keep(y, p->y, i, m, p->y_type);
    })
}

/* Planes follow one another without a gap, so a tile may hold the end of one and the next. */
BNN_INLINE void write_bits(const struct norm *p, i64 first, i64 width, const struct line *line,
                           struct lanes *sums) {
    float room[BNN_TILE], y[BNN_TILE];
    for (i64 n = 0; n < p->n; n++) {
        i64 filled = 0, done = first * p->length;
        for (i64 j = 0; j < width; j++)
            for (i64 at = 0, m; at < p->length; at += m) {
                m = bnn_min(BNN_TILE - filled, p->length - at);
                const i64 i = (n * p->c + first + j) * p->length + at;
                const float *x = bnn_floats(p->x, i, m, p->type, room);
                apply(x, y + filled, m, line[j]);
                if (p->levels) add_groups(p, x, y + filled, m, line[j].mean, sums + j);
                filled += m;
                if (filled < BNN_TILE && (j + 1 < width || at + m < p->length)) continue;
                put_bits(p, n, done, y, filled);
                done += filled, filled = 0;
            }
    }
}

/* Groups begin .. end - 1 of channels. */
BNN_INLINE void normalize_planes(void *context, i64 begin, i64 end) {
    const struct norm copy = *(const struct norm *)context, *p = &copy;
    for (i64 first = begin * p->step; first < bnn_min(end * p->step, p->c); first += p->step) {
        const i64 width = bnn_min(p->step, p->c - first);
        struct moments moments[GROUP];
        struct line line[GROUP];
        struct lanes sums[GROUP];
        memset(sums, 0, sizeof sums);
        measure(p, first, width, moments);
        for (i64 j = 0; j < width; j++) line[j] = finish(p, first + j, moments[j]);
        if (p->y) write_floats(p, first, width, line);
        else write_bits(p, first, width, line, sums);
        for (i64 j = 0; p->levels && j < width; j++) {
            const struct groups g = groups_of(p, sums + j, moments[j].rest);
            finish_groups(p, first + j, moments[j], &g);
        }
    }
}

/* struct groups of a strip. */
struct row_groups {
    double centred[4][STRIP];
    int32_t counts[4][STRIP], signs[4][STRIP];
};

BNN_INLINE void add_row(const struct norm *p, const float *x, const float *y, const float *mean,
                        i64 width, struct row_groups *g) {
    const int plus = p->sign_test == BNN_NOT_LESS;
    for (i64 j = 0; j < width; j++) {
        const float c = x[j] - mean[j];
        const int32_t sign = plus ? !(y[j] < 0) : y[j] > 0;
        const int32_t range = (y[j] >= p->low) & (y[j] <= p->high), both = sign & range;
        const int32_t direction = (c > 0) - (c < 0);
        g->centred[0][j] += sign ? c : 0;
        g->centred[1][j] += range ? c : 0;
        g->centred[2][j] += both ? c : 0;
        g->centred[3][j] += c;
        g->counts[0][j] += sign, g->counts[1][j] += range;
        g->counts[2][j] += both, g->counts[3][j] += 1;
        g->signs[0][j] += sign * direction, g->signs[1][j] += range * direction;
        g->signs[2][j] += both * direction, g->signs[3][j] += direction;
    }
}

/* Strips begin .. end - 1 of (N, C), row by row. */
BNN_INLINE void normalize_rows(void *context, i64 begin, i64 end) {
    const struct norm copy = *(const struct norm *)context, *p = &copy;
    for (i64 first = begin * p->step; first < bnn_min(end * p->step, p->c); first += p->step) {
        const i64 width = bnn_min(p->step, p->c - first);
        struct moments moments[STRIP];
        struct row_groups sums;
        float mean[STRIP], factor[STRIP], rounded[STRIP], room[BNN_TILE];
        const float *bias = p->bias + first;
        memset(&sums, 0, sizeof sums);
        measure_rows(p, first, width, moments);
        for (i64 j = 0; j < width; j++) {
            const struct line line = finish(p, first + j, moments[j]);
            mean[j] = line.mean, factor[j] = line.factor;
        }
        for (i64 n = 0; n < p->n; n++) {
            const i64 i = n * p->c + first;
            const float *x = bnn_floats(p->x, i, width, p->type, room);
            float *y = p->y ? bnn_room(p->y, i, p->y_type, rounded) : rounded;
            BNN_SAME_OR_APART
            for (i64 j = 0; j < width; j++) y[j] = (x[j] - mean[j]) * factor[j] + bias[j];
            if (p->levels) add_row(p, x, y, mean, width, &sums);
            if (p->y) bnn_keep(y, p->y, i, width, p->y_type);
            else put_bits(p, n, first, y, width);
        }
        for (i64 j = 0; p->levels && j < width; j++) {
            struct groups g;
            for (int k = 0; k < 4; k++) {
                g.centred[k] = sums.centred[k][j];
                g.counts[k] = sums.counts[k][j];
                g.signs[k] = sums.signs[k][j];
            }
            finish_groups(p, first + j, moments[j], &g);
        }
    }
}

BNN_ALL(normalize_planes)
BNN_ALL(normalize_rows)

/* Channels whose bits, together, are whole bytes. */
static i64 whole_bytes(i64 length) {
    i64 channels = 1;
    while (channels * length % 8) channels *= 2;
    return channels;
}

static void normalize(struct norm *p) {
    p->row_bytes = bnn_ceil_div(p->c * p->length, 8);
    p->step = bnn_channels_together(p->c, p->length, p->y ? 1 : whole_bytes(p->length));
    bnn_body body =
        p->length == 1 ? BNN_PICK_ALL(normalize_rows) : BNN_PICK_ALL(normalize_planes);
    const i64 grain = bnn_grain_of(4 * p->n * p->length * p->step);
    bnn_parallel(bnn_ceil_div(p->c, p->step), grain, body, p);
}

/* x is of `type`, y of `y_type`, float or half; y may be x where they are as wide. next_mean, next_var, batch_mean and inv_std may be
   NULL. `rest` is 1 - momentum. */
BNN_EXPORT void bnn_batch_normalization_training(
    const void *x, const float *scale, const float *bias, const float *running_mean,
    const float *running_var, void *y, float *next_mean, float *next_var, float *batch_mean,
    float *inv_std, i64 l1, i64 type, i64 y_type, i64 n, i64 c, i64 length, float epsilon,
    float momentum, float rest) {
    struct norm p = {.x = x, .type = type, .scale = scale, .bias = bias, .mean = running_mean,
                     .var = running_var, .y = y, .y_type = y_type, .l1 = l1 != 0, .next_mean = next_mean, .next_var = next_var,
                     .batch_mean = batch_mean, .inv_std = inv_std, .n = n, .c = c,
                     .length = length, .epsilon = epsilon, .momentum = momentum, .rest = rest};
    normalize(&p);
}

/* signs: the bits of y >= 0 (`plus`: of not y < 0) or y > 0; ranges: of low <= y <= high. Rows of
   ceil(C length / 8) bytes; either may be NULL, and so may slopes, or levels and slopes. */
BNN_EXPORT void bnn_batch_normalization_signs(
    const void *x, const float *scale, const float *bias, const float *running_mean,
    const float *running_var, uint8_t *signs, uint8_t *ranges, float *next_mean, float *next_var,
    float *batch_mean, float *inv_std, float *levels, float *slopes, i64 l1, i64 type, i64 n,
    i64 c, i64 length, float epsilon, float momentum, float rest, i64 plus, float low,
    float high) {
    struct norm p = {.x = x, .type = type, .scale = scale, .bias = bias, .mean = running_mean,
                     .var = running_var, .signs = signs, .ranges = ranges,
                     .next_mean = next_mean, .next_var = next_var, .batch_mean = batch_mean,
                     .inv_std = inv_std, .levels = levels, .slopes = slopes,
                     .l1 = l1 != 0, .n = n, .c = c, .length = length, .epsilon = epsilon,
                     .momentum = momentum, .rest = rest, .low = low, .high = high,
                     .sign_test = plus ? BNN_NOT_LESS : BNN_GREATER};
    normalize(&p);
}
