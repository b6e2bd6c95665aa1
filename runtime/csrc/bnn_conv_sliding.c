/* Convolution of real numbers and its input gradient where planes are few: of those channels a band
   is copied with its padding, as in bnn_conv_depthwise_f32f32f32.c, and the inner loop reads what a
   tap meets where it lies. No column is gathered for a few rows of factors alone.

   Each sum is that of bnn_conv_f32f32f32.c, to the last bit: by blocks of channels, in the order of
   channels and taps. */
#include "bnn_depthwise.h"

typedef struct {
    const bnn_real_cores *cores;
    bnn_floats x; /* the source, planes of `channels` for each group and sample */
    grid p;
    i64 n, groups, channels, n_taps;
    const i64 *shifts;
    /* The factors: n_rows by channels and taps for each group. */
    const float *a;
    i64 a_group, a_row, a_channel, n_rows;
    const float *bias;
    void *y;
    int y_is_half;
    /* How it is cut. */
    i64 block_rows, block_channels;
    bnn_scratch *per_thread;
} sliding;

typedef struct {
    float *x, *tile;
    i64 *offsets;
} workspace;

static i64 plane_floats(const grid *p) { return p->step_y * p->step_x * p->phase_rows * p->pitch; }

static i64 copy_bytes(const grid *p, i64 channels) {
    return floats_bytes(channels * plane_floats(p) + PANEL);
}

static i64 share_bytes(const grid *p, i64 channels, i64 block_rows) {
    return copy_bytes(p, channels) + floats_bytes(block_rows * PANEL) +
           bnn_round_up(block_rows * 8, 64);
}

/* Where lanes first .. first + n - 1 of a band lie in a plane of the result; between two rows of
   positions are lanes that lie nowhere. */
static i64 places(const grid *p, i64 row, i64 first, i64 n, bnn_stretch *out) {
    i64 count = 0;
    for (i64 i = first / p->pitch; i * p->pitch < first + n; i++) {
        i64 begin = bnn_max(first, i * p->pitch);
        i64 end = bnn_min(first + n, i * p->pitch + p->cols);
        if (begin < end)
            out[count++] = (bnn_stretch){begin - first, end - begin,
                                         (row + i) * p->cols + begin - i * p->pitch};
    }
    return count;
}

/* A block of rows of factors at some lanes of a band. */
static void slide_tile(const sliding *d, i64 group, i64 block, i64 n_rows, i64 lane, i64 n_lanes,
                       workspace w) {
    i64 plane = plane_floats(&d->p);
    const float *a = d->a + group * d->a_group + block * d->a_row;
    for (i64 c = 0; c < d->channels; c += d->block_channels) {
        bnn_strips strips = {.start = a + c * d->a_channel, .offsets = w.offsets, .step = 1,
                             .n_terms = d->n_taps, .run = d->a_channel,
                             .n_runs = bnn_min(d->block_channels, d->channels - c),
                             .n_groups = 1};
        d->cores->slide(&strips, n_rows, w.x + c * plane + lane, plane, d->shifts, n_lanes, w.tile,
                        c > 0);
    }
}

static void slide_band(const sliding *d, i64 sample, i64 group, i64 row, workspace w) {
    const grid *p = &d->p;
    i64 n_rows = bnn_min(p->band_rows, p->rows - row), size = p->height * p->width;
    i64 first_plane = group * d->channels, source = sample * d->groups * d->channels + first_plane;
    for (i64 c = 0; c < d->channels; c++)
        copy_band(d->cores, bnn_from_plane(d->x, first_plane + c), (source + c) * size, p, row,
                  n_rows, w.x + c * plane_floats(p));
    i64 n_positions = (n_rows - 1) * p->pitch + p->cols, result = p->rows * p->cols;
    for (i64 lane = 0; lane < n_positions; lane += PANEL) {
        bnn_stretch stretches[PANEL];
        i64 n_lanes = bnn_min(PANEL, n_positions - lane);
        i64 count = places(p, row, lane, n_lanes, stretches);
        for (i64 block = 0; block < d->n_rows; block += d->block_rows) {
            i64 rows = bnn_min(d->block_rows, d->n_rows - block), first = group * d->n_rows + block;
            bnn_stretch at[PANEL];
            for (i64 s = 0; s < count; s++) {
                at[s] = stretches[s];
                at[s].offset += (sample * d->groups * d->n_rows + first) * result;
            }
            slide_tile(d, group, block, rows, lane, n_lanes, w);
            d->cores->emit(w.tile, rows, d->bias ? d->bias + first : NULL, at, count, d->y,
                           d->y_is_half, result, 1);
        }
    }
}

static void slide_bands(void *context, i64 begin, i64 end, int thread) {
    const sliding *d = context;
    bnn_scratch scratch = d->per_thread[thread];
    workspace w = {.x = bnn_take(&scratch, copy_bytes(&d->p, d->channels)),
                   .tile = bnn_take(&scratch, floats_bytes(d->block_rows * PANEL)),
                   .offsets = bnn_take(&scratch, d->block_rows * 8)};
    i64 n_bands = bnn_ceil_div(d->p.rows, d->p.band_rows);
    for (i64 i = 0; i < d->block_rows; i++) w.offsets[i] = i * d->a_row;
    for (i64 unit = begin; unit < end; unit++)
        slide_band(d, unit / n_bands / d->groups, unit / n_bands % d->groups,
                   unit % n_bands * d->p.band_rows, w);
}

static void run(sliding *d) {
    const grid *p = &d->p;
    i64 products = p->band_rows * p->pitch * d->n_rows * d->channels * d->n_taps;
    bnn_parallel(d->n * d->groups * bnn_ceil_div(p->rows, p->band_rows), bnn_grain_of(products),
                 slide_bands, d);
}

/* As bnn_conv_f32f32f32; g->rows is how many rows of positions make a band. */
BNN_EXPORT int bnn_conv_sliding_f32f32f32(const bnn_conv *g, const void *x, i64 x_is_half,
                                          const float *factor, const float *shift, const float *w,
                                          const float *b, void *y, i64 y_is_half,
                                          uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 n_taps = g->kh * g->kw, channels = g->c / g->group, filters = g->m / g->group;
    const grid p = forward_grid(g);
    i64 *shifts = bnn_take(&scratch, n_taps * 8);
    if (!shifts || !bnn_share(&scratch, share_bytes(&p, channels, g->filters), per_thread))
        return 0;
    forward_offsets(g, &p, shifts);
    sliding d = {.cores = bnn_best_real_cores(), .x = {x, (int)x_is_half, factor, shift},
                 .p = p, .n = g->n, .groups = g->group, .channels = channels,
                 .n_taps = n_taps, .shifts = shifts, .a = w, .a_group = filters * channels * n_taps,
                 .a_row = channels * n_taps, .a_channel = n_taps, .n_rows = filters, .bias = b,
                 .y = y, .y_is_half = (int)y_is_half, .block_rows = g->filters,
                 .block_channels = g->channels, .per_thread = per_thread};
    run(&d);
    return 1;
}

/* As bnn_conv_input_grad_f32f32f32, of a stride of 1. */
BNN_EXPORT int bnn_conv_sliding_input_grad_f32f32f32(const bnn_conv *g, const void *dy,
                                                     i64 dy_is_half, const float *w, void *dx,
                                                     i64 dx_is_half, uint8_t *memory,
                                                     i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 n_taps = g->kh * g->kw, channels = g->c / g->group, filters = g->m / g->group;
    const grid room = largest_phase(g);
    i64 *shifts = bnn_take(&scratch, n_taps * 8);
    tap *taps = bnn_take(&scratch, n_taps * (i64)sizeof(tap));
    if (!shifts || !taps) return 0;
    if (!bnn_share(&scratch, share_bytes(&room, filters, g->channels), per_thread)) return 0;
    const grid p = phase_grid(g, 0, 0, taps, &n_taps);
    for (i64 t = 0; t < n_taps; t++) shifts[t] = shift(&p, taps[t]);
    sliding d = {.cores = bnn_best_real_cores(), .x = bnn_plain(dy, (int)dy_is_half), .p = p,
                 .n = g->n, .groups = g->group, .channels = filters, .n_taps = n_taps, .shifts = shifts, .a = w,
                 .a_group = filters * channels * n_taps, .a_row = n_taps,
                 .a_channel = channels * n_taps, .n_rows = channels, .y = dx,
                 .y_is_half = (int)dx_is_half, .block_rows = g->channels,
                 .block_channels = g->filters, .per_thread = per_thread};
    run(&d);
    return 1;
}
