/* Batch normalisation again, from the statistics that its training form left. */
#include "bnn_tiles.h"

struct apply {
    const void *x;
    enum bnn_type type, y_type;
    const float *scale, *bias, *mean, *inv_std;
    void *y;
    i64 c, length;
};

/* Planes begin .. end - 1 of (N, C); the operations of bnn_batch_normalization_training. */
BNN_INLINE void apply_planes(void *context, i64 begin, i64 end) {
    const struct apply p = *(const struct apply *)context;
    float room[BNN_TILE];
    for (i64 i = begin; i < end; i++) {
        const i64 c = i % p.c;
        const float mean = p.mean[c], factor = p.inv_std[c] * p.scale[c], bias = p.bias[c];
        for (i64 at = 0; at < p.length; at += BNN_TILE) {
            const i64 first = i * p.length + at, m = bnn_min(BNN_TILE, p.length - at);
            const float *x = bnn_floats(p.x, first, m, p.type, room);
            float *y = bnn_room(p.y, first, p.y_type, room);
            BNN_SAME_OR_APART
            for (i64 j = 0; j < m; j++) y[j] = (x[j] - mean) * factor + bias;
            bnn_keep(y, p.y, first, m, p.y_type);
        }
    }
}

BNN_BOTH(apply_planes)

/* x, of `type`, and y, of `y_type`: (n, c, length); y may be x where they are as wide. All others:
   c. */
BNN_EXPORT void bnn_batch_normalization_apply(const void *x, const float *scale, const float *bias,
                                              const float *mean, const float *inv_std, void *y,
                                              i64 type, i64 y_type, i64 n, i64 c, i64 length) {
    struct apply p = {x, type, y_type, scale, bias, mean, inv_std, y, c, length};
    bnn_parallel(n * c, bnn_grain_of(length), BNN_PICK(apply_planes), &p);
}
