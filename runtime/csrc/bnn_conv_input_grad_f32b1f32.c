/* Input gradient of a binary convolution, w kept as bits, by signed sums over the filters.

   Lanes are output positions, rows are pairs of channel and tap: a tile of 64 positions sums
   dy * w over the filters for every row, and each row is then added to dx where its tap lies.
   What falls on the padding is dropped. See bnn_gemm_f32b1f32.c for the method. */
#include "bnn_products.h"

typedef struct {
    const bnn_conv *g;
    const bnn_cores *cores;
    const float *dy;
    const uint8_t *w;
    float *dx;
    uint32_t *words; /* (filters / 32, n_words): bits of 32 filters for each row */
    i64 n_words;     /* rows of a group, in whole bytes of weights */
    bnn_scratch *per_thread;
    i64 group;
} gradient;

typedef struct {
    float *rows, *tables, *sums;
    bnn_piece *pieces;
} tile;

static void transpose_filters(void *context, i64 begin, i64 end, int thread) {
    (void)thread;
    const gradient *d = context;
    i64 row_bytes = d->n_words / 8, filters = d->g->m / d->g->group;
    for (i64 b = begin; b < end; b++)
        bnn_transpose_words(d->w + (d->group * filters + b * TERMS) * row_bytes, row_bytes,
                            bnn_min(TERMS, filters - b * TERMS), row_bytes,
                            d->words + b * d->n_words);
}

/* Tables of dy at the positions from `begin` on of the samples from `sample` on, some filters. */
static void build_tables(const gradient *d, i64 sample, i64 begin, i64 n_lanes, i64 filter, i64 n,
                         tile t) {
    i64 plane = d->g->ho * d->g->wo, n_groups = bnn_ceil_div(n, 4);
    float *rows = t.rows;
    if (bnn_in_place(d->cores, n, n_lanes) && begin % plane + n_lanes <= plane) {
        const float *dy = d->dy + ((sample + begin / plane) * d->g->m + filter) * plane;
        d->cores->build(dy + begin % plane, plane, n_groups, n_lanes, t.tables);
        return;
    }
    for (i64 m = 0; m < n; m++) {
        for (i64 lane = 0; lane < n_lanes;) {
            i64 s = (begin + lane) / plane, at = (begin + lane) % plane;
            i64 run = bnn_min(plane - at, n_lanes - lane);
            const float *dy = d->dy + ((sample + s) * d->g->m + filter + m) * plane + at;
            memcpy(rows + m * LANES + lane, dy, (size_t)run * sizeof(float));
            lane += run;
        }
    }
    for (i64 m = n; m < 4 * n_groups; m++) memset(rows + m * LANES, 0, LANES * sizeof(float));
    d->cores->build(rows, LANES, n_groups, bnn_round_up(n_lanes, d->cores->step), t.tables);
}

/* Positions o of a run, first .. first + n - 1, whose tap lies inside: begin and end. */
static inline void clip(i64 first, i64 n, i64 stride, i64 offset, i64 size, i64 *begin, i64 *end) {
    *begin = bnn_max(first, offset < 0 ? bnn_ceil_div(-offset, stride) : 0);
    *end = offset >= size ? *begin : bnn_min(first + n, (size - 1 - offset) / stride + 1);
}

/* What a channel's rows of sums (taps, 64) add to its plane: the parts of `runs` that lie inside. */
static i64 list_pieces(const bnn_conv *g, const bnn_run *runs, i64 n_runs, bnn_piece *pieces) {
    i64 count = 0;
    for (i64 ky = 0, from = 0; ky < g->kh; ky++) {
        for (i64 kx = 0; kx < g->kw; kx++, from += LANES) {
            i64 offset = kx * g->dw - g->pl;
            for (i64 i = 0; i < n_runs; i++) {
                i64 y = runs[i].row * g->sh + ky * g->dh - g->pt, begin, end;
                if (y < 0 || y >= g->h) continue;
                clip(runs[i].col, runs[i].n, g->sw, offset, g->w, &begin, &end);
                if (begin >= end) continue;
                i64 plane = runs[i].sample * g->c * g->h * g->w;
                pieces[count++] = (bnn_piece){from + runs[i].lane + begin - runs[i].col,
                                              plane + y * g->w + begin * g->sw + offset,
                                              end - begin};
            }
        }
    }
    return count;
}

/* One tile of positions: sum over the filters, in portions that keep float32's accuracy. */
static void add_tile(const gradient *d, i64 sample, i64 begin, i64 n_lanes, i64 channel,
                     i64 n_channels, tile t) {
    const bnn_conv *g = d->g;
    i64 taps = g->kh * g->kw, filters = g->m / g->group, wide = bnn_round_up(n_lanes, d->cores->step);
    const i64 here = 0;
    bnn_run runs[LANES];
    i64 n_runs = bnn_runs(begin, begin + n_lanes, g->ho, g->wo, runs);
    i64 n_pieces = list_pieces(g, runs, n_runs, t.pieces);
    i64 plane = g->h * g->w, dx_channel = d->group * (g->c / g->group) + channel;
    float *dx = d->dx + (sample * g->c + dx_channel) * plane;
    for (i64 first = 0; first < filters; first += g->filters) {
        i64 last = bnn_min(first + g->filters, filters);
        memset(t.sums, 0, (size_t)(n_channels * taps * LANES) * sizeof(float));
        for (i64 m = first; m < last; m += TERMS) {
            i64 n = bnn_min(TERMS, last - m), n_groups = bnn_ceil_div(n, 4);
            build_tables(d, sample, begin, n_lanes, d->group * filters + m, n, t);
            d->cores->add((const uint8_t *)(d->words + m / TERMS * d->n_words + channel * taps),
                          n_channels * taps, 4, &here, 1, n_groups, wide, t.tables, t.sums);
        }
        for (i64 c = 0; c < n_channels; c++)
            d->cores->scatter(t.sums + c * taps * LANES, t.pieces, n_pieces, g->sw, dx + c * plane);
    }
}

/* Rows of a tile touch so many rows of the output at most. */
static i64 pieces_bytes(const bnn_conv *g) {
    i64 n_runs = bnn_min(LANES, LANES / g->wo + 2);
    return g->kh * g->kw * n_runs * (i64)sizeof(bnn_piece);
}

static tile take_tile(const bnn_conv *g, bnn_scratch scratch) {
    i64 row = LANES * sizeof(float);
    tile t = {.rows = bnn_take(&scratch, TERMS * row),
              .tables = bnn_take(&scratch, TERMS / 4 * TABLE * row),
              .sums = bnn_take(&scratch, g->channels * g->kh * g->kw * row),
              .pieces = bnn_take(&scratch, pieces_bytes(g))};
    return t;
}

static i64 share_bytes(const bnn_conv *g) {
    i64 row = LANES * sizeof(float);
    return (TERMS + TERMS / 4 * TABLE + g->channels * g->kh * g->kw) * row +
           bnn_round_up(pieces_bytes(g), 64);
}

/* A unit: some channels of some samples, all positions, in order. */
static void add_units(void *context, i64 begin, i64 end, int thread) {
    const gradient *d = context;
    const bnn_conv *g = d->g;
    i64 channels = g->c / g->group, n_blocks = bnn_ceil_div(channels, g->channels);
    tile t = take_tile(g, d->per_thread[thread]);
    memset(t.rows, 0, TERMS * LANES * sizeof(float)); /* lanes that fill up the last vector */
    for (i64 unit = begin; unit < end; unit++) {
        i64 sample = unit / n_blocks * g->samples, channel = unit % n_blocks * g->channels;
        i64 samples = bnn_min(g->samples, g->n - sample);
        i64 n_channels = bnn_min(g->channels, channels - channel);
        for (i64 s = 0; s < samples; s++)
            memset(d->dx + ((sample + s) * g->c + d->group * channels + channel) * g->h * g->w, 0,
                   (size_t)(n_channels * g->h * g->w) * sizeof(float));
        i64 n_positions = samples * g->ho * g->wo, n_tiles = bnn_ceil_div(n_positions, LANES);
        i64 width = bnn_round_up(bnn_ceil_div(n_positions, n_tiles), 8);
        for (i64 p = 0; p < n_positions; p += width)
            add_tile(d, sample, p, bnn_min(width, n_positions - p), channel, n_channels, t);
    }
}

/* dx (N, C, H, W) from dy (N, M, Ho, Wo) and w (M, C / group, kh, kw), w packed.
   Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_conv_input_grad_f32b1f32(const bnn_conv *g, const float *dy, const uint8_t *w,
                                            float *dx, uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 channels = g->c / g->group, n_sets = bnn_ceil_div(g->m / g->group, TERMS);
    gradient d = {.g = g, .cores = bnn_best_cores(), .dy = dy, .w = w, .dx = dx,
                  .n_words = bnn_round_up(channels * g->kh * g->kw, 8), .per_thread = per_thread};
    d.words = bnn_take(&scratch, n_sets * d.n_words * 4);
    if (!bnn_share(&scratch, share_bytes(g), per_thread)) return 0;
    i64 n_units = bnn_ceil_div(g->n, g->samples) * bnn_ceil_div(channels, g->channels);
    for (d.group = 0; d.group < g->group; d.group++) {
        bnn_parallel(n_sets, 1, transpose_filters, &d);
        bnn_parallel(n_units, 1, add_units, &d);
    }
    return 1;
}
