/* Softmax cross-entropy and its gradient over (n, classes, inner): one softmax for each of the
   n inner places. Sums and exponentials are taken in float64: rounded to float32 they are the same
   with any C library, those of expf are not. */
#include "bnn_variants.h"

#include <math.h>

struct softmax {
    const float *x; /* logits, or for the gradient their log-probabilities */
    const i64 *labels;
    float *y;
    float factor;
    i64 classes, inner;
};

/* Element 0 of the classes of place i; the next ones are `inner` further on. */
static i64 first_class(const struct softmax *s, i64 i) {
    return i / s->inner * s->classes * s->inner + i % s->inner;
}

static void log_softmax(void *context, i64 begin, i64 end, int thread) {
    const struct softmax *s = context;
    (void)thread;
    for (i64 i = begin; i < end; i++) {
        const float *x = s->x + first_class(s, i);
        float *y = s->y + first_class(s, i);
        const i64 stop = s->classes * s->inner;
        float most = x[0];
        for (i64 c = 0; c < stop; c += s->inner) most = x[c] > most ? x[c] : most;
        double sum = 0;
        for (i64 c = 0; c < stop; c += s->inner) sum += exp(y[c] = x[c] - most);
        const float log_sum = (float)log(sum);
        for (i64 c = 0; c < stop; c += s->inner) y[c] -= log_sum;
    }
}

static void softmax_less_label(void *context, i64 begin, i64 end, int thread) {
    const struct softmax *s = context;
    (void)thread;
    for (i64 i = begin; i < end; i++) {
        const i64 first = first_class(s, i);
        for (i64 c = 0; c < s->classes; c++) {
            const float probability = (float)exp(s->x[first + c * s->inner]);
            s->y[first + c * s->inner] = (probability - (c == s->labels[i])) * s->factor;
        }
    }
}

static int are_classes(const i64 *labels, i64 n, i64 classes) {
    for (i64 i = 0; i < n; i++)
        if (labels[i] < 0 || labels[i] >= classes) return 0;
    return 1;
}

/* The log-probabilities, (n, classes, inner) as the logits, and the mean of minus that of the
   label; log_prob may be the logits' buffer. 0, and nothing done, if a label is no class. */
BNN_EXPORT int bnn_softmax_cross_entropy_f32(const float *logits, const i64 *labels, float *loss,
                                             float *log_prob, i64 n, i64 classes, i64 inner) {
    struct softmax s = {.x = logits, .labels = labels, .y = log_prob, .classes = classes,
                        .inner = inner};
    if (!are_classes(labels, n * inner, classes)) return 0;
    bnn_parallel(n * inner, bnn_grain_of(16 * classes), log_softmax, &s);
    double sum = 0;
    for (i64 i = 0; i < n * inner; i++) sum += log_prob[first_class(&s, i) + labels[i] * inner];
    *loss = (float)(-sum / (double)(n * inner));
    return 1;
}

/* dlogits = (exp(log_prob) - one_hot(labels)) dloss / (n inner); dlogits may be log_prob's buffer.
   0, and nothing done, if a label is no class. */
BNN_EXPORT int bnn_softmax_cross_entropy_grad_f32(const float *dloss, const float *log_prob,
                                                  const i64 *labels, float *dlogits, i64 n,
                                                  i64 classes, i64 inner) {
    struct softmax s = {.x = log_prob, .labels = labels, .y = dlogits,
                        .factor = *dloss / (float)(n * inner), .classes = classes, .inner = inner};
    if (!are_classes(labels, n * inner, classes)) return 0;
    bnn_parallel(n * inner, bnn_grain_of(16 * classes), softmax_less_label, &s);
    return 1;
}
