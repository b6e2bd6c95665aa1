/* Operations of two or three tensors that are stretched to one shape, and what goes along an axis;
   for programs without numpy. */
#include <math.h>

#include "bnn_axes.h"

/* y, of TYPE, = VALUE of `a` and `b`; exported as bnn_NAME_broadcast_f32. `axes`: six lengths, the strides of a, those
   of b, 0 along axes that are stretched. y is contiguous, and may be an operand that is not stretched. */
#define BROADCAST(NAME, TYPE, VALUE)                                                           \
    BNN_EXPORT void bnn_##NAME##_broadcast_f32(const float *a, const float *b, void *result,   \
                                               const i64 *axes) {                              \
        TYPE *y = result;                                                                      \
        const i64 *of_a = axes + BNN_AXES, *of_b = of_a + BNN_AXES, n = axes[BNN_AXES - 1];                \
        i64 n_rows = 1;                                                                        \
        for (int axis = 0; axis < BNN_AXES - 1; axis++) n_rows *= axes[axis];                      \
        for (i64 row = 0; row < n_rows; row++, y += n) {                                       \
            const float *left = a + bnn_offset_of(row, axes, of_a);                                \
            const float *right = b + bnn_offset_of(row, axes, of_b);                               \
            for (i64 i = 0; i < n; i++) {                                                      \
                const float x = left[i * of_a[BNN_AXES - 1]], z = right[i * of_b[BNN_AXES - 1]];       \
                y[i] = VALUE;                                                                  \
            }                                                                                  \
        }                                                                                      \
    }

BROADCAST(add, float, x + z)
BROADCAST(sub, float, x - z)
BROADCAST(mul, float, x * z)
BROADCAST(div, float, x / z)
BROADCAST(max, float, x > z || x != x ? x : z) /* NaN wins */
BROADCAST(min, float, x < z || x != x ? x : z)
BROADCAST(prelu, float, x < 0 ? z * x : x)
BROADCAST(less, uint8_t, x < z)
BROADCAST(less_or_equal, uint8_t, x <= z)
BROADCAST(greater, uint8_t, x > z)
BROADCAST(greater_or_equal, uint8_t, x >= z)
BROADCAST(equal, uint8_t, x == z)

/* 0 and 1 of booleans. */
BNN_EXPORT void bnn_cast_b8f32(const uint8_t *x, float *y, i64 n) {
    for (i64 i = 0; i < n; i++) y[i] = x[i] != 0;
}

BNN_EXPORT void bnn_cast_i64f32(const i64 *x, float *y, i64 n) {
    for (i64 i = 0; i < n; i++) y[i] = (float)x[i];
}

/* y: (n, depth, inner), values[1] where the middle index is that of (n, inner) `indices`, of which
   negative ones count from the end, else values[0]. */
BNN_EXPORT void bnn_one_hot_f32(const i64 *indices, const float *values, float *y, i64 n, i64 depth,
                                i64 inner) {
    for (i64 i = 0; i < n * depth * inner; i++) {
        const i64 index = indices[i / (depth * inner) * inner + i % inner];
        y[i] = values[(index < 0 ? index + depth : index) == i / inner % depth];
    }
}

/* y: (kept_0, kept_1), the largest of x (kept_0, over_0, kept_1, over_1); NaN wins. */
BNN_EXPORT void bnn_reduce_max_f32(const float *x, float *y, i64 kept_0, i64 over_0, i64 kept_1,
                                   i64 over_1) {
    for (i64 i = 0; i < kept_0 * kept_1; i++) {
        float most = -INFINITY;
        for (i64 j = 0; j < over_0 * over_1; j++) {
            const i64 row = (i / kept_1 * over_0 + j / over_1) * kept_1 + i % kept_1;
            const float z = x[row * over_1 + j % over_1];
            most = z > most || z != z ? z : most;
        }
        y[i] = most;
    }
}
