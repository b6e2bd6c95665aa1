/* Input gradient of a binary convolution, w kept as bits, by signed sums over the filters.

   Lanes are output positions, rows are pairs of channel and tap: a tile of 64 positions sums
   dy * w over the filters for every row, and each row is then added where its tap lies, in a window
   of some rows of dx; what falls on the padding is dropped. The window moves down with the bands of
   positions, and the rows that it leaves are rounded, once, to dx. See bnn_gemm_grad_b1.c for the
   method. Of a dy in int8 the tiles are sums in int16, the window holds integers until its rows are
   multiplied by the unit.

   dx may be written over dy: some samples of dy are copied before theirs of dx are written. Where
   dx is larger it goes from the last samples to the first, so that it never meets what is still to
   be read. */
#include "bnn_depthwise.h"

typedef struct {
    const bnn_conv *g;
    const bnn_cores *cores;
    bnn_map dy;
    const uint8_t *w;
    void *dx;
    i64 dx_type;
    uint64_t *words;  /* (filters / 48, n_words): bits of 48 filters for each row */
    i64 n_words;      /* rows of a group, in whole bytes of weights */
    i64 window_rows;  /* rows of dx that a band touches, and those that its last stride skips */
    bnn_scratch *per_thread;
    i64 group;
    i64 sample, n_samples;  /* the present ones */
    int is_first;           /* whether they are the first to be worked on */
    uint8_t *copy;          /* of their dy, if dx is written over it */
} gradient;

/* Of a dy of integers rows are int8, tables and sums int16. */
typedef struct {
    void *rows, *tables, *sums;
    float *window;
    bnn_piece *pieces;
} tile;

/* Some samples and channels of dx, and of them a band of output rows. */
typedef struct {
    i64 sample, n_samples, channel, n_channels; /* the channel within the group */
    i64 row, n_rows;
} block;

static void transpose_filters(void *context, i64 begin, i64 end, int thread) {
    (void)thread;
    const gradient *d = context;
    i64 row_bytes = d->n_words / 8, filters = d->g->m / d->g->group;
    for (i64 b = begin; b < end; b++)
        bnn_transpose_words(d->w + (d->group * filters + b * TERMS) * row_bytes, row_bytes,
                            bnn_min(TERMS, filters - b * TERMS), row_bytes,
                            d->words + b * d->n_words);
}

/* dy of a sample: the number of its first element in the last argument. */
static i64 sample_at(const gradient *d, i64 sample, bnn_map *dy) {
    i64 size = d->g->m * d->g->ho * d->g->wo;
    *dy = d->dy;
    if (d->copy) dy->data = d->copy;
    return (d->copy ? sample - d->sample : sample) * size;
}

/* Whether lanes can be read where they lie. */
static int is_in_strips(const bnn_map *dy, i64 n_lanes) {
    return (dy->type == BNN_F32 && n_lanes % STRIP == 0) ||
           (dy->type == BNN_I8 && n_lanes % STRIP8 == 0);
}

/* Filters of a position, a row of lanes each. */
static void copy_lanes(const bnn_map *dy, i64 first, i64 plane, i64 n, i64 run, i64 lane, tile t) {
    for (i64 m = 0; m < n; m++) {
        i64 to = m * LANES + lane;
        if (bnn_is_whole(dy))
            bnn_to_integers(dy, first + m * plane, (int8_t *)t.rows + to, run);
        else
            bnn_to_floats(dy, first + m * plane, (float *)t.rows + to, run);
    }
}

/* dy of some filters at the band's positions from `begin` on: rows `pitch` apart. */
static const void *take_rows(const gradient *d, const block *k, i64 begin, i64 n_lanes, i64 filter,
                             i64 n, tile t, i64 *pitch) {
    i64 plane = d->g->ho * d->g->wo, per_sample = k->n_rows * d->g->wo, run = 0;
    *pitch = LANES;
    for (i64 lane = 0; lane < n_lanes; lane += run) {
        i64 s = (begin + lane) / per_sample, at = (begin + lane) % per_sample;
        bnn_map dy;
        i64 first = sample_at(d, k->sample + s, &dy) + filter * plane + k->row * d->g->wo + at;
        run = bnn_min(per_sample - at, n_lanes - lane);
        if (run == n_lanes && is_in_strips(&dy, n_lanes)) {
            *pitch = plane;
            return (const uint8_t *)dy.data + first * bnn_size_of(dy.type);
        }
        copy_lanes(&dy, first, plane, n, run, lane, t);
    }
    return t.rows;
}

/* Positions o of a run, first .. first + n - 1, whose tap lies inside: begin and end. */
static inline void clip(i64 first, i64 n, i64 stride, i64 offset, i64 size, i64 *begin, i64 *end) {
    *begin = bnn_max(first, offset < 0 ? bnn_ceil_div(-offset, stride) : 0);
    *end = offset >= size ? *begin : bnn_min(first + n, (size - 1 - offset) / stride + 1);
}

/* What the sums (taps, 64) of a run add to row y of the window at tap row ky: what lies inside. */
static bnn_piece *list_row(const gradient *d, const bnn_run *run, i64 y, i64 ky, bnn_piece *piece) {
    const bnn_conv *g = d->g;
    i64 row = (run->sample * d->window_rows + y) * g->w, begin, end;
    for (i64 kx = 0; kx < g->kw; kx++) {
        i64 offset = kx * g->dw - g->pl, from = (ky * g->kw + kx) * LANES + run->lane - run->col;
        clip(run->col, run->n, g->sw, offset, g->w, &begin, &end);
        i64 col = begin * g->sw + offset;
        if (begin < end)
            *piece++ = (bnn_piece){from + begin, row + col, (int32_t)(end - begin), (int32_t)col};
    }
    return piece;
}

/* What a channel's rows of sums add to its window, by rows of the window. */
static i64 list_pieces(const gradient *d, const block *k, const bnn_run *runs, i64 n_runs,
                       bnn_piece *pieces) {
    const bnn_conv *g = d->g;
    i64 top = k->row * g->sh - g->pt, n = 0;
    bnn_piece *piece = pieces;
    for (i64 i = 0; i < n_runs; i += n) {
        for (n = 1; i + n < n_runs && runs[i + n].sample == runs[i].sample;) n++;
        i64 first = runs[i].row * g->sh, last = runs[i + n - 1].row * g->sh + (g->kh - 1) * g->dh;
        for (i64 y = bnn_max(first, -top); y <= bnn_min(last, g->h - 1 - top); y++)
            for (i64 ky = 0; ky < g->kh; ky++) {
                i64 above = y - ky * g->dh - first;
                if (above >= 0 && above % g->sh == 0 && above / g->sh < n)
                    piece = list_row(d, runs + i + above / g->sh, y, ky, piece);
            }
    }
    return piece - pieces;
}

/* Add the sums of a tile to the window, and begin again. */
static void add_sums(const gradient *d, const block *k, i64 n_pieces, tile t) {
    const bnn_conv *g = d->g;
    i64 row = g->kh * g->kw * LANES, window = g->samples * d->window_rows * g->w;
    const bnn_pieces p = {t.pieces, n_pieces, g->sw, g->w, k->n_channels, row, window};
    int is_whole = bnn_is_whole(&d->dy);
    if (is_whole)
        d->cores->int8.scatter(&p, t.sums, t.window);
    else
        d->cores->scatter(&p, t.sums, t.window);
    memset(t.sums, 0, (size_t)(k->n_channels * row) * (is_whole ? sizeof(int16_t) : sizeof(float)));
}

/* One tile of positions: sum over the filters, in portions: of integers as many as fit int16, of
   floats as many as keep float32's accuracy, a multiple of TERMS. */
static void add_tile(const gradient *d, const block *k, i64 begin, i64 n_lanes, tile t) {
    const bnn_conv *g = d->g;
    i64 taps = g->kh * g->kw, filters = g->m / g->group, n_rows = k->n_channels * taps, pitch;
    i64 largest = 0;
    const i64 here = 0;
    bnn_run runs[LANES];
    i64 n_runs = bnn_runs(begin, begin + n_lanes, k->n_rows, g->wo, runs);
    i64 n_pieces = list_pieces(d, k, runs, n_runs, t.pieces);
    for (i64 m = 0; m < filters; m += TERMS) {
        const uint8_t *words = (uint8_t *)(d->words + m / TERMS * d->n_words + k->channel * taps);
        i64 n = bnn_min(TERMS, filters - m);
        const void *rows = take_rows(d, k, begin, n_lanes, d->group * filters + m, n, t, &pitch);
        if (bnn_is_whole(&d->dy)) {
            i64 more = d->cores->int8.bound(rows, pitch, n, n_lanes);
            if (largest + more > MOST) {
                add_sums(d, k, n_pieces, t);
                largest = 0;
            }
            largest += more;
            d->cores->int8.sum(rows, pitch, n, bnn_round_up(n_lanes, STRIP8), words, n_rows,
                               sizeof *d->words, &here, 1, t.tables, t.sums);
        } else {
            if (m > 0 && m % g->filters == 0) add_sums(d, k, n_pieces, t);
            d->cores->sum(rows, pitch, n, bnn_round_up(n_lanes, STRIP), words, n_rows,
                          sizeof *d->words, &here, 1, t.tables, t.sums);
        }
    }
    add_sums(d, k, n_pieces, t);
}

static void add_band(const gradient *d, const block *k, tile t) {
    i64 n_positions = k->n_samples * k->n_rows * d->g->wo;
    i64 n_tiles = bnn_ceil_div(n_positions, LANES);
    i64 width = bnn_round_up(bnn_ceil_div(n_positions, n_tiles), STRIP);
    for (i64 p = 0; p < n_positions; p += width)
        add_tile(d, k, p, bnn_min(width, n_positions - p), t);
}

/* Write the rows that no later band touches to dx, and move the window down behind them. */
static void finish_rows(const gradient *d, const block *k, tile t) {
    const bnn_conv *g = d->g;
    i64 top = k->row * g->sh - g->pt, is_last = k->row + k->n_rows == g->ho;
    i64 done = is_last ? d->window_rows : k->n_rows * g->sh, kept = d->window_rows - done;
    i64 begin = bnn_max(top, 0), end = bnn_min(top + done, g->h);
    float *window = t.window;
    for (i64 c = 0; c < k->n_channels; c++) {
        i64 channel = d->group * (g->c / g->group) + k->channel + c;
        for (i64 s = 0; s < g->samples; s++, window += d->window_rows * g->w) {
            float *done_rows = window + (begin - top) * g->w;
            if (s < k->n_samples && begin < end) {
                bnn_scale(&d->dy, done_rows, (end - begin) * g->w);
                bnn_from_floats(done_rows, d->dx, d->dx_type,
                                (((k->sample + s) * g->c + channel) * g->h + begin) * g->w,
                                (end - begin) * g->w);
            }
            memmove(window, window + done * g->w, (size_t)(kept * g->w) * sizeof(float));
            memset(window + kept * g->w, 0, (size_t)(done * g->w) * sizeof(float));
        }
    }
}

/* Rows of a tile touch so many rows of the output at most. */
static i64 pieces_bytes(const bnn_conv *g) {
    i64 n_runs = bnn_min(LANES, LANES / g->wo + 2);
    return g->kh * g->kw * n_runs * (i64)sizeof(bnn_piece);
}

static i64 window_bytes(const gradient *d) {
    const bnn_conv *g = d->g;
    return g->channels * g->samples * d->window_rows * g->w * (i64)sizeof(float);
}

static tile take_tile(const gradient *d, bnn_scratch scratch) {
    const bnn_conv *g = d->g;
    i64 row = LANES * sizeof(float);
    tile t = {.rows = bnn_take(&scratch, TERMS * row),
              .tables = bnn_take(&scratch, BNN_TABLES_BYTES),
              .sums = bnn_take(&scratch, g->channels * g->kh * g->kw * row),
              .window = bnn_take(&scratch, window_bytes(d)),
              .pieces = bnn_take(&scratch, pieces_bytes(g))};
    return t;
}

static i64 share_bytes(const gradient *d) {
    const bnn_conv *g = d->g;
    i64 row = LANES * sizeof(float);
    return BNN_TABLES_BYTES + (TERMS + g->channels * g->kh * g->kw) * row +
           bnn_round_up(window_bytes(d), 64) + bnn_round_up(pieces_bytes(g), 64);
}

/* A unit: some channels of some samples, all positions, in order. */
static void add_units(void *context, i64 begin, i64 end, int thread) {
    const gradient *d = context;
    const bnn_conv *g = d->g;
    i64 channels = g->c / g->group, n_blocks = bnn_ceil_div(channels, g->channels);
    tile t = take_tile(d, d->per_thread[thread]);
    memset(t.rows, 0, TERMS * LANES * sizeof(float)); /* lanes that fill up the last vector */
    memset(t.sums, 0, (size_t)(g->channels * g->kh * g->kw * LANES) * sizeof(float));
    memset(t.window, 0, (size_t)window_bytes(d));
    for (i64 unit = begin; unit < end; unit++) {
        block k = {.sample = d->sample + unit / n_blocks * g->samples,
                   .channel = unit % n_blocks * g->channels};
        k.n_samples = bnn_min(g->samples, d->sample + d->n_samples - k.sample);
        k.n_channels = bnn_min(g->channels, channels - k.channel);
        for (k.row = 0; k.row < g->ho; k.row += g->rows) {
            k.n_rows = bnn_min(g->rows, g->ho - k.row);
            add_band(d, &k, t);
            finish_rows(d, &k, t);
        }
    }
}

static i64 dy_bytes(const gradient *d, i64 samples) {
    return samples * d->g->m * d->g->ho * d->g->wo * bnn_size_of(d->dy.type);
}

static void copy_samples(void *context, i64 begin, i64 end, int thread) {
    const gradient *d = context;
    (void)thread;
    memcpy(d->copy + dy_bytes(d, begin),
           (const uint8_t *)d->dy.data + dy_bytes(d, d->sample + begin),
           (size_t)dy_bytes(d, end - begin));
}

/* The samples from d->sample on. */
static void add_samples(gradient *d) {
    const bnn_conv *g = d->g;
    i64 n_blocks = bnn_ceil_div(g->c / g->group, g->channels);
    if (d->copy) bnn_parallel(d->n_samples, 1, copy_samples, d);
    for (d->group = 0; d->group < g->group; d->group++) {
        if (d->is_first || g->group > 1)
            bnn_parallel(bnn_ceil_div(g->m / g->group, TERMS), 1, transpose_filters, d);
        bnn_parallel(bnn_ceil_div(d->n_samples, g->samples) * n_blocks, 1, add_units, d);
    }
    d->is_first = 0;
}

/* dx (N, C, H, W) from dy (N, M, Ho, Wo) and w (M, C / group, kh, kw), w packed; dy and dx: float32
   or float16, dy also powers of two or integers with their unit; dx may begin where dy does, but
   where that is packed.
   Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_conv_input_grad_b1(const bnn_conv *g, const void *dy, const float *dy_unit,
                                      const uint8_t *w, void *dx, i64 dy_type, i64 dx_type,
                                      uint8_t *memory, i64 n_bytes) {
    if (is_depthwise(g))
        return bnn_conv_depthwise_input_grad_b1(g, dy, dy_unit, w, dx, dy_type, dx_type,
                                                memory, n_bytes);
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 channels = g->c / g->group, n_sets = bnn_ceil_div(g->m / g->group, TERMS);
    gradient d = {.g = g, .cores = bnn_best_cores(), .w = w, .dx = dx,
                  .dy = bnn_map_of(dy, dy_type, dy_unit, g->m * g->ho * g->wo), .dx_type = dx_type,
                  .n_words = bnn_round_up(channels * g->kh * g->kw, 8),
                  .is_first = 1, .window_rows = g->rows * g->sh + (g->kh - 1) * g->dh, .per_thread = per_thread};
    d.words = bnn_take(&scratch, n_sets * d.n_words * 8);
    if (dx == dy) d.copy = bnn_take(&scratch, dy_bytes(&d, g->staged));
    if (!bnn_share(&scratch, share_bytes(&d), per_thread)) return 0;
    i64 step = d.copy ? g->staged : g->n, n_steps = bnn_ceil_div(g->n, step);
    i64 dx_bytes = g->c * g->h * g->w * bnn_size_of(dx_type), is_larger = dx_bytes > dy_bytes(&d, 1);
    for (i64 i = 0; i < n_steps; i++) {
        d.sample = (is_larger ? n_steps - 1 - i : i) * step;
        d.n_samples = bnn_min(step, g->n - d.sample);
        add_samples(&d);
    }
    return 1;
}
