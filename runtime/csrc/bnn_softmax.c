/* Softmax and its logarithm along the middle axis of (n, classes, inner): rows, or where inner is
   more than 1 strips of neighbours, class by class. Sums are taken in float64. */
#include "bnn_math.h"

enum { STRIP = 64 }; /* most neighbours that are taken along */

struct softmax {
    const float *x;
    float *y;
    i64 classes, inner, strips;
    int is_log;
};

BNN_INLINE float largest(const float *x, i64 n) {
    v8f most = {x[0], x[0], x[0], x[0], x[0], x[0], x[0], x[0]}, v;
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        memcpy(&v, x + i, sizeof v);
        const v8i is_larger = (v > most) | (v != v);
        most = (v8f)(((v8i)v & is_larger) | ((v8i)most & ~is_larger));
    }
    float one = most[0];
    for (int lane = 1; lane < 8; lane++) one = bnn_larger(most[lane], one);
    for (; i < n; i++) one = bnn_larger(x[i], one);
    return one;
}

/* Rows begin .. end - 1; y may be x. */
BNN_INLINE void softmax_rows(void *context, i64 begin, i64 end) {
    const struct softmax s = *(const struct softmax *)context;
    const i64 n = s.classes;
    for (i64 row = begin; row < end; row++) {
        const float *x = s.x + row * n, most = largest(x, n);
        float *y = s.y + row * n;
        BNN_SAME_OR_APART
        for (i64 c = 0; c < n; c++) y[c] = bnn_exp(x[c] - most);
        const float sum = (float)bnn_sum(y, n);
        for (i64 c = 0; c < n; c++) y[c] /= sum;
    }
}

BNN_INLINE void log_softmax_rows(void *context, i64 begin, i64 end) {
    const struct softmax s = *(const struct softmax *)context;
    const i64 n = s.classes;
    for (i64 row = begin; row < end; row++) {
        const float *x = s.x + row * n, most = largest(x, n);
        float *y = s.y + row * n, block[STRIP];
        double sum = 0;
        for (i64 c = 0; c < n; c += STRIP) {
            const i64 width = bnn_min(STRIP, n - c);
            for (i64 l = 0; l < width; l++) block[l] = bnn_exp(x[c + l] - most);
            sum += bnn_sum(block, width);
        }
        const float total = (float)log(sum);
        BNN_SAME_OR_APART
        for (i64 c = 0; c < n; c++) y[c] = (x[c] - most) - total;
    }
}

/* Strips begin .. end - 1. */
BNN_INLINE void softmax_strips(void *context, i64 begin, i64 end) {
    const struct softmax s = *(const struct softmax *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 at = i % s.strips * STRIP, width = bnn_min(STRIP, s.inner - at);
        const i64 first = i / s.strips * s.classes * s.inner + at, stop = s.classes * s.inner;
        const float *x = s.x + first;
        float *y = s.y + first, most[STRIP], totals[STRIP];
        double sums[STRIP] = {0};
        for (i64 l = 0; l < width; l++) most[l] = x[l];
        for (i64 c = 0; c < stop; c += s.inner)
            for (i64 l = 0; l < width; l++) most[l] = bnn_larger(x[c + l], most[l]);
        for (i64 c = 0; c < stop; c += s.inner)
            for (i64 l = 0; l < width; l++) sums[l] += bnn_exp(x[c + l] - most[l]);
        for (i64 l = 0; l < width; l++) totals[l] = (float)(s.is_log ? log(sums[l]) : sums[l]);
        for (i64 c = 0; c < stop; c += s.inner) {
            BNN_SAME_OR_APART
            for (i64 l = 0; l < width; l++) {
                const float z = x[c + l] - most[l];
                y[c + l] = s.is_log ? z - totals[l] : bnn_exp(z) / totals[l];
            }
        }
    }
}

BNN_ALL(softmax_rows)
BNN_ALL(log_softmax_rows)
BNN_ALL(softmax_strips)

static void run(struct softmax *s, i64 n, bnn_body rows) {
    const i64 size = 8 * s->classes; /* as if it were so many more: an exponential takes its time */
    s->strips = bnn_ceil_div(s->inner, STRIP);
    if (s->inner == 1) bnn_parallel(n, bnn_grain_of(size), rows, s);
    else bnn_parallel(n * s->strips, bnn_grain_of(STRIP * size), BNN_PICK_ALL(softmax_strips), s);
}

/* y = exp(x - max) / sum along `classes`; y may be x's buffer. */
BNN_EXPORT void bnn_softmax_f32(const float *x, float *y, i64 n, i64 classes, i64 inner) {
    struct softmax s = {.x = x, .y = y, .classes = classes, .inner = inner};
    run(&s, n, BNN_PICK_ALL(softmax_rows));
}

/* y = x - max - log(sum of exp(x - max)) along `classes`; y may be x's buffer. */
BNN_EXPORT void bnn_log_softmax_f32(const float *x, float *y, i64 n, i64 classes, i64 inner) {
    struct softmax s = {.x = x, .y = y, .classes = classes, .inner = inner, .is_log = 1};
    run(&s, n, BNN_PICK_ALL(log_softmax_rows));
}

struct softmax_grad {
    const float *dy, *y;
    float *dx;
    i64 classes, inner, strips;
};

BNN_INLINE void softmax_grad_rows(void *context, i64 begin, i64 end) {
    const struct softmax_grad s = *(const struct softmax_grad *)context;
    for (i64 row = begin; row < end; row++) {
        const float *dy = s.dy + row * s.classes, *y = s.y + row * s.classes;
        float *dx = s.dx + row * s.classes, block[STRIP];
        double sum = 0;
        for (i64 c = 0; c < s.classes; c += STRIP) {
            const i64 width = bnn_min(STRIP, s.classes - c);
            for (i64 l = 0; l < width; l++) block[l] = dy[c + l] * y[c + l];
            sum += bnn_sum(block, width);
        }
        const float total = (float)sum;
        BNN_SAME_OR_APART
        for (i64 c = 0; c < s.classes; c++) dx[c] = y[c] * (dy[c] - total);
    }
}

BNN_INLINE void softmax_grad_strips(void *context, i64 begin, i64 end) {
    const struct softmax_grad s = *(const struct softmax_grad *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 at = i % s.strips * STRIP, width = bnn_min(STRIP, s.inner - at);
        const i64 first = i / s.strips * s.classes * s.inner + at, stop = s.classes * s.inner;
        const float *dy = s.dy + first, *y = s.y + first;
        float *dx = s.dx + first;
        double sums[STRIP] = {0};
        for (i64 c = 0; c < stop; c += s.inner)
            for (i64 l = 0; l < width; l++) sums[l] += dy[c + l] * y[c + l];
        for (i64 c = 0; c < stop; c += s.inner) {
            BNN_SAME_OR_APART
            for (i64 l = 0; l < width; l++) dx[c + l] = y[c + l] * (dy[c + l] - (float)sums[l]);
        }
    }
}

BNN_BOTH(softmax_grad_rows)
BNN_BOTH(softmax_grad_strips)

/* dx = y (dy - sum of dy y) along `classes`; dx may be dy's buffer. */
BNN_EXPORT void bnn_softmax_grad_f32(const float *dy, const float *y, float *dx, i64 n, i64 classes,
                                     i64 inner) {
    struct softmax_grad s = {dy, y, dx, classes, inner, bnn_ceil_div(inner, STRIP)};
    if (inner == 1)
        bnn_parallel(n, bnn_grain_of(2 * classes), BNN_PICK(softmax_grad_rows), &s);
    else
        bnn_parallel(n * s.strips, bnn_grain_of(2 * STRIP * classes),
                     BNN_PICK(softmax_grad_strips), &s);
}
