/* Depthwise convolution of real numbers and its two gradients, a plane at a time.

   A band of a plane is copied with its padding, split by the phases of the strides: then what a tap
   meets at consecutive positions lies side by side, the next row of positions right behind, and
   every tap is one shift of one string of floats. The few columns between two rows of positions are
   computed for nothing.

   Each channel may have several filters: filter m reads channel m / (M / C). */
#include "bnn_bitmap.h"
#include "bnn_depthwise.h"

typedef struct {
    const bnn_conv *g;
    const bnn_real_cores *cores;
    bnn_floats x, dy;
    bnn_bitmap *bitmap; /* of x, in the weight gradient; NULL if x is there */
    const float *w, *b;
    void *y;
    float *dw;
    int y_is_half;
    bnn_scratch *per_thread;
} depthwise;

typedef struct {
    float *x, *y, *sums, *weights;
    i64 *offsets;
    tap *taps;
    float *decoded; /* the rows of a plane of the bitmap that a band reads */
} workspace;

static void emit_band(const depthwise *d, const grid *p, i64 n_rows, i64 first, i64 pitch, i64 step,
                      const float *bias, const float *sums) {
    for (i64 r = 0; r < n_rows; r++) {
        bnn_stretch stretch = {0, p->cols, first + r * pitch};
        d->cores->emit(sums + r * p->pitch, 1, bias, &stretch, 1, d->y, d->y_is_half, 0, step);
    }
}

static workspace take_workspace(const bnn_conv *g, const grid *p, bnn_scratch scratch) {
    i64 taps = g->kh * g->kw;
    return (workspace){.x = bnn_take(&scratch, floats_bytes(copy_floats(p))),
                       .y = bnn_take(&scratch, floats_bytes(band_floats(p))),
                       .sums = bnn_take(&scratch, floats_bytes(taps * LANES16)),
                       .weights = bnn_take(&scratch, floats_bytes(taps)),
                       .offsets = bnn_take(&scratch, taps * 8),
                       .taps = bnn_take(&scratch, taps * (i64)sizeof(tap))};
}

static i64 share_bytes(const bnn_conv *g, const grid *p) {
    i64 taps = g->kh * g->kw;
    return floats_bytes(copy_floats(p)) + floats_bytes(band_floats(p)) +
           floats_bytes(taps * LANES16) + floats_bytes(taps) + bnn_round_up(taps * 8, 64) +
           bnn_round_up(taps * (i64)sizeof(tap), 64);
}

/* ---- forward: a unit is one plane of the result ---- */

static void convolve_planes(void *context, i64 begin, i64 end, int thread) {
    const depthwise *d = context;
    const bnn_conv *g = d->g;
    const grid p = forward_grid(g);
    i64 taps = g->kh * g->kw;
    workspace w = take_workspace(g, &p, d->per_thread[thread]);
    forward_offsets(g, &p, w.offsets);
    for (i64 unit = begin; unit < end; unit++) {
        i64 m = unit % g->m, c = m / (g->m / g->c), source = unit / g->m * g->c + c;
        for (i64 row = 0; row < p.rows; row += p.band_rows) {
            i64 n_rows = bnn_min(p.band_rows, p.rows - row);
            copy_band(d->cores, bnn_from_plane(d->x, c), source * g->h * g->w, &p, row, n_rows,
                      w.x);
            d->cores->correlate(w.x, w.offsets, d->w + m * taps, taps,
                                (n_rows - 1) * p.pitch + p.cols, w.y, 0);
            emit_band(d, &p, n_rows, (unit * g->ho + row) * g->wo, g->wo, 1,
                      d->b ? d->b + m : NULL, w.y);
        }
    }
}

/* As bnn_conv_f32f32f32, for group == C. */
BNN_EXPORT int bnn_conv_depthwise_f32f32f32(const bnn_conv *g, const void *x, i64 x_is_half,
                                            const float *factor, const float *shift,
                                            const float *w, const float *b, void *y,
                                            i64 y_is_half, uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    depthwise d = {.g = g, .cores = bnn_best_real_cores(), .w = w, .b = b, .y = y,
                   .x = {x, (int)x_is_half, factor, shift}, .y_is_half = (int)y_is_half,
                   .per_thread = per_thread};
    const grid p = forward_grid(g);
    if (!bnn_share(&scratch, share_bytes(g, &p), per_thread))
        return 0;
    bnn_parallel(g->n * g->m, bnn_grain_of(g->ho * g->wo * g->kh * g->kw), convolve_planes, &d);
    return 1;
}

/* ---- input gradient: a unit is one plane of dx ---- */

static void grad_phase(const depthwise *d, i64 unit, i64 phase_y, i64 phase_x, workspace w) {
    const bnn_conv *g = d->g;
    i64 n_taps, per_channel = g->m / g->c, n = unit / g->c, c = unit % g->c;
    const grid p = phase_grid(g, phase_y, phase_x, w.taps, &n_taps);
    for (i64 t = 0; t < n_taps; t++) w.offsets[t] = shift(&p, w.taps[t]);
    for (i64 row = 0; row < p.rows; row += p.band_rows) {
        i64 n_rows = bnn_min(p.band_rows, p.rows - row);
        for (i64 m = c * per_channel; m < (c + 1) * per_channel; m++) {
            copy_band(d->cores, d->dy, (n * g->m + m) * g->ho * g->wo, &p, row, n_rows, w.x);
            for (i64 t = 0; t < n_taps; t++)
                w.weights[t] = d->w[m * g->kh * g->kw + w.taps[t].number];
            d->cores->correlate(w.x, w.offsets, w.weights, n_taps,
                                (n_rows - 1) * p.pitch + p.cols, w.y, m > c * per_channel);
        }
        i64 first = (unit * g->h + row * g->sh + phase_y) * g->w + phase_x;
        emit_band(d, &p, n_rows, first, g->sh * g->w, g->sw, NULL, w.y);
    }
}

static void grad_planes(void *context, i64 begin, i64 end, int thread) {
    const depthwise *d = context;
    const bnn_conv *g = d->g;
    const grid largest = largest_phase(g);
    workspace w = take_workspace(g, &largest, d->per_thread[thread]);
    for (i64 unit = begin; unit < end; unit++)
        for (i64 y = 0; y < bnn_min(g->sh, g->h); y++)
            for (i64 x = 0; x < bnn_min(g->sw, g->w); x++) grad_phase(d, unit, y, x, w);
}

/* As bnn_conv_input_grad_f32f32f32, for group == C. */
BNN_EXPORT int bnn_conv_depthwise_input_grad_f32f32f32(const bnn_conv *g, const void *dy,
                                                       i64 dy_is_half, const float *w, void *dx,
                                                       i64 dx_is_half, uint8_t *memory,
                                                       i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    depthwise d = {.g = g, .cores = bnn_best_real_cores(), .w = w, .y = dx,
                   .dy = bnn_plain(dy, (int)dy_is_half), .y_is_half = (int)dx_is_half,
                   .per_thread = per_thread};
    const grid largest = largest_phase(g);
    if (!bnn_share(&scratch, share_bytes(g, &largest), per_thread)) return 0;
    bnn_parallel(g->n * g->c, bnn_grain_of(g->h * g->w * g->kh * g->kw), grad_planes, &d);
    return 1;
}

/* ---- weight gradient: a unit is one filter, over the whole batch ---- */

/* x, of which the rows are going to be read that n_rows positions from `row` on read; *plane is
   where the plane would begin. */
static bnn_floats source(const depthwise *d, const grid *p, i64 row, i64 n_rows, float *decoded,
                         i64 *plane) {
    if (!d->bitmap) return d->x;
    i64 top = p->low_y + row * p->step_y, used = n_rows + p->phase_rows - p->band_rows;
    i64 begin = bnn_clamp(top, 0, p->height);
    i64 end = bnn_clamp(top + used * p->step_y, begin, p->height);
    i64 first = *plane + begin * p->width, n = (end - begin) * p->width;
    *plane -= first;
    const float *floats = n ? bnn_bitmap_take(d->bitmap, first, n, decoded) : decoded;
    return bnn_plain(floats, 0);
}

static void add_plane(const depthwise *d, const grid *p, i64 n, i64 m, workspace w) {
    const bnn_conv *g = d->g;
    i64 dy_plane = (n * g->m + m) * g->ho;
    for (i64 row = 0; row < p->rows; row += p->band_rows) {
        i64 n_rows = bnn_min(p->band_rows, p->rows - row);
        i64 c = m / (g->m / g->c), x_plane = (n * g->c + c) * g->h * g->w;
        bnn_floats x = source(d, p, row, n_rows, w.decoded, &x_plane);
        copy_band(d->cores, bnn_from_plane(x, c), x_plane, p, row, n_rows, w.x);
        /* No position between two rows counts. */
        d->cores->pad(d->dy, (dy_plane + row) * g->wo, g->wo, n_rows, 1, 0, p->cols, p->pitch, w.y);
        d->cores->dot(w.x, w.offsets, g->kh * g->kw, w.y, (n_rows - 1) * p->pitch + p->cols,
                      w.sums);
    }
}

static i64 decoded_bytes(const depthwise *d, const grid *p) {
    i64 rows = bnn_min(p->phase_rows * p->step_y, p->height);
    return d->bitmap ? floats_bytes(rows * p->width + 7) : 0;
}

static void add_filters(void *context, i64 begin, i64 end, int thread) {
    const depthwise *d = context;
    const bnn_conv *g = d->g;
    const grid p = forward_grid(g);
    i64 taps = g->kh * g->kw;
    bnn_scratch scratch = d->per_thread[thread];
    float *decoded = bnn_take(&scratch, decoded_bytes(d, &p));
    workspace w = take_workspace(g, &p, scratch);
    w.decoded = decoded;
    forward_offsets(g, &p, w.offsets);
    for (i64 m = begin; m < end; m++) {
        memset(w.sums, 0, (size_t)(taps * LANES16) * sizeof(float));
        for (i64 n = 0; n < g->n; n++) add_plane(d, &p, n, m, w);
        for (i64 t = 0; t < taps; t++) {
            float total = 0;
            for (i64 i = 0; i < LANES16; i++) total += w.sums[t * LANES16 + i];
            d->dw[m * taps + t] = total;
        }
    }
}

static int weight_grad(depthwise *d, bnn_scratch scratch) {
    const bnn_conv *g = d->g;
    const grid p = forward_grid(g);
    bnn_scratch per_thread[BNN_MAX_THREADS];
    if (!bnn_share(&scratch, share_bytes(g, &p) + decoded_bytes(d, &p), per_thread)) return 0;
    d->per_thread = per_thread;
    if (d->bitmap && !bnn_bitmap_count(d->bitmap)) return 0;
    bnn_parallel(g->m, bnn_grain_of(g->n * g->ho * g->wo * g->kh * g->kw), add_filters, d);
    return 1;
}

/* As bnn_conv_weight_grad_f32f32f32, for group == C. */
BNN_EXPORT int bnn_conv_depthwise_weight_grad_f32f32f32(const bnn_conv *g, const void *x,
                                                        i64 x_is_half, const float *factor,
                                                        const float *shift, const void *dy,
                                                        i64 dy_is_half, float *dw,
                                                        uint8_t *memory, i64 n_bytes) {
    depthwise d = {.g = g, .cores = bnn_best_real_cores(),
                   .x = {x, (int)x_is_half, factor, shift},
                   .dy = bnn_plain(dy, (int)dy_is_half), .dw = dw};
    return weight_grad(&d, (bnn_scratch){memory, memory + n_bytes});
}

/* As bnn_bitmap_conv_weight_grad_f32f32f32, for group == C. */
BNN_EXPORT int bnn_bitmap_conv_depthwise_weight_grad_f32f32f32(const bnn_conv *g,
                                                               const uint8_t *bits,
                                                               const float *values, i64 n_values,
                                                               const void *dy, i64 dy_is_half,
                                                               float *dw, uint8_t *memory,
                                                               i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes};
    bnn_bitmap x = bnn_bitmap_of(bits, values, n_values, g->n, g->c * g->h * g->w);
    x.offsets = bnn_take(&scratch, bnn_bitmap_offset_bytes(&x));
    if (!x.offsets) return 0;
    depthwise d = {.g = g, .cores = bnn_best_real_cores(), .bitmap = &x,
                   .dy = bnn_plain(dy, (int)dy_is_half), .dw = dw};
    return weight_grad(&d, scratch);
}
