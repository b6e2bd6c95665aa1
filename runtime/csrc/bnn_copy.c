/* Elements moved: permuted, cut, repeated, joined. */
#include "bnn_axes.h"

struct move {
    const char *x;
    char *y;
    const i64 *axes;
    i64 size;
};

/* A constant size, so that a move is one load and one store, and what is repeated is stored whole. */
#define MOVE_ALL(SIZE)                                                                     \
    if (!from && to == 1) {                                                                \
        char one[SIZE];                                                                    \
        memcpy(one, x, SIZE);                                                              \
        for (i64 i = 0; i < n; i++) memcpy(y + i * SIZE, one, SIZE);                       \
    } else                                                                                 \
        for (i64 i = 0; i < n; i++) memcpy(y + i * to * SIZE, x + i * from * SIZE, SIZE)

static void move_row(const char *x, char *y, i64 n, i64 from, i64 to, i64 size) {
    if (from == 1 && to == 1) memmove(y, x, (size_t)(n * size)); /* of itself, perhaps */
    else if (size == 8) { MOVE_ALL(8); }
    else if (size == 4) { MOVE_ALL(4); }
    else if (size == 2) { MOVE_ALL(2); }
    else if (!from && to == 1) memset(y, *x, (size_t)n);
    else { MOVE_ALL(1); }
}

static void move_rows(void *context, i64 begin, i64 end, int thread) {
    (void)thread;
    const struct move m = *(const struct move *)context;
    const i64 n = m.axes[BNN_AXES - 1], from = m.axes[2 * BNN_AXES - 1], to = m.axes[3 * BNN_AXES - 1];
    struct bnn_walk w = bnn_walk_from(m.axes, begin);
    for (i64 row = begin; row < end; row++, bnn_walk_on(&w))
        move_row(m.x + w.first * m.size, m.y + w.second * m.size, n, from, to, m.size);
}

/* y[i] = x[i] of elements of `size` bytes over six axes: `axes` as of a walk over x and y; x may
   repeat an element, or run backwards. */
BNN_EXPORT void bnn_copy(const void *x, void *y, const i64 *axes, i64 size) {
    struct move m = {x, y, axes, size};
    bnn_parallel(bnn_rows_of(axes), bnn_row_grain(axes), move_rows, &m);
}

/* All `n` floats become `value`. */
BNN_EXPORT void bnn_fill_f32(float *y, i64 n, float value) {
    for (i64 i = 0; i < n; i++) y[i] = value;
}

/* Integers that follow from shapes. */
BNN_EXPORT void bnn_set_i64(i64 *y, const i64 *values, i64 n) {
    memcpy(y, values, (size_t)n * sizeof *y);
}

/* y[i] = row indices[i] of x, of `length` rows; negative ones count from the end. 0 if one is out of
   range. */
BNN_EXPORT int bnn_gather_f32(const float *x, const i64 *indices, float *y, i64 n, i64 length,
                              i64 row) {
    for (i64 i = 0; i < n; i++) {
        const i64 at = indices[i] < 0 ? indices[i] + length : indices[i];
        if (at < 0 || at >= length) return 0;
        memcpy(y + i * row, x + at * row, (size_t)row * sizeof *y);
    }
    return 1;
}

/* dx = 0, then row indices[i] of dx += dy[i] in order. */
BNN_EXPORT int bnn_gather_grad_f32(const float *dy, const i64 *indices, float *dx, i64 n, i64 length,
                                   i64 row) {
    memset(dx, 0, (size_t)(length * row) * sizeof *dx);
    for (i64 i = 0; i < n; i++) {
        const i64 at = indices[i] < 0 ? indices[i] + length : indices[i];
        if (at < 0 || at >= length) return 0;
        for (i64 j = 0; j < row; j++) dx[at * row + j] += dy[i * row + j];
    }
    return 1;
}

/* y: (n, depth, inner), values[1] where the middle index is that of (n, inner) `indices`, of which
   negative ones count from the end, else values[0]. */
BNN_EXPORT void bnn_one_hot_f32(const i64 *indices, const float *values, float *y, i64 n, i64 depth,
                                i64 inner) {
    bnn_fill_f32(y, n * depth * inner, values[0]);
    for (i64 i = 0; i < n; i++, y += depth * inner)
        for (i64 j = 0; j < inner; j++) {
            const i64 index = indices[i * inner + j], at = index < 0 ? index + depth : index;
            if (at >= 0 && at < depth) y[at * inner + j] = values[1];
        }
}
