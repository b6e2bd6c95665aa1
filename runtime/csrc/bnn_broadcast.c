/* Operations of two tensors that are stretched to one shape, and what goes along an axis. */
#include <math.h>

#include "bnn_axes.h"

struct stretch {
    const float *a, *b;
    void *y;
    const i64 *axes;
    uint8_t less, equal, greater; /* what a comparison gives */
};

/* Rows of y, of TYPE, = VALUE of x and z, an element of a and of b. */
#define BROADCAST_ROWS(NAME, TYPE, VALUE)                                                      \
    static void NAME##_rows(void *context, i64 begin, i64 end, int thread) {                   \
        (void)thread;                                                                          \
        const struct stretch s = *(const struct stretch *)context;                             \
        const i64 n = s.axes[BNN_AXES - 1];                                                    \
        const i64 of_a = s.axes[2 * BNN_AXES - 1], of_b = s.axes[3 * BNN_AXES - 1];            \
        struct bnn_walk w = bnn_walk_from(s.axes, begin);                                      \
        TYPE *y = (TYPE *)s.y + begin * n;                                                     \
        for (i64 row = begin; row < end; row++, y += n, bnn_walk_on(&w)) {                     \
            const float *a = s.a + w.first, *b = s.b + w.second;                               \
            if (of_a == 1 && of_b == 0) {                                                      \
                const float z = *b;                                                            \
                BNN_SAME_OR_APART                                                              \
                for (i64 i = 0; i < n; i++) {                                                  \
                    const float x = a[i];                                                      \
                    y[i] = VALUE;                                                              \
                }                                                                              \
            } else {                                                                           \
                for (i64 i = 0; i < n; i++) {                                                  \
                    const float x = a[i * of_a], z = b[i * of_b];                              \
                    y[i] = VALUE;                                                              \
                }                                                                              \
            }                                                                                  \
        }                                                                                      \
    }

/* Exported as bnn_NAME_broadcast_f32. `axes` as of a walk over a and b, 0 as the stride along axes
   that are stretched. y is contiguous, and may be an operand that is not stretched. */
#define BROADCAST(NAME, VALUE)                                                                 \
    BROADCAST_ROWS(NAME, float, VALUE)                                                         \
    BNN_EXPORT void bnn_##NAME##_broadcast_f32(const float *a, const float *b, float *y,       \
                                               const i64 *axes) {                              \
        struct stretch s = {a, b, y, axes, 0, 0, 0};                                           \
        bnn_parallel(bnn_rows_of(axes), bnn_row_grain(axes), NAME##_rows, &s);                 \
    }

BROADCAST(add, x + z)
BROADCAST(sub, x - z)
BROADCAST(mul, x * z)
BROADCAST(div, x / z)
BROADCAST(max, bnn_larger(x, z))
BROADCAST(min, x < z || x != x ? x : z)
BROADCAST(prelu, x < 0 ? z * x : x)
BROADCAST_ROWS(compare, uint8_t,
               (x < z ? s.less : 0) | (x == z ? s.equal : 0) | (x > z ? s.greater : 0))

/* y = whether a and b, stretched as above, are in one of the relations that are 1. */
BNN_EXPORT void bnn_compare_f32(const float *a, const float *b, uint8_t *y, const i64 *axes,
                                i64 less, i64 equal, i64 greater) {
    struct stretch s = {a, b, y, axes, (uint8_t)less, (uint8_t)equal, (uint8_t)greater};
    bnn_parallel(bnn_rows_of(axes), bnn_row_grain(axes), compare_rows, &s);
}

/* 0 and 1 of booleans. */
BNN_EXPORT void bnn_cast_b8f32(const uint8_t *x, float *y, i64 n) {
    for (i64 i = 0; i < n; i++) y[i] = x[i] != 0;
}

BNN_EXPORT void bnn_cast_i64f32(const i64 *x, float *y, i64 n) {
    for (i64 i = 0; i < n; i++) y[i] = (float)x[i];
}
