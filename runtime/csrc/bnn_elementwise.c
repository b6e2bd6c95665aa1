/* One float in, one float out: activations, their gradients, sums and products.

   Every output may be the buffer of an input of the same size. */
#include "bnn_variants.h"

struct map {
    const float *a, *b;
    float *y;
    float s, t;
};

/* y[i] = VALUE of a[i], b[i], s and t; exported as bnn_NAME_f32. */
#define ELEMENTWISE(NAME, VALUE)                                                               \
    BNN_INLINE void NAME##_f32(void *context, i64 begin, i64 end) {                            \
        const struct map m = *(const struct map *)context;                                     \
        const float *a = m.a, *b = m.b;                                                        \
        const float s = m.s, t = m.t;                                                          \
        float *y = m.y;                                                                        \
        (void)b, (void)s, (void)t;                                                             \
        BNN_SAME_OR_APART                                                                      \
        for (i64 i = begin; i < end; i++) y[i] = VALUE;                                        \
    }                                                                                          \
    BNN_BOTH(NAME##_f32)                                                                       \
    BNN_EXPORT void bnn_##NAME##_f32(const float *a, const float *b, float *y, i64 n, float s, \
                                     float t) {                                                \
        struct map m = {a, b, y, s, t};                                                        \
        bnn_parallel(n, BNN_GRAIN, BNN_PICK(NAME##_f32), &m);                                  \
    }

ELEMENTWISE(binarize_plus, a[i] < 0 ? -1.0f : 1.0f) /* sign(0) = sign(NaN) = +1 */
ELEMENTWISE(binarize_minus, a[i] > 0 ? 1.0f : -1.0f)
/* Times 0 or 1, not a choice: NaN and infinity times 0 stay NaN, as in the operator's body. */
ELEMENTWISE(clip_grad, a[i] * (float)((b[i] >= s) & (b[i] <= t)))
ELEMENTWISE(relu_grad, a[i] * (b[i] > 0 ? 1.0f : 0.0f))
ELEMENTWISE(relu, a[i] <= 0 ? 0.0f : a[i]) /* NaN stays */
ELEMENTWISE(clip_low, a[i] < s ? s : a[i])
ELEMENTWISE(clip_high, a[i] > t ? t : a[i])
ELEMENTWISE(clip, (a[i] < s ? s : a[i]) > t ? t : (a[i] < s ? s : a[i]))
ELEMENTWISE(add, a[i] + b[i])
ELEMENTWISE(sub, a[i] - b[i])
ELEMENTWISE(mul, a[i] * b[i])
ELEMENTWISE(add_scalar, a[i] + s)
ELEMENTWISE(sub_scalar, a[i] - s)
ELEMENTWISE(scalar_sub, s - a[i])
ELEMENTWISE(mul_scalar, a[i] * s)
