/* Products of real matrices of any strides: y = a b.

   A panel has some terms of b for 48 columns side by side; the sums of a tile of rows and columns are
   complete before the next one. Both lie on the stack: their size does not depend on that of the
   matrices. Whole vectors of short rows are read where they lie in b, and summed up where they
   belong in y. Where y has few rows, b is read where it lies as well.

   One of the matrices may be images, bytes that are normalised as they are read, and b may be halves,
   which are widened: a piece of them at a time lies on the stack as well, and then all goes on as of
   floats, to the same bits.

   Each sum is taken in one order, that of the terms, whatever the number of threads: 128 of them at a
   time, or of few rows all, in 32 lanes if they lie side by side in both matrices. */
#include "bnn_real.h"

enum {
    FEW = 12,    /* rows from which on a panel is worth it */
    ROWS = 128,  /* of a tile */
    PART = 128,  /* terms of a panel */
    STRIPE = 256, /* columns of few rows, whose sums stay in the first cache */
    SHORT = 256,  /* floats of a row, of which a panel lies in the first cache as well */
    ROUND = 8,    /* terms that are added to them at a time */
    CHUNK = 1 << 18, /* multiplications that are worth handing out */
};

/* A matrix of floats, or of halves; or one of images, whose elements are counted from `first` on. The
   others are NULL. */
typedef struct {
    const float *data;
    const bnn_half *halves;
    bnn_images images;
    i64 first;
} matrix;

struct product {
    const bnn_real_cores *cores;
    matrix a, b;
    float *y;
    i64 m, n, k;
    i64 a_batch, a_row, a_column; /* elements from one to the next */
    i64 b_batch, b_row, b_column;
};

/* n elements of a matrix that lie side by side: where they lie, or as floats in `room`. Loops of few
   rows are compiled for floats alone, and for any. */
BNN_INLINE const float *floats_at(const matrix *x, i64 i, i64 n, float *room, const int any) {
    if (!any || x->data) return x->data + i;
    if (x->halves) bnn_decode_halves(x->halves + i, room, n);
    else bnn_normalize_at(&x->images, x->first + i, n, room);
    return room;
}

static void fill_panel(const struct product *p, i64 b, i64 n_terms, i64 n_lanes, float *panel) {
    const bnn_floats from = p->b.halves ? bnn_plain(p->b.halves + b, 1)
                                        : bnn_plain(p->b.data ? p->b.data + b : NULL, 0);
    const int clear = n_lanes < bnn_min(PANEL, bnn_round_up(n_lanes, 16));
    if (p->b.images.x) {
        for (i64 i = 0; i < n_terms; i++, panel += PANEL) {
            if (clear) memset(panel, 0, PANEL * sizeof *panel);
            floats_at(&p->b, b + i * p->b_row, n_lanes, panel, 1);
        }
    } else if (p->b_column == 1) {
        const bnn_stretch all = {0, n_lanes, 0};
        p->cores->take(from, p->b_row, n_terms, 1, &all, 1, clear, panel, PANEL);
    } else if (p->b_row == 1) {
        p->cores->turn(from, p->b_column, n_terms, n_lanes, panel);
    } else {
        float one;
        memset(panel, 0, (size_t)(n_terms * PANEL) * sizeof *panel);
        for (i64 i = 0; i < n_terms; i++)
            for (i64 lane = 0; lane < n_lanes; lane++)
                panel[i * PANEL + lane] =
                    *floats_at(&p->b, b + i * p->b_row + lane * p->b_column, 1, &one, 1);
    }
}

/* Rows of some terms of a, from element `a` on, where they lie; images in `room`, (ROWS, PART) or
   turned, for `offsets` to say where each row begins. */
static bnn_strips rows_of(const struct product *p, i64 a, i64 n_rows, i64 n_terms, float *room,
                          i64 *offsets) {
    const int is_turned = p->a_column != 1;
    bnn_strips strips = {.start = p->a.data, .offsets = offsets, .step = p->a_column,
                         .n_terms = n_terms, .n_runs = 1, .n_groups = 1};
    const i64 row = !p->a.images.x ? p->a_row : is_turned ? 1 : PART;
    for (i64 i = 0; i < n_rows; i++) offsets[i] = i * row;
    if (!p->a.images.x) {
        strips.start += a;
        return strips;
    }
    strips.start = room;
    strips.step = is_turned ? ROWS : 1;
    for (i64 i = 0; i < (is_turned ? n_terms : n_rows); i++)
        if (is_turned) floats_at(&p->a, a + i * p->a_column, n_rows, room + i * ROWS, 1);
        else floats_at(&p->a, a + i * p->a_row, n_terms, room + i * PART, 1);
    return strips;
}

/* Tiles begin .. end - 1 of those of each batch, row by row of them. */
static void add_tiles(void *context, i64 begin, i64 end, int thread) {
    const struct product *p = context;
    const i64 across = bnn_ceil_div(p->n, PANEL), down = bnn_ceil_div(p->m, ROWS);
    _Alignas(64) float panel[PART * PANEL], tile[ROWS * PANEL], room[ROWS * PART];
    i64 offsets[ROWS];
    (void)thread;
    for (i64 unit = begin; unit < end; unit++) {
        const i64 column = unit % across * PANEL, row = unit / across % down * ROWS;
        const i64 batch = unit / across / down;
        const i64 n_lanes = bnn_min(PANEL, p->n - column), n_rows = bnn_min(ROWS, p->m - row);
        const i64 a = batch * p->a_batch + row * p->a_row;
        const i64 b = batch * p->b_batch + column * p->b_column;
        float *y = p->y + (batch * p->m + row) * p->n + column;
        const int is_whole = p->k > 0 && n_lanes % LANES16 == 0;
        const int is_direct = is_whole && (p->k <= PART || p->n <= SHORT);
        const int lies = is_whole && p->b_column == 1 && p->b_row <= SHORT && p->b.data;
        if (p->k == 0) memset(tile, 0, sizeof tile);
        for (i64 k = 0; k < p->k; k += PART) {
            const i64 n_terms = bnn_min(PART, p->k - k), at = b + k * p->b_row;
            const bnn_strips strips =
                rows_of(p, a + k * p->a_column, n_rows, n_terms, room, offsets);
            if (!lies) fill_panel(p, at, n_terms, n_lanes, panel);
            p->cores->multiply(&strips, n_rows, lies ? p->b.data + at : panel,
                               lies ? p->b_row : PANEL, n_lanes, is_direct ? y : tile,
                               is_direct ? p->n : PANEL, k > 0);
        }
        const bnn_stretch all = {0, n_lanes, 0};
        if (!is_direct) p->cores->emit(tile, n_rows, NULL, &all, 1, y, 0, p->n, 1);
    }
}

/* y (m, n) += `terms` columns of a times as many rows of b; in `room` those of b that are no floats. */
BNN_INLINE void add_rows(const struct product *p, i64 a, i64 b, float *y, i64 n, float *room,
                         const int terms, const int any) {
    const int copies = any && !p->b.data;
    const float *rows = copies ? room : p->b.data + b;
    const i64 b_row = copies ? STRIPE : p->b_row;
    for (int t = 0; t < terms && copies; t++)
        floats_at(&p->b, b + t * p->b_row, n, room + t * STRIPE, 1);
    for (i64 i = 0; i < p->m; i++, a += p->a_row, y += p->n) {
        float factors[ROUND], one;
        for (int t = 0; t < terms; t++)
            factors[t] = *floats_at(&p->a, a + t * p->a_column, 1, &one, any);
        BNN_SAME_OR_APART
        for (i64 j = 0; j < n; j++) {
            float sum = y[j];
            for (int t = 0; t < terms; t++) sum += factors[t] * rows[t * b_row + j];
            y[j] = sum;
        }
    }
}

/* Products of n elements that lie side by side in a and b, a multiple of 32, added to 32 lanes. */
BNN_INLINE void add_lanes(const matrix *x, i64 a, const float *b, i64 n, v8f *sums, const int any) {
    v8f left, right, lanes[4];
    float room[32];
    memcpy(lanes, sums, sizeof lanes);
    for (i64 i = 0; i < n; i += 32) {
        const float *piece = floats_at(x, a + i, 32, room, any);
        for (int part = 0; part < 4; part++) {
            memcpy(&left, piece + 8 * part, sizeof left);
            memcpy(&right, b + i + 8 * part, sizeof right);
            lanes[part] += left * right;
        }
    }
    memcpy(sums, lanes, sizeof lanes);
}

/* Their sum, and then of the n products that are left, fewer than 32. */
BNN_INLINE float sum_of_lanes(const v8f *sums, const matrix *x, i64 a, const float *b, i64 n,
                              const int any) {
    const v8f all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float room[32], sum = ((all[0] + all[4]) + (all[1] + all[5])) +
                          ((all[2] + all[6]) + (all[3] + all[7]));
    const float *rest = floats_at(x, a, n, room, any);
    for (i64 i = 0; i < n; i++) sum += rest[i] * b[i];
    return sum;
}

/* A column of the product, of that of b from element `b` on: it is read where it lies, or a piece at a
   time as floats in `room`. */
BNN_INLINE void dot_column(const struct product *p, i64 a, i64 b, float *y, float *room,
                           const int any) {
    const i64 whole = p->k / 32 * 32, size = any ? ROUND * STRIPE : bnn_max(whole, 1);
    v8f sums[FEW][4];
    memset(sums, 0, (size_t)p->m * sizeof *sums);
    for (i64 k = 0; k < whole; k += size) {
        const i64 n = bnn_min(size, whole - k);
        const float *piece = floats_at(&p->b, b + k, n, room, any);
        for (i64 i = 0; i < p->m; i++)
            add_lanes(&p->a, a + i * p->a_row + k, piece, n, sums[i], any);
    }
    const float *rest = floats_at(&p->b, b + whole, p->k - whole, room, any);
    for (i64 i = 0; i < p->m; i++)
        y[i * p->n] = sum_of_lanes(sums[i], &p->a, a + i * p->a_row + whole, rest, p->k - whole, any);
}

/* Stripes begin .. end - 1 of those of each batch. */
BNN_INLINE void some_rows(const struct product *p, i64 begin, i64 end, const int any) {
    const i64 across = bnn_ceil_div(p->n, STRIPE);
    for (i64 unit = begin; unit < end; unit++) {
        const i64 column = unit % across * STRIPE, n = bnn_min(STRIPE, p->n - column);
        const i64 batch = unit / across;
        const i64 a = batch * p->a_batch, b = batch * p->b_batch + column * p->b_column;
        float room[ROUND * STRIPE], left, right;
        float *y = p->y + batch * p->m * p->n + column;
        if (p->a_column == 1 && p->b_row == 1 && p->b_column != 1) {
            for (i64 j = 0; j < n; j++) dot_column(p, a, b + j * p->b_column, y + j, room, any);
            continue;
        }
        for (i64 i = 0; i < p->m; i++) memset(y + i * p->n, 0, (size_t)n * sizeof *y);
        i64 k = 0;
        if (p->b_column == 1) {
            for (; k + ROUND <= p->k; k += ROUND)
                add_rows(p, a + k * p->a_column, b + k * p->b_row, y, n, room, ROUND, any);
            for (; k < p->k; k++)
                add_rows(p, a + k * p->a_column, b + k * p->b_row, y, n, room, 1, any);
        }
        for (; k < p->k; k++)
            for (i64 i = 0; i < p->m; i++) {
                const i64 at = b + k * p->b_row;
                const float factor =
                    *floats_at(&p->a, a + i * p->a_row + k * p->a_column, 1, &left, any);
                for (i64 j = 0; j < n; j++)
                    y[i * p->n + j] +=
                        factor * *floats_at(&p->b, at + j * p->b_column, 1, &right, any);
            }
    }
}
BNN_INLINE void few_rows(void *context, i64 begin, i64 end) { some_rows(context, begin, end, 0); }
BNN_BOTH(few_rows)
BNN_INLINE void few_rows_of_any(void *context, i64 begin, i64 end) {
    some_rows(context, begin, end, 1);
}
BNN_BOTH(few_rows_of_any)

static matrix plain(const void *data, i64 is_half) {
    return is_half ? (matrix){.halves = data} : (matrix){.data = data};
}

static void run(struct product *p, const i64 *strides, i64 batches) {
    p->cores = bnn_best_real_cores();
    p->a_batch = strides[0], p->a_row = strides[1], p->a_column = strides[2];
    p->b_batch = strides[3], p->b_row = strides[4], p->b_column = strides[5];
    const i64 m = p->m, n = p->n, k = p->k;
    if (m < FEW) {
        const i64 products = bnn_max(1, m * bnn_min(n, STRIPE) * k);
        bnn_parallel(batches * bnn_ceil_div(n, STRIPE), bnn_max(1, CHUNK / 8 / products),
                     p->a.data && p->b.data ? BNN_PICK(few_rows) : BNN_PICK(few_rows_of_any),
                     p);
        return;
    }
    const i64 products = bnn_min(m, ROWS) * PANEL * bnn_max(k, 1);
    bnn_parallel(batches * bnn_ceil_div(m, ROWS) * bnn_ceil_div(n, PANEL),
                 bnn_max(1, CHUNK / products), add_tiles, p);
}

/* y (batches, m, n) = a (m, k) times b (k, n) of each batch, b in floats or halves. `strides`: elements
   of a from one batch, row and column to the next, then those of b. */
BNN_EXPORT void bnn_gemm_f32f32f32(const float *a, const void *b, i64 b_is_half, float *y,
                                   const i64 *strides, i64 batches, i64 m, i64 n, i64 k) {
    struct product p = {.a = {.data = a}, .b = plain(b, b_is_half), .y = y, .m = m, .n = n, .k = k};
    run(&p, strides, batches);
}

/* The same of images x (.., channels, plane) in the place of the matrix that is NULL, whose first
   element is their element `first`. Rows or columns of a are theirs, rows of b. */
BNN_EXPORT void bnn_gemm_u8f32f32(const float *a, const void *b, i64 b_is_half, float *y,
                                  const i64 *strides, i64 batches, i64 m, i64 n, i64 k,
                                  const uint8_t *x, i64 first, const float *factor,
                                  const float *shift, i64 channels, i64 plane) {
    const matrix images = {.images = {x, factor, shift, channels, plane}, .first = first};
    struct product p = {.a = a ? (matrix){.data = a} : images,
                        .b = b ? plain(b, b_is_half) : images, .y = y, .m = m, .n = n, .k = k};
    run(&p, strides, batches);
}
