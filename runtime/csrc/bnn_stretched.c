/* y = a op b, or another function of x = a and z = b, where b is stretched: a and y are (outer, middle, inner), b is (middle).

   That is a scale or shift by channel, or one plane for all. y may be a's buffer. */
#include "bnn_variants.h"

struct stretched {
    const float *a, *b;
    float *y;
    i64 middle, inner;
};

/* Rows of `inner` elements with one b, or, where inner is 1, of `middle` with one b each. */
#define STRETCHED(NAME, VALUE)                                                                    \
    BNN_INLINE void NAME##_stretched(void *context, i64 begin, i64 end) {                      \
        const struct stretched *c = context;                                                   \
        i64 length = c->inner > 1 ? c->inner : c->middle;                                      \
        for (i64 row = begin; row < end; row++) {                                              \
            const float *a = c->a + row * length, *b = c->b;                                   \
            const float one = b[row % c->middle];                                              \
            float *y = c->y + row * length;                                                    \
            if (c->inner > 1) {                                                                \
                BNN_SAME_OR_APART                                                              \
                for (i64 i = 0; i < length; i++) y[i] = VALUE(a[i], one);                      \
            } else {                                                                           \
                BNN_SAME_OR_APART                                                              \
                for (i64 i = 0; i < length; i++) y[i] = VALUE(a[i], b[i]);                     \
            }                                                                                  \
        }                                                                                      \
    }                                                                                          \
    BNN_BOTH(NAME##_stretched)                                                                 \
    BNN_EXPORT void bnn_##NAME##_stretched_f32(const float *a, const float *b, float *y,       \
                                               i64 outer, i64 middle, i64 inner) {             \
        struct stretched c = {a, b, y, middle, inner};                                         \
        i64 n_rows = inner > 1 ? outer * middle : outer;                                       \
        bnn_parallel(n_rows, bnn_grain_of(inner > 1 ? inner : middle),                         \
                     BNN_PICK(NAME##_stretched), &c);                                          \
    }

#define ADD(x, z) ((x) + (z))
#define SUB(x, z) ((x) - (z))
#define MUL(x, z) ((x) * (z))
#define DIV(x, z) ((x) / (z))
#define PRELU(x, z) ((x) < 0 ? (z) * (x) : (x))

STRETCHED(add, ADD)
STRETCHED(sub, SUB)
STRETCHED(mul, MUL)
STRETCHED(div, DIV)
STRETCHED(prelu, PRELU)
