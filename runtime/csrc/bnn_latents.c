/* Latent weights of binary layers in int8, as floats. */
#include "bnn_rounding.h"

struct latents {
    const int8_t *q;
    float *w, unit;
};

BNN_INLINE void widen_latents(void *context, i64 begin, i64 end) {
    const struct latents *p = context;
    load_latents(p->q + begin, p->w + begin, p->unit, end - begin);
}
BNN_BOTH(widen_latents)

/* w[i] = (q[i] + 1/2) unit. */
BNN_EXPORT void bnn_widen_latents_f32(const int8_t *q, float *w, i64 n, float unit) {
    struct latents p = {q, w, unit};
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(widen_latents), &p);
}
