/* Batch normalisation with running statistics, as evaluation has it. */
#include "bnn_variants.h"

#include <math.h>

struct running {
    const float *x, *scale, *bias, *mean, *var;
    float *y;
    i64 c, length;
    float epsilon;
};

/* Planes begin .. end - 1 of (N, C). */
BNN_INLINE void running_planes(void *context, i64 begin, i64 end) {
    const struct running p = *(const struct running *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 c = i % p.c;
        const float factor = p.scale[c] / sqrtf(p.var[c] + p.epsilon);
        const float shift = p.bias[c] - p.mean[c] * factor;
        const float *x = p.x + i * p.length;
        float *y = p.y + i * p.length;
        BNN_SAME_OR_APART
        for (i64 j = 0; j < p.length; j++) y[j] = x[j] * factor + shift;
    }
}

/* Rows begin .. end - 1 of (N, C), where the length is 1. */
BNN_INLINE void running_rows(void *context, i64 begin, i64 end) {
    const struct running p = *(const struct running *)context;
    for (i64 i = begin; i < end; i++) {
        const float *x = p.x + i * p.c;
        float *y = p.y + i * p.c;
        BNN_SAME_OR_APART
        for (i64 c = 0; c < p.c; c++) {
            const float factor = p.scale[c] / sqrtf(p.var[c] + p.epsilon);
            y[c] = x[c] * factor + (p.bias[c] - p.mean[c] * factor);
        }
    }
}

BNN_BOTH(running_planes)
BNN_BOTH(running_rows)

/* x and y: (n, c, length); y may be x's buffer. All others: c. */
BNN_EXPORT void bnn_batch_normalization_f32(const float *x, const float *scale, const float *bias,
                                            const float *mean, const float *var, float *y, i64 n,
                                            i64 c, i64 length, float epsilon) {
    struct running p = {x, scale, bias, mean, var, y, c, length, epsilon};
    if (length == 1) bnn_parallel(n, bnn_grain_of(c), BNN_PICK(running_rows), &p);
    else bnn_parallel(n * c, bnn_grain_of(length), BNN_PICK(running_planes), &p);
}
