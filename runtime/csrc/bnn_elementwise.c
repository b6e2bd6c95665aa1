/* One float in, one float out: activations, their gradients, sums and products.

   Every output may be the buffer of an input of the same size. Maps of half precision are worked on
   in float32, a block at a time, and rounded once. */
#include "bnn_half.h"
#include "bnn_math.h"

struct map {
    const float *a, *b;
    float *y;
    float s, t;
};

/* Where operands or the result are halves. */
struct half_map {
    const void *a, *b;
    void *y;
    float s, t;
    int a_is_half, b_is_half, y_is_half;
    bnn_body loop;
};

enum { HALF_BLOCK = 512 };

static const float *widened(const void *x, int is_half, i64 first, i64 n, float *out) {
    if (!x) return NULL;
    if (!is_half) return (const float *)x + first;
    bnn_decode_halves((const bnn_half *)x + first, out, n);
    return out;
}

static void map_halves(void *context, i64 begin, i64 end, int thread) {
    const struct half_map *h = context;
    float a[HALF_BLOCK], b[HALF_BLOCK], y[HALF_BLOCK];
    for (i64 i = begin; i < end; i += HALF_BLOCK) {
        i64 n = bnn_min(HALF_BLOCK, end - i);
        struct map m = {widened(h->a, h->a_is_half, i, n, a), widened(h->b, h->b_is_half, i, n, b),
                        h->y_is_half ? y : (float *)h->y + i, h->s, h->t};
        h->loop(&m, 0, n, thread);
        if (h->y_is_half) bnn_encode_halves(y, (bnn_half *)h->y + i, n);
    }
}

BNN_INLINE float within_0_and_1(float x) {
    const float above = x < 0 ? 0.0f : x; /* NaN stays */
    return above > 1 ? 1.0f : above;
}

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
    BNN_ALL(NAME##_f32)                                                                        \
    BNN_EXPORT void bnn_##NAME##_f32(const float *a, const float *b, float *y, i64 n, float s, \
                                     float t) {                                                \
        struct map m = {a, b, y, s, t};                                                        \
        bnn_parallel(n, BNN_GRAIN, BNN_PICK_ALL(NAME##_f32), &m);                              \
    }                                                                                          \
    BNN_EXPORT void bnn_##NAME##_halves(const void *a, const void *b, void *y, i64 a_is_half,  \
                                        i64 b_is_half, i64 y_is_half, i64 n, float s,          \
                                        float t) {                                             \
        struct half_map h = {a, b, y, s, t, (int)a_is_half, (int)b_is_half, (int)y_is_half,    \
                             BNN_PICK_ALL(NAME##_f32)};                                        \
        bnn_parallel(n, BNN_GRAIN, map_halves, &h);                                            \
    }

ELEMENTWISE(binarize_plus, a[i] < 0 ? -1.0f : 1.0f) /* sign(0) = sign(NaN) = +1 */
ELEMENTWISE(binarize_minus, a[i] > 0 ? 1.0f : -1.0f)
/* Times 0 or 1, not a choice: NaN and infinity times 0 stay NaN, as in the operator's body. */
ELEMENTWISE(clip_grad, a[i] * (float)((b[i] >= s) & (b[i] <= t)))
ELEMENTWISE(relu_grad, a[i] * (b[i] > 0 ? 1.0f : 0.0f))
ELEMENTWISE(relu, a[i] <= 0 ? 0.0f : a[i]) /* NaN stays */
ELEMENTWISE(gelu, bnn_gelu(a[i]))
ELEMENTWISE(gelu_tanh, bnn_gelu_tanh(a[i]))
ELEMENTWISE(gelu_grad, a[i] * bnn_gelu_slope(b[i]))
ELEMENTWISE(gelu_tanh_grad, a[i] * bnn_gelu_tanh_slope(b[i]))
ELEMENTWISE(exp, bnn_exp(a[i]))
ELEMENTWISE(erf, bnn_erf(a[i]))
ELEMENTWISE(tanh, bnn_tanh(a[i]))
ELEMENTWISE(sigmoid, bnn_sigmoid(a[i]))
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
ELEMENTWISE(div, a[i] / b[i])
ELEMENTWISE(div_scalar, a[i] / s)
ELEMENTWISE(scalar_div, s / a[i])
ELEMENTWISE(leaky_relu, a[i] < 0 ? s * a[i] : a[i])
ELEMENTWISE(prelu, a[i] < 0 ? b[i] * a[i] : a[i])
ELEMENTWISE(hard_swish, a[i] * within_0_and_1((1.0f / 6) * a[i] + 0.5f))
ELEMENTWISE(hard_swish_grad, b[i] < -3 ? 0.0f
                             : b[i] > 3 ? a[i]
                                        : (b[i] * (1.0f / 3) + 0.5f) * a[i])
ELEMENTWISE(abs, fabsf(a[i]))
ELEMENTWISE(neg, -a[i])
ELEMENTWISE(sqrt, sqrtf(a[i]))
ELEMENTWISE(round, rintf(a[i]))
ELEMENTWISE(sign, a[i] > 0 ? 1.0f : a[i] < 0 ? -1.0f : a[i] == 0 ? 0.0f : a[i]) /* NaN stays */
ELEMENTWISE(approx_sign_grad, a[i] * (fabsf(b[i]) > 1 ? 0.0f : 2 - 2 * fabsf(b[i])))
ELEMENTWISE(log, bnn_log(a[i]))
ELEMENTWISE(softplus, bnn_softplus(a[i]))

struct choice {
    const uint8_t *condition;
    const float *a, *b;
    float *y;
    i64 a_step, b_step;
};

BNN_INLINE void where(void *context, i64 begin, i64 end) {
    const struct choice c = *(const struct choice *)context;
    const uint8_t *condition = c.condition;
    const float *a = c.a, *b = c.b, one_a = *a, one_b = *b;
    float *y = c.y;
    if (c.a_step && c.b_step) {
        BNN_SAME_OR_APART
        for (i64 i = begin; i < end; i++) y[i] = condition[i] ? a[i] : b[i];
    } else if (c.a_step) {
        BNN_SAME_OR_APART
        for (i64 i = begin; i < end; i++) y[i] = condition[i] ? a[i] : one_b;
    } else if (c.b_step) {
        BNN_SAME_OR_APART
        for (i64 i = begin; i < end; i++) y[i] = condition[i] ? one_a : b[i];
    } else {
        for (i64 i = begin; i < end; i++) y[i] = condition[i] ? one_a : one_b;
    }
}
BNN_BOTH(where)

/* y = a where the condition holds, else b; a and b are stepped through, or one element (step 0). */
BNN_EXPORT void bnn_where_f32(const uint8_t *condition, const float *a, const float *b, float *y,
                              i64 n, i64 a_step, i64 b_step) {
    struct choice c = {condition, a, b, y, a_step, b_step};
    if (n) bnn_parallel(n, BNN_GRAIN, BNN_PICK(where), &c);
}
