/* Softmax and its logarithm along the middle axis of (n, classes, inner). Sums are taken in float64. */
#include "bnn_math.h"

struct softmax {
    const float *x;
    float *y;
    i64 classes, inner;
};

enum { LANES = 8, BLOCK = 64 };

/* The largest of a run; NaN wins. */
BNN_INLINE float largest(const float *x, i64 n, i64 step) {
    float lanes[LANES];
    i64 i = 0;
    for (int l = 0; l < LANES; l++) lanes[l] = x[0];
    if (step == 1)
        for (; i + LANES <= n; i += LANES)
            for (int l = 0; l < LANES; l++)
                lanes[l] = x[i + l] > lanes[l] || x[i + l] != x[i + l] ? x[i + l] : lanes[l];
    float most = lanes[0];
    for (int l = 1; l < LANES; l++) most = lanes[l] > most || lanes[l] != lanes[l] ? lanes[l] : most;
    for (; i < n; i++) most = x[i * step] > most || x[i * step] != x[i * step] ? x[i * step] : most;
    return most;
}

/* The sum of exp(x - most) along a run; what is summed goes to y if it is not NULL. */
BNN_INLINE double sum_of_exp(const float *x, float *y, i64 n, i64 step, float most) {
    double lanes[LANES] = {0};
    float block[BLOCK];
    for (i64 i = 0; i < n; i += BLOCK) {
        const i64 width = bnn_min(BLOCK, n - i);
        if (step == 1)
            for (i64 l = 0; l < width; l++) block[l] = bnn_exp(x[i + l] - most);
        else
            for (i64 l = 0; l < width; l++) block[l] = bnn_exp(x[(i + l) * step] - most);
        for (i64 l = width; l % LANES; l++) block[l] = 0;
        for (i64 l = 0; l < width; l += LANES)
            for (int lane = 0; lane < LANES; lane++) lanes[lane] += block[l + lane];
        if (y)
            for (i64 l = 0; l < width; l++) y[(i + l) * step] = block[l];
    }
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

BNN_INLINE i64 first_of(const struct softmax *s, i64 i) {
    return i / s->inner * s->classes * s->inner + i % s->inner;
}

BNN_INLINE void softmax(void *context, i64 begin, i64 end) {
    const struct softmax s = *(const struct softmax *)context;
    for (i64 i = begin; i < end; i++) {
        const float *x = s.x + first_of(&s, i);
        float *y = s.y + first_of(&s, i);
        const float most = largest(x, s.classes, s.inner);
        const float sum = (float)sum_of_exp(x, y, s.classes, s.inner, most);
        for (i64 c = 0; c < s.classes; c++) y[c * s.inner] /= sum;
    }
}

BNN_INLINE void log_softmax(void *context, i64 begin, i64 end) {
    const struct softmax s = *(const struct softmax *)context;
    for (i64 i = begin; i < end; i++) {
        const float *x = s.x + first_of(&s, i);
        float *y = s.y + first_of(&s, i);
        const float most = largest(x, s.classes, s.inner);
        const float total = (float)log(sum_of_exp(x, NULL, s.classes, s.inner, most));
        for (i64 c = 0; c < s.classes; c++) y[c * s.inner] = (x[c * s.inner] - most) - total;
    }
}

BNN_BOTH(softmax)
BNN_BOTH(log_softmax)

/* y = exp(x - max) / sum along `classes`; y may be x's buffer. */
BNN_EXPORT void bnn_softmax_f32(const float *x, float *y, i64 n, i64 classes, i64 inner) {
    struct softmax s = {x, y, classes, inner};
    bnn_parallel(n * inner, bnn_grain_of(4 * classes), BNN_PICK(softmax), &s);
}

/* y = x - max - log(sum of exp(x - max)) along `classes`; y may be x's buffer. */
BNN_EXPORT void bnn_log_softmax_f32(const float *x, float *y, i64 n, i64 classes, i64 inner) {
    struct softmax s = {x, y, classes, inner};
    bnn_parallel(n * inner, bnn_grain_of(4 * classes), BNN_PICK(log_softmax), &s);
}
