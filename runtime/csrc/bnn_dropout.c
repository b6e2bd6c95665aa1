/* Dropout, with the random bits of the RandomBits operator. */
#include "bnn_rounding.h"

struct dropout {
    const float *x;
    float *y;
    uint8_t *mask; /* or NULL */
    uint32_t stream, threshold;
    float scale;
};

/* Times 0, not a choice: NaN and infinity times 0 stay NaN, as in the operator's body. */
BNN_INLINE void dropout(void *context, i64 begin, i64 end) {
    const struct dropout d = *(const struct dropout *)context;
    BNN_SAME_OR_APART
    for (i64 i = begin; i < end; i++)
        d.y[i] = d.x[i] * (random32(d.stream + (uint32_t)i) >= d.threshold ? d.scale : 0.0f);
    if (!d.mask) return;
    for (i64 i = begin; i < end; i++)
        d.mask[i] = random32(d.stream + (uint32_t)i) >= d.threshold;
}

BNN_BOTH(dropout)

/* y = x scale where the bits of an element are at least `threshold`, x 0 elsewhere; mask, one byte
   an element, says where. y may be x's buffer, mask NULL. The bits are those of the seed and `step`. */
BNN_EXPORT void bnn_dropout_f32(const float *x, float *y, uint8_t *mask, const i64 *step, i64 n,
                                i64 seed, i64 threshold, float scale) {
    struct dropout d = {x, y, mask, stream_start(*step, seed), (uint32_t)threshold, scale};
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(dropout), &d);
}

struct draw_uniform {
    float *u;
    uint32_t stream;
    float low, scale;
};

BNN_INLINE void draw_uniform(void *context, i64 begin, i64 end) {
    const struct draw_uniform r = *(const struct draw_uniform *)context;
    for (i64 i = begin; i < end; i++) {
        const float fraction = (float)(int32_t)(random32(r.stream + (uint32_t)i) >> 8) * 0x1p-24f;
        r.u[i] = r.low + fraction * r.scale;
    }
}

BNN_BOTH(draw_uniform)

/* u = low + scale f, f in [0, 1) of the first 24 bits of an element: those of the seed and `step`. */
BNN_EXPORT void bnn_draw_uniform_f32(float *u, const i64 *step, i64 n, i64 seed, float low,
                                     float scale) {
    struct draw_uniform r = {u, stream_start(*step, seed), low, scale};
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(draw_uniform), &r);
}
