/* Products of real matrices without scratch memory, slowly: each sum is taken in order, in float32, so
   that the same source gives the same bits on every machine. */
#include "bnn_normalize.h"

struct gemm {
    const float *a, *b;
    float *y;
    i64 m, n, k;
    i64 a_batch, a_row, a_column; /* elements from one to the next */
    i64 b_batch, b_row, b_column;
};

BNN_INLINE void row_by_rows(const struct gemm *g, const float *a, const float *b, float *y) {
    for (i64 j = 0; j < g->n; j++) y[j] = 0;
    for (i64 l = 0; l < g->k; l++) {
        const float factor = a[l * g->a_column], *row = b + l * g->b_row;
        for (i64 j = 0; j < g->n; j++) y[j] += factor * row[j];
    }
}

BNN_INLINE void row_by_columns(const struct gemm *g, const float *a, const float *b, float *y) {
    for (i64 j = 0; j < g->n; j++) {
        const float *column = b + j * g->b_column;
        float sum = 0;
        for (i64 l = 0; l < g->k; l++) sum += a[l * g->a_column] * column[l * g->b_row];
        y[j] = sum;
    }
}

BNN_INLINE void gemm_rows(void *context, i64 begin, i64 end) {
    const struct gemm *g = context;
    for (i64 i = begin; i < end; i++) {
        const i64 batch = i / g->m;
        const float *a = g->a + batch * g->a_batch + i % g->m * g->a_row;
        const float *b = g->b + batch * g->b_batch;
        float *y = g->y + i * g->n;
        if (g->b_column == 1) row_by_rows(g, a, b, y);
        else row_by_columns(g, a, b, y);
    }
}

BNN_BOTH(gemm_rows)

/* y (batches, m, n) = a (m, k) times b (k, n) of each batch. `strides`: elements of a from one
   batch, row and column to the next, then those of b. */
BNN_EXPORT void bnn_gemm_f32(const float *a, const float *b, float *y, const i64 *strides,
                             i64 batches, i64 m, i64 n, i64 k) {
    struct gemm g = {a, b, y, m, n, k, strides[0], strides[1], strides[2], strides[3], strides[4],
                     strides[5]};
    bnn_parallel(batches * m, bnn_grain_of(n * k), BNN_PICK(gemm_rows), &g);
}

/* ---- one of them images, which are normalised as they are read ---- */

enum { PIECE = 256 }; /* columns at a time */

struct images_gemm {
    struct gemm g;
    bnn_images images;
    i64 first;
};

/* Elements i, i + step, .. of a matrix as floats: where they lie, or in `room`. */
BNN_INLINE const float *piece_of(const struct images_gemm *p, const float *data, i64 i, i64 step,
                                 i64 n, float *room) {
    if (data && step == 1) return data + i;
    for (i64 j = 0; data && j < n; j++) room[j] = data[i + j * step];
    if (!data) bnn_normalize_at(&p->images, p->first + i, n, room);
    return room;
}

BNN_INLINE void images_rows(void *context, i64 begin, i64 end) {
    const struct images_gemm *p = context;
    const struct gemm *g = &p->g;
    float room[PIECE], one;
    for (i64 i = begin; i < end; i++) {
        const i64 batch = i / g->m, a = batch * g->a_batch + i % g->m * g->a_row;
        float *y = g->y + i * g->n;
        for (i64 j = 0; j < g->n; j++) y[j] = 0;
        for (i64 from = 0; from < g->n; from += PIECE) {
            const i64 n = bnn_min(PIECE, g->n - from);
            for (i64 l = 0; l < g->k; l++) {
                const float factor = *piece_of(p, g->a, a + l * g->a_column, 1, 1, &one);
                const i64 b = batch * g->b_batch + l * g->b_row + from * g->b_column;
                const float *row = piece_of(p, g->b, b, g->b_column, n, room);
                for (i64 j = 0; j < n; j++) y[from + j] += factor * row[j];
            }
        }
    }
}
BNN_BOTH(images_rows)

/* As bnn_gemm_u8f32f32, to the bits of bnn_gemm_f32. */
BNN_EXPORT void bnn_gemm_u8f32(const float *a, const float *b, float *y, const i64 *strides,
                               i64 batches, i64 m, i64 n, i64 k, const uint8_t *x, i64 first,
                               const float *factor, const float *shift, i64 channels, i64 plane) {
    struct images_gemm p = {{a, b, y, m, n, k, strides[0], strides[1], strides[2], strides[3],
                             strides[4], strides[5]},
                            {x, factor, shift, channels, plane},
                            first};
    bnn_parallel(batches * m, bnn_grain_of(n * k), BNN_PICK(images_rows), &p);
}
