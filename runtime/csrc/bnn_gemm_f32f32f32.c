/* Products of real matrices of any strides: y = a b.

   A panel has some terms of b for 48 columns side by side; the sums of a tile of rows and columns are
   complete before the next one. Both lie on the stack: their size does not depend on that of the
   matrices. Where y has few rows, b is read where it lies.

   Each sum is taken in one order, that of the terms, whatever the number of threads: 128 of them at a
   time, or of few rows all, in 32 lanes if they lie side by side in both matrices. */
#include "bnn_real.h"

enum {
    FEW = 12,    /* rows from which on a panel is worth it */
    ROWS = 128,  /* of a tile */
    PART = 128,  /* terms of a panel */
    STRIPE = 256, /* columns of few rows, whose sums stay in the first cache */
    ROUND = 8,    /* terms that are added to them at a time */
    CHUNK = 1 << 21, /* multiplications that are worth handing out */
};

struct product {
    const bnn_real_cores *cores;
    const float *a, *b;
    float *y;
    i64 m, n, k;
    i64 a_batch, a_row, a_column; /* elements from one to the next */
    i64 b_batch, b_row, b_column;
};

static void fill_panel(const struct product *p, const float *b, i64 n_terms, i64 n_lanes,
                       float *panel) {
    const bnn_floats from = bnn_plain(b, 0);
    if (p->b_column == 1) {
        const bnn_stretch all = {0, n_lanes, 0};
        const int clear = n_lanes < bnn_min(PANEL, bnn_round_up(n_lanes, 16));
        p->cores->take(from, p->b_row, n_terms, 1, &all, 1, clear, panel, PANEL);
    } else if (p->b_row == 1) {
        p->cores->turn(from, p->b_column, n_terms, n_lanes, panel);
    } else {
        memset(panel, 0, (size_t)(n_terms * PANEL) * sizeof *panel);
        for (i64 i = 0; i < n_terms; i++)
            for (i64 lane = 0; lane < n_lanes; lane++)
                panel[i * PANEL + lane] = b[i * p->b_row + lane * p->b_column];
    }
}

/* Tiles begin .. end - 1 of those of each batch, row by row of them. */
static void add_tiles(void *context, i64 begin, i64 end, int thread) {
    const struct product *p = context;
    const i64 across = bnn_ceil_div(p->n, PANEL), down = bnn_ceil_div(p->m, ROWS);
    _Alignas(64) float panel[PART * PANEL], tile[ROWS * PANEL];
    i64 offsets[ROWS];
    (void)thread;
    for (i64 i = 0; i < ROWS; i++) offsets[i] = i * p->a_row;
    for (i64 unit = begin; unit < end; unit++) {
        const i64 column = unit % across * PANEL, row = unit / across % down * ROWS;
        const i64 batch = unit / across / down;
        const i64 n_lanes = bnn_min(PANEL, p->n - column), n_rows = bnn_min(ROWS, p->m - row);
        const float *a = p->a + batch * p->a_batch + row * p->a_row;
        const float *b = p->b + batch * p->b_batch + column * p->b_column;
        if (p->k == 0) memset(tile, 0, sizeof tile);
        for (i64 k = 0; k < p->k; k += PART) {
            const i64 n_terms = bnn_min(PART, p->k - k);
            fill_panel(p, b + k * p->b_row, n_terms, n_lanes, panel);
            const bnn_strips strips = {.start = a + k * p->a_column, .offsets = offsets,
                                       .step = p->a_column, .n_terms = n_terms, .n_runs = 1,
                                       .n_groups = 1};
            p->cores->multiply(&strips, n_rows, panel, n_lanes, tile, k > 0);
        }
        const bnn_stretch all = {0, n_lanes, (batch * p->m + row) * p->n + column};
        p->cores->emit(tile, n_rows, NULL, &all, 1, p->y, 0, p->n, 1);
    }
}

/* y (m, n) += ROUND columns of a times as many rows of b. */
BNN_INLINE void add_rows(const struct product *p, const float *a, const float *b, float *y, i64 n,
                         const int terms) {
    for (i64 i = 0; i < p->m; i++, a += p->a_row, y += p->n) {
        float factors[ROUND];
        for (int t = 0; t < terms; t++) factors[t] = a[t * p->a_column];
        BNN_SAME_OR_APART
        for (i64 j = 0; j < n; j++) {
            float sum = y[j];
            for (int t = 0; t < terms; t++) sum += factors[t] * b[t * p->b_row + j];
            y[j] = sum;
        }
    }
}

BNN_INLINE float dot(const float *a, const float *b, i64 n) {
    v8f x, z, sums[4] = {{0}};
    i64 i = 0;
    for (; i + 32 <= n; i += 32)
        for (int part = 0; part < 4; part++) {
            memcpy(&x, a + i + 8 * part, sizeof x);
            memcpy(&z, b + i + 8 * part, sizeof z);
            sums[part] += x * z;
        }
    x = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Stripes begin .. end - 1 of those of each batch. */
BNN_INLINE void few_rows(void *context, i64 begin, i64 end) {
    const struct product *p = context;
    const i64 across = bnn_ceil_div(p->n, STRIPE);
    for (i64 unit = begin; unit < end; unit++) {
        const i64 column = unit % across * STRIPE, n = bnn_min(STRIPE, p->n - column);
        const i64 batch = unit / across;
        const float *a = p->a + batch * p->a_batch;
        const float *b = p->b + batch * p->b_batch + column * p->b_column;
        float *y = p->y + batch * p->m * p->n + column;
        if (p->a_column == 1 && p->b_row == 1 && p->b_column != 1) {
            for (i64 j = 0; j < n; j++)
                for (i64 i = 0; i < p->m; i++)
                    y[i * p->n + j] = dot(a + i * p->a_row, b + j * p->b_column, p->k);
            continue;
        }
        for (i64 i = 0; i < p->m; i++) memset(y + i * p->n, 0, (size_t)n * sizeof *y);
        i64 k = 0;
        if (p->b_column == 1) {
            for (; k + ROUND <= p->k; k += ROUND)
                add_rows(p, a + k * p->a_column, b + k * p->b_row, y, n, ROUND);
            for (; k < p->k; k++) add_rows(p, a + k * p->a_column, b + k * p->b_row, y, n, 1);
        }
        for (; k < p->k; k++)
            for (i64 i = 0; i < p->m; i++)
                for (i64 j = 0; j < n; j++)
                    y[i * p->n + j] += a[i * p->a_row + k * p->a_column] *
                                       b[k * p->b_row + j * p->b_column];
    }
}
BNN_BOTH(few_rows)

/* y (batches, m, n) = a (m, k) times b (k, n) of each batch. `strides`: elements of a from one
   batch, row and column to the next, then those of b. */
BNN_EXPORT void bnn_gemm_f32f32f32(const float *a, const float *b, float *y, const i64 *strides,
                                   i64 batches, i64 m, i64 n, i64 k) {
    struct product p = {bnn_best_real_cores(), a, b, y, m, n, k, strides[0], strides[1],
                        strides[2], strides[3], strides[4], strides[5]};
    if (m < FEW) {
        const i64 products = bnn_max(1, m * bnn_min(n, STRIPE) * k);
        bnn_parallel(batches * bnn_ceil_div(n, STRIPE), bnn_max(1, CHUNK / 8 / products),
                     BNN_PICK(few_rows), &p);
        return;
    }
    const i64 products = bnn_min(m, ROWS) * PANEL * bnn_max(k, 1);
    bnn_parallel(batches * bnn_ceil_div(m, ROWS) * bnn_ceil_div(n, PANEL),
                 bnn_max(1, CHUNK / products), add_tiles, &p);
}
