/* Elements moved: permuted, cut, repeated, joined; for programs without numpy. */
#include "bnn_axes.h"

/* A constant size, so that a move is one load and one store. */
#define MOVE_ALL(SIZE)                                                                     \
    for (i64 i = 0; i < n; i++) memcpy(y + i * to * SIZE, x + i * from * SIZE, SIZE)

static void move_row(const char *x, char *y, i64 n, i64 from, i64 to, i64 size) {
    if (from == 1 && to == 1) memcpy(y, x, (size_t)(n * size));
    else if (size == 8) MOVE_ALL(8);
    else if (size == 4) MOVE_ALL(4);
    else if (size == 2) MOVE_ALL(2);
    else MOVE_ALL(1);
}

/* y[i] = x[i] of elements of `size` bytes over six axes. `axes`: the lengths, then the strides of x
   and those of y, in elements; x may repeat an element, or run backwards. */
BNN_EXPORT void bnn_copy(const void *x, void *y, const i64 *axes, i64 size) {
    const i64 *from = axes + BNN_AXES, *to = from + BNN_AXES, n = axes[BNN_AXES - 1];
    i64 n_rows = 1;
    for (int axis = 0; axis < BNN_AXES - 1; axis++) n_rows *= axes[axis];
    for (i64 row = 0; row < n_rows; row++)
        move_row((const char *)x + bnn_offset_of(row, axes, from) * size,
                 (char *)y + bnn_offset_of(row, axes, to) * size, n, from[BNN_AXES - 1], to[BNN_AXES - 1], size);
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
