/* Permutations of up to four axes of 4-byte elements. */
#include "bnn_variants.h"

enum { BLOCK = 16 }; /* 16 elements are a cache line */

struct transpose {
    const uint32_t *x;
    uint32_t *y;
    i64 shape[4], from[4], to[4]; /* of y's axes: lengths, strides in x and in y */
    int fast;                     /* y's axis along which x is contiguous */
    int others[2];                /* the two axes that are neither that one nor the last */
};

BNN_INLINE void copy_4_by_4(const uint32_t *x, i64 from, uint32_t *y, i64 to) {
    v4i a, b, c, d;
    memcpy(&a, x, 16), memcpy(&b, x + from, 16);
    memcpy(&c, x + 2 * from, 16), memcpy(&d, x + 3 * from, 16);
    v4i ab_low = BNN_SHUFFLE(v4i, a, b, 0, 4, 1, 5);
    v4i ab_high = BNN_SHUFFLE(v4i, a, b, 2, 6, 3, 7);
    v4i cd_low = BNN_SHUFFLE(v4i, c, d, 0, 4, 1, 5);
    v4i cd_high = BNN_SHUFFLE(v4i, c, d, 2, 6, 3, 7);
    a = BNN_SHUFFLE(v4i, ab_low, cd_low, 0, 1, 4, 5);
    b = BNN_SHUFFLE(v4i, ab_low, cd_low, 2, 3, 6, 7);
    c = BNN_SHUFFLE(v4i, ab_high, cd_high, 0, 1, 4, 5);
    d = BNN_SHUFFLE(v4i, ab_high, cd_high, 2, 3, 6, 7);
    memcpy(y, &a, 16), memcpy(y + to, &b, 16);
    memcpy(y + 2 * to, &c, 16), memcpy(y + 3 * to, &d, 16);
}

/* y[i * to + k] = x[i + k * from] for i < rows, k < columns, at most BLOCK each. */
BNN_INLINE void copy_block(const uint32_t *x, i64 from, i64 columns, uint32_t *y, i64 to,
                           i64 rows) {
    i64 i = 0;
    for (; i + 4 <= rows; i += 4) {
        i64 k = 0;
        for (; k + 4 <= columns; k += 4) copy_4_by_4(x + i + k * from, from, y + i * to + k, to);
        for (; k < columns; k++)
            for (i64 j = i; j < i + 4; j++) y[j * to + k] = x[j + k * from];
    }
    for (; i < rows; i++)
        for (i64 k = 0; k < columns; k++) y[i * to + k] = x[i + k * from];
}

static void transpose_b32(void *context, i64 begin, i64 end, int thread) {
    const struct transpose *t = context;
    const int p = t->others[0], q = t->others[1], fast = t->fast;
    const i64 blocks = bnn_ceil_div(t->shape[fast], BLOCK);
    (void)thread;
    for (i64 item = begin; item < end; item++) {
        i64 i = item % blocks * BLOCK, outer = item / blocks;
        i64 u = outer / t->shape[q], v = outer % t->shape[q];
        const uint32_t *x = t->x + u * t->from[p] + v * t->from[q] + i;
        uint32_t *y = t->y + u * t->to[p] + v * t->to[q] + i * t->to[fast];
        i64 rows = bnn_min(BLOCK, t->shape[fast] - i);
        for (i64 k = 0; k < t->shape[3]; k += BLOCK)
            copy_block(x + k * t->from[3], t->from[3], bnn_min(BLOCK, t->shape[3] - k), y + k,
                       t->to[fast], rows);
    }
}

static void copy_rows_b32(void *context, i64 begin, i64 end, int thread) {
    const struct transpose *t = context;
    const i64 *shape = t->shape, *from = t->from;
    (void)thread;
    for (i64 row = begin; row < end; row++) {
        i64 k = row % shape[2], j = row / shape[2] % shape[1], i = row / shape[2] / shape[1];
        memcpy(t->y + row * shape[3], t->x + i * from[0] + j * from[1] + k * from[2],
               (size_t)shape[3] * sizeof *t->y);
    }
}

/* y, contiguous, of `shape`; its axes have the strides `from`, in elements, in x. Axis `fast` has
   stride 1 in x: 3, if the last axis stays the last. */
BNN_EXPORT void bnn_transpose_b32(const uint32_t *x, uint32_t *y, const i64 *shape, const i64 *from,
                                  i64 fast) {
    struct transpose t = {.x = x, .y = y, .fast = (int)fast};
    memcpy(t.shape, shape, sizeof t.shape);
    memcpy(t.from, from, sizeof t.from);
    for (i64 axis = 3, step = 1; axis >= 0; step *= shape[axis--]) t.to[axis] = step;
    if (fast == 3) {
        bnn_parallel(shape[0] * shape[1] * shape[2], bnn_grain_of(shape[3]), copy_rows_b32, &t);
        return;
    }
    for (int axis = 0, k = 0; axis < 3; axis++)
        if (axis != fast) t.others[k++] = axis;
    i64 items = shape[t.others[0]] * shape[t.others[1]] * bnn_ceil_div(shape[fast], BLOCK);
    bnn_parallel(items, bnn_grain_of(BLOCK * shape[3]), transpose_b32, &t);
}
