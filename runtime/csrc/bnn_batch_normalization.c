/* Batch normalisation in training mode, of floats, halves or integers; the result as floats, or as
   bits alone: its signs, and which elements lie in a range. The spread of a channel is its standard
   deviation, or (L1) its mean absolute deviation.

   A channel's planes are read for the sums and again for the result, mostly from the cache. */
#include "bnn_normalization.h"
#include "bnn_pack.h"

struct norm {
    const void *x;
    enum bnn_type type;
    const float *scale, *bias, *mean, *var;
    float *y; /* or NULL: then the bits, of which one may be NULL */
    uint8_t *signs, *ranges;
    float *next_mean, *next_var, *batch_mean, *inv_std;
    float *levels, *slopes; /* (c, 4), or NULL; see add_groups */
    int l1;
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

struct moments {
    float mean, var; /* var: the square of the mean absolute deviation in L1 */
};

BNN_INLINE struct moments moments_of(const struct norm *p, double pivot, double sum,
                                     double squares) {
    const double count = (double)(p->n * p->length), shift = sum / count;
    const double spread = squares / count - shift * shift;
    return (struct moments){(float)(pivot + shift), (float)(spread < 0 ? 0 : spread)};
}

BNN_INLINE void set_deviation(const struct norm *p, struct moments *m, double deviations) {
    const float deviation = (float)(deviations / (double)(p->n * p->length));
    m->var = deviation * deviation;
}

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
    double signs[4];   /* of its sign */
    double counts[4];
};

BNN_INLINE double sum8i(const v8i *v) {
    int32_t sum = 0;
    for (int i = 0; i < 8; i++) sum += (*v)[i];
    return sum;
}

BNN_INLINE double sum8f(const v8f *v) {
    return (((*v)[0] + (*v)[4]) + ((*v)[1] + (*v)[5])) + (((*v)[2] + (*v)[6]) + ((*v)[3] + (*v)[7]));
}

BNN_INLINE void add_one(const struct norm *p, float x, float y, float mean, struct groups *g) {
    const float c = x - mean;
    const int sign = p->sign_test == BNN_GREATER ? y > 0 : !(y < 0);
    const int range = (y >= p->low) & (y <= p->high), set[4] = {sign, range, sign & range, 1};
    for (int k = 0; k < 4; k++) {
        g->centred[k] += set[k] ? c : 0;
        g->signs[k] += set[k] * ((c > 0) - (c < 0));
        g->counts[k] += set[k];
    }
}

/* For at most a tile; x[i] became y[i]. */
BNN_INLINE void add_groups(const struct norm *p, const float *x, const float *y, i64 n, float mean,
                           struct groups *g) {
    v8f centred[4] = {{0}};
    v8i counts[4] = {{0}}, signs[4] = {{0}};
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v8f a, b;
        memcpy(&a, x + i, sizeof a), memcpy(&b, y + i, sizeof b);
        const v8f c = a - mean;
        const v8i sign = p->sign_test == BNN_GREATER ? b > 0 : ~(b < 0);
        const v8i range = (b >= p->low) & (b <= p->high);
        const v8i set[4] = {sign, range, sign & range, sign | ~sign};
        for (int k = 0; k < 4; k++) {
            centred[k] += (v8f)((v8i)c & set[k]);
            counts[k] -= set[k];
            if (p->l1) signs[k] += ((c < 0) - (c > 0)) & set[k];
        }
    }
    for (int k = 0; k < 4; k++) {
        g->centred[k] += sum8f(centred + k);
        g->counts[k] += sum8i(counts + k);
        g->signs[k] += sum8i(signs + k);
    }
    for (; i < n; i++) add_one(p, x[i], y[i], mean, g);
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
        p->slopes[4 * c + k] = (float)(p->l1 ? sign * inv_std * sqrtf(m.var) : level);
    }
}

/* The bits of y, from element `at` of a sample's row on: a multiple of 8. */
BNN_INLINE void put_bits(const struct norm *p, i64 sample, i64 at, const float *y, i64 n) {
    const i64 byte = sample * p->row_bytes + at / 8;
    if (p->signs) bnn_pack_floats(y, p->signs + byte, n, p->sign_test, 0, 0);
    if (p->ranges) bnn_pack_floats(y, p->ranges + byte, n, BNN_RANGE, p->low, p->high);
}

/* Calls DO for every tile of the group's planes: elements i .. i + m - 1, of channel first + j. */
#define EACH_TILE(DO)                                                     \
    for (i64 n = 0; n < p->n; n++)                                        \
        for (i64 j = 0; j < width; j++)                                   \
            for (i64 at = 0; at < p->length; at += BNN_TILE) {            \
                const i64 m = bnn_min(BNN_TILE, p->length - at);          \
                const i64 i = (n * p->c + first + j) * p->length + at;    \
                DO;                                                       \
            }

BNN_INLINE void write_floats(const struct norm *p, i64 first, i64 width, const struct line *line) {
    float room[BNN_TILE];
    EACH_TILE(apply(bnn_floats(p->x, i, m, p->type, room), p->y + i, m, line[j]))
}

/* Planes follow one another without a gap, so a tile may hold the end of one and the next. */
BNN_INLINE void write_bits(const struct norm *p, i64 first, i64 width, const struct line *line,
                           struct groups *groups) {
    float room[BNN_TILE], y[BNN_TILE];
    for (i64 n = 0; n < p->n; n++) {
        i64 filled = 0, done = first * p->length;
        for (i64 j = 0; j < width; j++)
            for (i64 at = 0, m; at < p->length; at += m) {
                m = bnn_min(BNN_TILE - filled, p->length - at);
                const i64 i = (n * p->c + first + j) * p->length + at;
                const float *x = bnn_floats(p->x, i, m, p->type, room);
                apply(x, y + filled, m, line[j]);
                if (p->levels) add_groups(p, x, y + filled, m, line[j].mean, groups + j);
                filled += m;
                if (filled < BNN_TILE && (j + 1 < width || at + m < p->length)) continue;
                put_bits(p, n, done, y, filled);
                done += filled, filled = 0;
            }
    }
}

BNN_INLINE void measure(const struct norm *p, i64 first, i64 width, struct moments *moments) {
    v4d sums[GROUP][4] = {{{0}}}, deviations[GROUP][2] = {{{0}}};
    double pivot[GROUP];
    float room[BNN_TILE];
    for (i64 j = 0; j < width; j++) pivot[j] = pivot_of(p, first + j);
    EACH_TILE(add_squares(bnn_floats(p->x, i, m, p->type, room), m, pivot[j], sums[j]))
    for (i64 j = 0; j < width; j++)
        moments[j] = moments_of(p, pivot[j], bnn_sum_pair(sums[j]), bnn_sum_pair(sums[j] + 2));
    if (!p->l1) return;
    EACH_TILE(bnn_add_deviations(bnn_floats(p->x, i, m, p->type, room), m, moments[j].mean,
                                 deviations[j]))
    for (i64 j = 0; j < width; j++) set_deviation(p, moments + j, bnn_sum_pair(deviations[j]));
}

/* Groups begin .. end - 1 of channels. */
BNN_INLINE void normalize_planes(void *context, i64 begin, i64 end) {
    const struct norm copy = *(const struct norm *)context, *p = &copy;
    for (i64 first = begin * p->step; first < bnn_min(end * p->step, p->c); first += p->step) {
        const i64 width = bnn_min(p->step, p->c - first);
        struct moments moments[GROUP];
        struct line line[GROUP];
        struct groups groups[GROUP] = {{{0}, {0}, {0}}};
        measure(p, first, width, moments);
        for (i64 j = 0; j < width; j++) line[j] = finish(p, first + j, moments[j]);
        if (p->y) write_floats(p, first, width, line);
        else write_bits(p, first, width, line, groups);
        for (i64 j = 0; p->levels && j < width; j++)
            finish_groups(p, first + j, moments[j], groups + j);
    }
}

BNN_INLINE void measure_rows(const struct norm *p, i64 first, i64 width, struct moments *moments) {
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

/* Strips begin .. end - 1 of (N, C), row by row. */
BNN_INLINE void normalize_rows(void *context, i64 begin, i64 end) {
    const struct norm copy = *(const struct norm *)context, *p = &copy;
    for (i64 first = begin * p->step; first < bnn_min(end * p->step, p->c); first += p->step) {
        const i64 width = bnn_min(p->step, p->c - first);
        struct moments moments[STRIP];
        struct groups groups[STRIP];
        float mean[STRIP], factor[STRIP], bits_of[STRIP], room[BNN_TILE];
        const float *bias = p->bias + first;
        measure_rows(p, first, width, moments);
        for (i64 j = 0; j < width; j++) {
            const struct line line = finish(p, first + j, moments[j]);
            mean[j] = line.mean, factor[j] = line.factor;
            groups[j] = (struct groups){{0}, {0}, {0}};
        }
        for (i64 n = 0; n < p->n; n++) {
            const float *x = bnn_floats(p->x, n * p->c + first, width, p->type, room);
            float *y = p->y ? p->y + n * p->c + first : bits_of;
            BNN_SAME_OR_APART
            for (i64 j = 0; j < width; j++) y[j] = (x[j] - mean[j]) * factor[j] + bias[j];
            for (i64 j = 0; p->levels && j < width; j++)
                add_one(p, x[j], y[j], mean[j], groups + j);
            if (!p->y) put_bits(p, n, first, y, width);
        }
        for (i64 j = 0; p->levels && j < width; j++)
            finish_groups(p, first + j, moments[j], groups + j);
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
    float *inv_std, i64 l1, i64 type, i64 n, i64 c, i64 length, float epsilon, float momentum,
    float rest) {
    struct norm p = {.x = x, .type = type, .scale = scale, .bias = bias, .mean = running_mean,
                     .var = running_var, .y = y, .l1 = l1 != 0, .next_mean = next_mean, .next_var = next_var,
                     .batch_mean = batch_mean, .inv_std = inv_std, .n = n, .c = c,
                     .length = length, .epsilon = epsilon, .momentum = momentum, .rest = rest};
    normalize(&p);
}

/* signs: the bits of y >= 0 (`plus`: of not y < 0) or y > 0; ranges: of low <= y <= high. Rows of
   ceil(C length / 8) bytes; either may be NULL, and so may levels and slopes together. */
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
