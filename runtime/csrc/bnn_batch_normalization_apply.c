/* Batch normalisation again, from the statistics that its training form left. */
#include "bnn_variants.h"

struct apply {
    const float *x, *scale, *bias, *mean, *inv_std;
    float *y;
    i64 c, length;
};

/* Planes begin .. end - 1 of (N, C); the operations of bnn_batch_normalization_training. */
BNN_INLINE void apply_planes(void *context, i64 begin, i64 end) {
    const struct apply p = *(const struct apply *)context;
    for (i64 i = begin; i < end; i++) {
        const i64 c = i % p.c;
        const float mean = p.mean[c], factor = p.inv_std[c] * p.scale[c], bias = p.bias[c];
        const float *x = p.x + i * p.length;
        float *y = p.y + i * p.length;
        BNN_SAME_OR_APART
        for (i64 j = 0; j < p.length; j++) y[j] = (x[j] - mean) * factor + bias;
    }
}

BNN_BOTH(apply_planes)

/* x, y: (n, c, length); y may be x. All others: c. */
BNN_EXPORT void bnn_batch_normalization_apply_f32(const float *x, const float *scale,
                                                  const float *bias, const float *mean,
                                                  const float *inv_std, float *y, i64 n, i64 c,
                                                  i64 length) {
    struct apply p = {x, scale, bias, mean, inv_std, y, c, length};
    bnn_parallel(n * c, bnn_grain_of(length), BNN_PICK(apply_planes), &p);
}
