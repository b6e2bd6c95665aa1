/* Weight gradient of a convolution of real numbers.

   Lanes are filters, rows are pairs of channel and tap, terms are output positions. For a band of
   positions dy is turned, so that the filters lie side by side, and x is copied with its padding:
   then the positions of a row of the band are a fixed step apart for every pair of channel and tap,
   and are read where they lie. A kernel of one row or column reads no more of x than the strides
   step on, and no more is copied.

   A unit of work is a block of channels and of filters, over the whole batch: a tile of sums for
   each `lanes` of the filters, which share the copies. Where there are few units, the batch is cut
   into as many parts as the shapes ask for (not the number of threads), whose sums are added in
   their order.

   x may come as a bitmap: then what a band reads of a plane is decoded right before it is copied. */
#include "bnn_bitmap.h"
#include "bnn_real.h"

enum { PIECE = 256 }; /* floats of a row that are handed on at a time; whole bytes of bits */

typedef struct {
    const bnn_conv *g;
    const bnn_real_cores *cores;
    bnn_floats x, dy;
    bnn_bitmap *bitmap;     /* of x; NULL if x is there */
    float *dw;
    const bnn_update *update; /* takes what is finished, instead of dw; or NULL */
    i64 n_parts, n_bands;
    i64 lanes;              /* of a tile */
    i64 n_filter_blocks, n_channel_blocks; /* of a group */
    i64 step_y, step_x;     /* between the rows and columns of x that are copied */
    i64 stride_y, stride_x; /* between those of the copy that neighbouring positions read */
    i64 in_rows, pitch;     /* of the copy of a band */
    float *sums;            /* (units, parts, tiles, rows, 48); NULL for one part */
    bnn_scratch *per_thread;
} gradient;

static i64 tile_rows(const bnn_conv *g) { return g->channels * g->kh * g->kw; }

typedef struct {
    float *x, *dy, *tile;
    i64 *offsets;
    float *decoded; /* what a band reads of a plane of the bitmap */
} workspace;

typedef struct {
    i64 group, channel, n_channels, filter, n_filters;
} block;

static i64 n_units(const gradient *d) {
    return d->g->group * d->n_channel_blocks * d->n_filter_blocks;
}

static block block_at(const gradient *d, i64 unit) {
    const bnn_conv *g = d->g;
    i64 channels = g->c / g->group, filters = g->m / g->group;
    block k = {.group = unit / (d->n_channel_blocks * d->n_filter_blocks),
               .channel = unit / d->n_filter_blocks % d->n_channel_blocks * g->channels,
               .filter = unit % d->n_filter_blocks * g->filters};
    k.n_channels = bnn_min(g->channels, channels - k.channel);
    k.n_filters = bnn_min(g->filters, filters - k.filter);
    return k;
}

/* The filters of a block's next tile; 0 behind the last. */
static int next_tile(const gradient *d, block k, block *tile) {
    i64 first = tile->filter + tile->n_filters;
    tile->filter = first;
    tile->n_filters = bnn_min(d->lanes, k.filter + k.n_filters - first);
    return tile->n_filters > 0;
}

static block no_tile(block k) {
    k.n_filters = 0;
    return k;
}

/* x, of which n elements from `first` on are going to be read; *at counts from where it begins. */
static bnn_floats source(const gradient *d, i64 first, i64 n, float *decoded, i64 *at) {
    if (!d->bitmap) return d->x;
    *at -= first;
    return bnn_plain(bnn_bitmap_take(d->bitmap, first, n, decoded), 0);
}

/* x (channels, samples, in_rows, pitch). */
static void copy_band(const gradient *d, bnn_band b, block k, workspace w) {
    const bnn_conv *g = d->g;
    i64 top = b.row * g->sh - g->pt, left = b.col * g->sw - g->pl;
    i64 n_rows = (b.rows - 1) * d->stride_y + (g->kh - 1) * g->dh + 1;
    /* The rows and columns of the copy that lie inside x. */
    i64 first = bnn_min(n_rows, bnn_ceil_div(bnn_max(-top, 0), d->step_y));
    i64 last = bnn_clamp(bnn_ceil_div(g->h - top, d->step_y), first, n_rows);
    i64 low = bnn_min(d->pitch, bnn_ceil_div(bnn_max(-left, 0), d->step_x));
    i64 high = bnn_clamp(bnn_ceil_div(g->w - left, d->step_x), low, d->pitch);
    i64 step = d->step_y * g->w;
    i64 n_read = high > low ? (last - first - 1) * step + (high - low - 1) * d->step_x + 1 : 0;
    size_t row_bytes = (size_t)d->pitch * sizeof(float);
    for (i64 c = 0; c < k.n_channels; c++) {
        i64 channel = k.group * (g->c / g->group) + k.channel + c;
        for (i64 s = 0; s < b.samples; s++) {
            float *plane = w.x + (c * g->samples + s) * d->in_rows * d->pitch;
            if (n_read <= 0) { /* all of it is padding */
                memset(plane, 0, (size_t)n_rows * row_bytes);
                continue;
            }
            i64 y = ((b.sample + s) * g->c + channel) * g->h + top + first * d->step_y;
            i64 at = y * g->w + left;
            bnn_floats x = source(d, at + low * d->step_x, n_read, w.decoded, &at);
            memset(plane, 0, (size_t)first * row_bytes);
            d->cores->pad(bnn_from_plane(x, channel), at, step, last - first, d->step_x, low, high,
                          d->pitch, plane + first * d->pitch);
            memset(plane + last * d->pitch, 0, (size_t)(n_rows - last) * row_bytes);
        }
    }
}

static bnn_floats moved(bnn_floats x, i64 n) {
    i64 size = x.is_half ? sizeof(bnn_half) : sizeof(float);
    return bnn_plain((const uint8_t *)x.data + n * size, x.is_half);
}

/* dy (positions, 48). */
static void turn_band(const gradient *d, bnn_band b, block k, float *panel) {
    const bnn_conv *g = d->g;
    i64 plane = g->ho * g->wo, filter = k.group * (g->m / g->group) + k.filter;
    int whole = b.cols == g->wo; /* then rows follow each other */
    i64 n_rows = whole ? 1 : b.rows, n = whole ? b.rows * b.cols : b.cols;
    for (i64 s = 0; s < b.samples; s++) {
        i64 first = ((b.sample + s) * g->m + filter) * plane + b.row * g->wo + b.col;
        for (i64 r = 0; r < n_rows; r++, panel += n * PANEL)
            d->cores->turn(moved(d->dy, first + r * g->wo), plane, n, k.n_filters, panel);
    }
}

static void add_band(const gradient *d, bnn_band b, block k, workspace w, float *tile,
                     int add) {
    const bnn_conv *g = d->g;
    copy_band(d, b, k, w);
    bnn_strips strips = {.start = w.x, .offsets = w.offsets, .step = d->stride_x, .n_terms = b.cols,
                         .run = d->stride_y * d->pitch, .n_runs = b.rows,
                         .group = d->in_rows * d->pitch, .n_groups = b.samples};
    for (block t = no_tile(k); next_tile(d, k, &t); tile += tile_rows(g) * PANEL) {
        turn_band(d, b, t, w.dy);
        d->cores->multiply(&strips, k.n_channels * g->kh * g->kw, w.dy, PANEL, t.n_filters, tile, PANEL, add);
    }
}

/* Step the weights of a tile, row by row. */
static void update_tile(const bnn_update *update, i64 row, i64 start, const float *sums,
                        i64 n_filters, i64 n) {
    float piece[PIECE];
    for (i64 m = 0; m < n_filters; m++) {
        for (i64 from = 0; from < n; from += PIECE) {
            i64 length = bnn_min(PIECE, n - from);
            for (i64 i = 0; i < length; i++) piece[i] = sums[(from + i) * PANEL + m];
            bnn_update_row(update, row + m, start + from, piece, length);
        }
    }
}

/* A tile's row is a pair of channel and tap, its lane a filter. */
static void emit(const gradient *d, block k, const float *sums) {
    const bnn_conv *g = d->g;
    i64 taps = g->kh * g->kw, terms = g->c / g->group * taps, n = k.n_channels * taps;
    for (block t = no_tile(k); next_tile(d, k, &t); sums += tile_rows(g) * PANEL) {
        i64 row = k.group * (g->m / g->group) + t.filter, start = k.channel * taps;
        if (d->update) {
            update_tile(d->update, row, start, sums, t.n_filters, n);
            continue;
        }
        float *dw = d->dw + row * terms + start;
        for (i64 m = 0; m < t.n_filters; m++, dw += terms)
            for (i64 i = 0; i < n; i++) dw[i] = sums[i * PANEL + m];
    }
}

static i64 floats_bytes(i64 n) { return bnn_round_up(n * (i64)sizeof(float), 64); }
static i64 copy_bytes(const gradient *d) {
    return floats_bytes(d->g->channels * d->g->samples * d->in_rows * d->pitch);
}
static i64 turned_bytes(const bnn_conv *g) {
    return floats_bytes(g->samples * g->rows * g->cols * PANEL);
}
/* Of a band, from the first element that it reads of a plane to the last, in whole bytes of bits. */
static i64 decoded_bytes(const gradient *d) {
    i64 floats = (d->in_rows - 1) * d->step_y * d->g->w + (d->pitch - 1) * d->step_x + 8;
    return d->bitmap ? floats_bytes(floats) : 0;
}
/* Floats of the tiles of a unit. */
static i64 unit_sums(const gradient *d) {
    return bnn_ceil_div(d->g->filters, d->lanes) * tile_rows(d->g) * PANEL;
}

static workspace take_workspace(const gradient *d, bnn_scratch scratch) {
    const bnn_conv *g = d->g;
    workspace w = {.x = bnn_take(&scratch, copy_bytes(d)),
                   .dy = bnn_take(&scratch, turned_bytes(g)),
                   .tile = bnn_take(&scratch, floats_bytes(unit_sums(d))),
                   .offsets = bnn_take(&scratch, tile_rows(g) * 8),
                   .decoded = bnn_take(&scratch, decoded_bytes(d))};
    i64 *offset = w.offsets;
    for (i64 c = 0; c < g->channels; c++)
        for (i64 y = 0; y < g->kh; y++)
            for (i64 x = 0; x < g->kw; x++)
                *offset++ = c * g->samples * d->in_rows * d->pitch + y * g->dh * d->pitch +
                            x * g->dw;
    return w;
}

/* A unit and a part of the batch. */
static void add_units(void *context, i64 begin, i64 end, int thread) {
    const gradient *d = context;
    workspace w = take_workspace(d, d->per_thread[thread]);
    for (i64 i = begin; i < end; i++) {
        i64 unit = i / d->n_parts, part = i % d->n_parts;
        i64 first = part * d->n_bands / d->n_parts, last = (part + 1) * d->n_bands / d->n_parts;
        block k = block_at(d, unit);
        float *tile = d->sums ? d->sums + i * unit_sums(d) : w.tile;
        for (i64 band = first; band < last; band++)
            add_band(d, bnn_band_at(d->g, band), k, w, tile, band > first);
        if (!d->sums) emit(d, k, tile);
    }
}

static void add_parts(void *context, i64 begin, i64 end, int thread) {
    const gradient *d = context;
    i64 size = unit_sums(d);
    (void)thread;
    for (i64 unit = begin; unit < end; unit++) {
        float *total = d->sums + unit * d->n_parts * size;
        block k = block_at(d, unit);
        for (i64 part = 1; part < d->n_parts; part++)
            for (i64 i = 0; i < size; i++) total[i] += total[part * size + i];
        emit(d, k, total);
    }
}

static gradient make_gradient(const bnn_conv *g, const void *dy, i64 dy_is_half, float *dw,
                              const bnn_update *update, i64 n_parts) {
    i64 filters = g->m / g->group, n_lane_blocks = bnn_ceil_div(filters, PANEL);
    gradient d = {.g = g, .cores = bnn_best_real_cores(), .dw = dw,
                  .dy = bnn_plain(dy, (int)dy_is_half), .update = update, .n_parts = n_parts, .n_bands = bnn_n_bands(g),
                  .lanes = bnn_round_up(bnn_ceil_div(filters, n_lane_blocks), 16),
                  .n_channel_blocks = bnn_ceil_div(g->c / g->group, g->channels),
                  .step_y = g->kh == 1 ? g->sh : 1, .stride_y = g->kh == 1 ? 1 : g->sh,
                  .step_x = g->kw == 1 ? g->sw : 1, .stride_x = g->kw == 1 ? 1 : g->sw};
    d.in_rows = (g->rows - 1) * d.stride_y + (g->kh - 1) * g->dh + 1;
    d.pitch = (g->cols - 1) * d.stride_x + (g->kw - 1) * g->dw + 1;
    d.n_filter_blocks = bnn_ceil_div(filters, g->filters);
    return d;
}

static int run(gradient *d, bnn_scratch scratch) {
    bnn_scratch per_thread[BNN_MAX_THREADS];
    i64 sums = floats_bytes(unit_sums(d));
    if (d->n_parts > 1) {
        d->sums = bnn_take(&scratch, d->n_parts * n_units(d) * sums);
        if (!d->sums) return 0;
    }
    i64 share = copy_bytes(d) + turned_bytes(d->g) + sums + bnn_round_up(tile_rows(d->g) * 8, 64) +
                decoded_bytes(d);
    if (!bnn_share(&scratch, share, per_thread)) return 0;
    d->per_thread = per_thread;
    if (d->bitmap && !bnn_bitmap_count(d->bitmap)) return 0;
    bnn_parallel(n_units(d) * d->n_parts, 1, add_units, d);
    if (d->n_parts > 1) bnn_parallel(n_units(d), 1, add_parts, d);
    return 1;
}

/* dw (M, C / group, kh, kw) of x (N, C, H, W) and dy (N, M, Ho, Wo), the batch in n_parts, which are
   at most the bands. With `factor` and `shift` (C,), x are bytes that stand for x * factor + shift.
   If dw is NULL, an `update` of w (M, C / group, kh, kw) takes it as it is finished. Returns 0, with
   nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_conv_weight_grad_f32f32f32(const bnn_conv *g, const void *x, i64 x_is_half,
                                              const float *factor, const float *shift,
                                              const void *dy, i64 dy_is_half, float *dw,
                                              const bnn_update *update, i64 n_parts,
                                              uint8_t *memory, i64 n_bytes) {
    gradient d = make_gradient(g, dy, dy_is_half, dw, update, n_parts);
    d.x = (bnn_floats){x, (int)x_is_half, factor, shift};
    return run(&d, (bnn_scratch){memory, memory + n_bytes});
}

/* The same of x in its bitmap form, to the same bits; also 0 if it has fewer values than bits. */
BNN_EXPORT int bnn_bitmap_conv_weight_grad_f32f32f32(const bnn_conv *g, const uint8_t *bits,
                                                     const float *values, i64 n_values,
                                                     const void *dy, i64 dy_is_half, float *dw,
                                                     const bnn_update *update, i64 n_parts,
                                                     uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes};
    bnn_bitmap x = bnn_bitmap_of(bits, values, n_values, g->n, g->c * g->h * g->w);
    x.offsets = bnn_take(&scratch, bnn_bitmap_offset_bytes(&x));
    if (!x.offsets) return 0;
    gradient d = make_gradient(g, dy, dy_is_half, dw, update, n_parts);
    d.bitmap = &x;
    return run(&d, scratch);
}
