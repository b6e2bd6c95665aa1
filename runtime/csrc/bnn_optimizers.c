/* Optimiser steps, with the numpy kernels' operations in their order: equal to the last bit.

   The outputs may be the buffers of w, m and v. */
#include "bnn_variants.h"

#include <math.h>

struct step {
    const float *w, *dw, *m, *v;
    float *next_w, *next_m, *next_v;
    float rate, keep1, take1, keep2, take2, correction2, epsilon;
};

BNN_INLINE void sgd_step_f32(void *context, i64 begin, i64 end) {
    const struct step s = *(const struct step *)context;
    const float *w = s.w, *dw = s.dw, rate = s.rate;
    float *next_w = s.next_w;
    BNN_SAME_OR_APART
    for (i64 i = begin; i < end; i++) next_w[i] = w[i] - dw[i] * rate;
}

BNN_INLINE void momentum_step_f32(void *context, i64 begin, i64 end) {
    const struct step s = *(const struct step *)context;
    const float *w = s.w, *dw = s.dw, *m = s.m;
    float *next_w = s.next_w, *next_m = s.next_m;
    BNN_SAME_OR_APART
    for (i64 i = begin; i < end; i++) {
        float weight = w[i], moment = m[i] * s.keep1 + dw[i];
        next_m[i] = moment;
        next_w[i] = weight - moment * s.rate;
    }
}

BNN_INLINE void adam_step_f32(void *context, i64 begin, i64 end) {
    const struct step s = *(const struct step *)context;
    const float *w = s.w, *dw = s.dw, *m = s.m, *v = s.v;
    float *next_w = s.next_w, *next_m = s.next_m, *next_v = s.next_v;
    BNN_SAME_OR_APART
    for (i64 i = begin; i < end; i++) {
        float weight = w[i], slope = dw[i];
        float first = m[i] * s.keep1 + slope * s.take1;
        float second = slope * slope * s.take2 + v[i] * s.keep2;
        float bottom = sqrtf(second / s.correction2) + s.epsilon;
        next_m[i] = first;
        next_v[i] = second;
        next_w[i] = weight - first * s.rate / bottom;
    }
}

BNN_BOTH(sgd_step_f32)
BNN_BOTH(momentum_step_f32)
BNN_BOTH(adam_step_f32)

BNN_EXPORT void bnn_sgd_step_f32(const float *w, const float *dw, float *next_w, i64 n,
                                 float rate) {
    struct step s = {.w = w, .dw = dw, .next_w = next_w, .rate = rate};
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(sgd_step_f32), &s);
}

BNN_EXPORT void bnn_momentum_step_f32(const float *w, const float *dw, const float *m,
                                      float *next_w, float *next_m, i64 n, float rate,
                                      float momentum) {
    struct step s = {.w = w, .dw = dw, .m = m, .next_w = next_w, .next_m = next_m,
                     .rate = rate, .keep1 = momentum};
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(momentum_step_f32), &s);
}

/* `rate` is lr / (1 - beta1^step), `correction2` is 1 - beta2^step, `take` is 1 - beta. */
BNN_EXPORT void bnn_adam_step_f32(const float *w, const float *dw, const float *m, const float *v,
                                  float *next_w, float *next_m, float *next_v, i64 n, float rate,
                                  float correction2, float beta1, float take1, float beta2,
                                  float take2, float epsilon) {
    struct step s = {w,     dw,    m,     v,     next_w, next_m,      next_v,
                     rate,  beta1, take1, beta2, take2,  correction2, epsilon};
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(adam_step_f32), &s);
}
