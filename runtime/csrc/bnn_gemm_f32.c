/* Products of real matrices without scratch memory, slowly: each sum is taken in order, in float32, so
   that the same source gives the same bits on every machine. */
#include "bnn_half.h"
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

/* ---- one of them images, which are normalised as they are read, or b halves ---- */

enum { TERMS = 16, COLUMNS = 64, ROWS = 32 }; /* of a panel of b, and rows of y that share it */

struct any_gemm {
    struct gemm g; /* a or b is NULL where it is not of floats */
    const bnn_half *halves;
    bnn_images images;
    i64 first;
};

/* Elements i, i + step, .. of floats, of halves or else of images, where they lie side by side, as
   floats that are `apart`. */
BNN_INLINE void take(const struct any_gemm *p, const float *data, const bnn_half *halves, i64 i,
                     i64 step, i64 n, float *out, i64 apart) {
    if (!data && !halves) bnn_normalize_at(&p->images, p->first + i, n, out);
    for (i64 j = 0; data && j < n; j++) out[j * apart] = data[i + j * step];
    for (i64 j = 0; halves && j < n; j++) out[j * apart] = bnn_half_to_float(halves[i + j * step]);
}

BNN_INLINE void fill_panel(const struct any_gemm *p, i64 b, i64 n_terms, i64 n, float *panel) {
    const struct gemm *g = &p->g;
    if (g->b_column == 1)
        for (i64 l = 0; l < n_terms; l++)
            take(p, g->b, p->halves, b + l * g->b_row, 1, n, panel + l * COLUMNS, 1);
    else
        for (i64 j = 0; j < n; j++)
            take(p, g->b, p->halves, b + j * g->b_column, g->b_row, n_terms, panel + j, COLUMNS);
}

BNN_INLINE void any_tiles(void *context, i64 begin, i64 end) {
    const struct any_gemm *p = context;
    const struct gemm *g = &p->g;
    const i64 across = bnn_ceil_div(g->n, COLUMNS), down = bnn_ceil_div(g->m, ROWS);
    float panel[TERMS * COLUMNS], factors[TERMS];
    for (i64 unit = begin; unit < end; unit++) {
        const i64 column = unit % across * COLUMNS, n = bnn_min(COLUMNS, g->n - column);
        const i64 row = unit / across % down * ROWS, m = bnn_min(ROWS, g->m - row);
        const i64 batch = unit / across / down;
        const i64 a = batch * g->a_batch + row * g->a_row;
        const i64 b = batch * g->b_batch + column * g->b_column;
        float *y = g->y + (batch * g->m + row) * g->n + column;
        for (i64 i = 0; i < m; i++) memset(y + i * g->n, 0, (size_t)n * sizeof *y);
        for (i64 l = 0; l < g->k; l += TERMS) {
            const i64 n_terms = bnn_min(TERMS, g->k - l);
            fill_panel(p, b + l * g->b_row, n_terms, n, panel);
            for (i64 i = 0; i < m; i++) {
                const i64 at = a + i * g->a_row + l * g->a_column;
                const i64 runs = g->a_column == 1 ? 1 : n_terms;
                for (i64 t = 0; t < runs; t++)
                    take(p, g->a, NULL, at + t * g->a_column, 1, n_terms / runs, factors + t, 1);
                for (i64 t = 0; t < n_terms; t++)
                    for (i64 j = 0; j < n; j++)
                        y[i * g->n + j] += factors[t] * panel[t * COLUMNS + j];
            }
        }
    }
}
BNN_BOTH(any_tiles)

static void run(const float *a, const void *b, i64 b_is_half, float *y, const i64 *strides,
                i64 batches, i64 m, i64 n, i64 k, bnn_images images, i64 first) {
    struct any_gemm p = {{a, b_is_half ? NULL : b, y, m, n, k, strides[0], strides[1], strides[2],
                          strides[3], strides[4], strides[5]},
                         b_is_half ? b : NULL, images, first};
    if (p.g.a && p.g.b)
        bnn_parallel(batches * m, bnn_grain_of(n * k), BNN_PICK(gemm_rows), &p.g);
    else
        bnn_parallel(batches * bnn_ceil_div(m, ROWS) * bnn_ceil_div(n, COLUMNS),
                     bnn_grain_of(bnn_min(m, ROWS) * bnn_min(n, COLUMNS) * k), BNN_PICK(any_tiles),
                     &p);
}

/* y (batches, m, n) = a (m, k) times b (k, n) of each batch, b in floats or halves. `strides`: elements
   of a from one batch, row and column to the next, then those of b. */
BNN_EXPORT void bnn_gemm_f32(const float *a, const void *b, i64 b_is_half, float *y,
                             const i64 *strides, i64 batches, i64 m, i64 n, i64 k) {
    run(a, b, b_is_half, y, strides, batches, m, n, k, (bnn_images){0}, 0);
}

/* The same of images, as bnn_gemm_u8f32f32. */
BNN_EXPORT void bnn_gemm_u8f32(const float *a, const void *b, i64 b_is_half, float *y,
                               const i64 *strides, i64 batches, i64 m, i64 n, i64 k,
                               const uint8_t *x, i64 first, const float *factor,
                               const float *shift, i64 channels, i64 plane) {
    run(a, b, b_is_half, y, strides, batches, m, n, k,
        (bnn_images){x, factor, shift, channels, plane}, first);
}
