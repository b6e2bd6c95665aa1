/* Depthwise convolution of +-1 tensors kept as bits and its two gradients, a plane at a time.

   Nibbles and tables of signed sums want many channels or filters, and here each plane meets one
   filter. So bits become +-1 floats, a band of a plane at a time, for the inner loops of real
   numbers: a multiplication by +-1 is exact, and so is the whole forward. Those of a dy in int8 are
   sums of integers, which are multiplied by the unit at last.

   dx may be written over dy: some samples of dy are copied before, as in bnn_conv_input_grad_b1.c. */
#include "bnn_depthwise.h"
#include "bnn_variants.h"

typedef void (*unpack_bits)(const uint8_t *bits, const uint8_t *end, i64 first, i64 n, float *out);

typedef struct {
    const bnn_conv *g;
    const bnn_real_cores *cores;
    unpack_bits unpack;
    const uint8_t *x, *x_end, *w;
    bnn_map dy;
    void *y; /* or dx */
    i64 y_type;
    float *dw;     /* if there is no sink */
    bnn_sink sink; /* takes the row of a filter */
    i64 sample, n_samples;
    uint8_t *copy; /* of their dy, if dx is written over it */
    bnn_scratch *per_thread;
} depthwise;

typedef struct {
    float *x, *y, *sums, *totals, *weights, *decoded;
    i64 *offsets;
    tap *taps;
} workspace;

/* Where a plane is read: its first element may lie before what there is of it. */
typedef struct {
    bnn_floats data;
    i64 first;
} plane;

/* out[i] = +1 or -1 by bit `first` + i, i < n; in eights. */
BNN_INLINE void unpack(const uint8_t *bits, const uint8_t *end, i64 first, i64 n, float *out) {
    const v8i places = {1, 2, 4, 8, 16, 32, 64, 128};
    const int32_t one = 0x3f800000;
    for (i64 i = 0; i < n; i += 56) {
        uint64_t word = bnn_bits_at(bits, end, first + i);
        for (i64 j = i; j < bnn_min(n, i + 56); j += 8, word >>= 8) {
            const int32_t b = (int32_t)(word & 255);
            const v8i all = {b, b, b, b, b, b, b, b};
            const v8i signs = (((all & places) == 0) & INT32_MIN) | one;
            memcpy(out + j, &signs, sizeof signs);
        }
    }
}

static void unpack_any(const uint8_t *bits, const uint8_t *end, i64 first, i64 n, float *out) {
    unpack(bits, end, first, n, out);
}

#if BNN_X86_64
BNN_AVX2 static void unpack_avx2(const uint8_t *bits, const uint8_t *end, i64 first, i64 n,
                                 float *out) {
    unpack(bits, end, first, n, out);
}
#endif

static depthwise depthwise_of(const bnn_conv *g) {
    return (depthwise){.g = g, .cores = bnn_best_real_cores(), .unpack = BNN_PICK(unpack)};
}

static workspace take_workspace(const bnn_conv *g, const grid *p, bnn_scratch scratch) {
    i64 taps = g->kh * g->kw;
    return (workspace){.x = bnn_take(&scratch, floats_bytes(copy_floats(p))),
                       .y = bnn_take(&scratch, floats_bytes(band_floats(p))),
                       .sums = bnn_take(&scratch, floats_bytes(taps * LANES16)),
                       .totals = bnn_take(&scratch, floats_bytes(taps * LANES16)),
                       .weights = bnn_take(&scratch, 2 * floats_bytes(taps + 8)),
                       .decoded = bnn_take(&scratch, floats_bytes(decoded_floats(p))),
                       .offsets = bnn_take(&scratch, taps * 8),
                       .taps = bnn_take(&scratch, taps * (i64)sizeof(tap))};
}

static i64 share_bytes(const bnn_conv *g, const grid *p) {
    i64 taps = g->kh * g->kw;
    return floats_bytes(copy_floats(p)) + floats_bytes(band_floats(p)) +
           2 * floats_bytes(taps * LANES16) + 2 * floats_bytes(taps + 8) +
           floats_bytes(decoded_floats(p)) + bnn_round_up(taps * 8, 64) +
           bnn_round_up(taps * (i64)sizeof(tap), 64);
}

/* A filter as floats. */
static const float *take_filter(const depthwise *d, i64 m, float *weights) {
    i64 taps = d->g->kh * d->g->kw, row_bytes = bnn_ceil_div(taps, 8);
    const uint8_t *row = d->w + m * row_bytes;
    d->unpack(row, row + row_bytes, 0, taps, weights);
    return weights;
}

/* The rows begin .. end - 1 of the source that some positions read. */
static void rows_read(const grid *p, i64 row, i64 n_rows, i64 *begin, i64 *end) {
    i64 top = p->low_y + row * p->step_y, used = n_rows + p->phase_rows - p->band_rows;
    *begin = bnn_clamp(top, 0, p->height);
    *end = bnn_clamp(top + used * p->step_y, *begin, p->height);
}

static plane take_x(const depthwise *d, const grid *p, i64 sample, i64 c, i64 row, i64 n_rows,
                    float *decoded) {
    const bnn_conv *g = d->g;
    i64 begin, end, bytes = bnn_ceil_div(g->c * g->h * g->w, 8);
    rows_read(p, row, n_rows, &begin, &end);
    d->unpack(d->x, d->x_end, 8 * sample * bytes + (c * g->h + begin) * g->w, (end - begin) * g->w,
              decoded);
    return (plane){bnn_plain(decoded, 0), -begin * g->w};
}

/* Rows begin .. end - 1 of a plane of dy. */
static plane take_dy(const depthwise *d, i64 sample, i64 m, i64 begin, i64 end, float *decoded) {
    const bnn_conv *g = d->g;
    bnn_map dy = d->dy;
    if (d->copy) dy.data = d->copy;
    i64 first = ((d->copy ? sample - d->sample : sample) * g->m + m) * g->ho * g->wo;
    if (dy.type == BNN_F32 || dy.type == BNN_F16)
        return (plane){bnn_plain(dy.data, dy.type == BNN_F16), first};
    bnn_to_floats(&dy, first + begin * g->wo, decoded, (end - begin) * g->wo);
    return (plane){bnn_plain(decoded, 0), -begin * g->wo};
}

/* Rows of sums to a result of any type. */
static void emit_band(const depthwise *d, const grid *p, i64 n_rows, i64 first, i64 pitch, i64 step,
                      const float *sums) {
    for (i64 r = 0; r < n_rows; r++, sums += p->pitch) {
        i64 at = first + r * pitch;
        if (d->y_type == BNN_I16) {
            int16_t *y = (int16_t *)d->y + at;
            for (i64 i = 0; i < p->cols; i++) y[i] = (int16_t)sums[i];
        } else {
            bnn_stretch stretch = {0, p->cols, at};
            d->cores->emit(sums, 1, NULL, &stretch, 1, d->y, d->y_type == BNN_F16, 0, step);
        }
    }
}

/* ---- forward: a unit is one plane of the result ---- */

static void convolve_planes(void *context, i64 begin, i64 end, int thread) {
    const depthwise *d = context;
    const bnn_conv *g = d->g;
    const grid p = forward_grid(g);
    workspace w = take_workspace(g, &p, d->per_thread[thread]);
    forward_offsets(g, &p, w.offsets);
    for (i64 unit = begin; unit < end; unit++) {
        i64 m = unit % g->m, c = m / (g->m / g->c);
        const float *filter = take_filter(d, m, w.weights);
        for (i64 row = 0; row < p.rows; row += p.band_rows) {
            i64 n_rows = bnn_min(p.band_rows, p.rows - row);
            plane x = take_x(d, &p, unit / g->m, c, row, n_rows, w.decoded);
            copy_band(d->cores, x.data, x.first, &p, row, n_rows, w.x);
            d->cores->correlate(w.x, w.offsets, filter, g->kh * g->kw,
                                (n_rows - 1) * p.pitch + p.cols, w.y, 0);
            emit_band(d, &p, n_rows, (unit * g->ho + row) * g->wo, g->wo, 1, w.y);
        }
    }
}

int bnn_conv_depthwise_b1b1(const bnn_conv *g, const uint8_t *x, const uint8_t *w, void *y,
                            i64 y_type, uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    const grid p = forward_grid(g);
    depthwise d = depthwise_of(g);
    d.x = x, d.x_end = x + g->n * bnn_ceil_div(g->c * g->h * g->w, 8), d.w = w;
    d.y = y, d.y_type = y_type, d.per_thread = per_thread;
    if (!bnn_share(&scratch, share_bytes(g, &p), per_thread)) return 0;
    bnn_parallel(g->n * g->m, bnn_grain_of(g->ho * g->wo * g->kh * g->kw), convolve_planes, &d);
    return 1;
}

/* ---- input gradient: a unit is one plane of dx ---- */

static void grad_phase(const depthwise *d, i64 unit, i64 phase_y, i64 phase_x, workspace w) {
    const bnn_conv *g = d->g;
    i64 n_taps, begin, end, per_channel = g->m / g->c, sample = d->sample + unit / g->c;
    i64 c = unit % g->c;
    float *chosen = w.weights + floats_bytes(g->kh * g->kw + 8) / (i64)sizeof(float);
    const grid p = phase_grid(g, phase_y, phase_x, w.taps, &n_taps);
    for (i64 t = 0; t < n_taps; t++) w.offsets[t] = shift(&p, w.taps[t]);
    for (i64 row = 0; row < p.rows; row += p.band_rows) {
        i64 n_rows = bnn_min(p.band_rows, p.rows - row), n = (n_rows - 1) * p.pitch + p.cols;
        rows_read(&p, row, n_rows, &begin, &end);
        for (i64 m = c * per_channel; m < (c + 1) * per_channel; m++) {
            const float *filter = take_filter(d, m, w.weights);
            plane dy = take_dy(d, sample, m, begin, end, w.decoded);
            copy_band(d->cores, dy.data, dy.first, &p, row, n_rows, w.x);
            for (i64 t = 0; t < n_taps; t++) chosen[t] = filter[w.taps[t].number];
            d->cores->correlate(w.x, w.offsets, chosen, n_taps, n, w.y, m > c * per_channel);
        }
        bnn_scale(&d->dy, w.y, n);
        i64 first = ((sample * g->c + c) * g->h + row * g->sh + phase_y) * g->w + phase_x;
        emit_band(d, &p, n_rows, first, g->sh * g->w, g->sw, w.y);
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

int bnn_conv_depthwise_input_grad_b1(const bnn_conv *g, const void *dy, const float *dy_unit,
                                     const uint8_t *w, void *dx, i64 dy_type, i64 dx_type,
                                     uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    const grid largest = largest_phase(g);
    i64 sample = g->m * g->ho * g->wo, sample_bytes = sample * bnn_size_of(dy_type);
    i64 step = dx == dy ? g->staged : g->n, n_steps = bnn_ceil_div(g->n, step);
    int is_larger = g->c * g->h * g->w * bnn_size_of(dx_type) > sample_bytes;
    depthwise d = depthwise_of(g);
    d.dy = bnn_map_of(dy, dy_type, dy_unit, sample), d.w = w, d.y = dx, d.y_type = dx_type;
    d.per_thread = per_thread;
    if (dx == dy) d.copy = bnn_take(&scratch, step * sample_bytes);
    if (!bnn_share(&scratch, share_bytes(g, &largest), per_thread)) return 0;
    for (i64 i = 0; i < n_steps; i++) {
        d.sample = (is_larger ? n_steps - 1 - i : i) * step;
        d.n_samples = bnn_min(step, g->n - d.sample);
        if (d.copy)
            memcpy(d.copy, (const uint8_t *)dy + d.sample * sample_bytes,
                   (size_t)(d.n_samples * sample_bytes));
        bnn_parallel(d.n_samples * g->c, bnn_grain_of(g->h * g->w * g->kh * g->kw), grad_planes,
                     &d);
    }
    return 1;
}

/* ---- weight gradient: a unit is one filter, over the whole batch ---- */

static void add_plane(const depthwise *d, const grid *p, i64 sample, i64 m, workspace w) {
    const bnn_conv *g = d->g;
    i64 taps = g->kh * g->kw;
    memset(w.sums, 0, (size_t)(taps * LANES16) * sizeof(float));
    for (i64 row = 0; row < p->rows; row += p->band_rows) {
        i64 n_rows = bnn_min(p->band_rows, p->rows - row);
        plane x = take_x(d, p, sample, m / (g->m / g->c), row, n_rows, w.decoded);
        copy_band(d->cores, x.data, x.first, p, row, n_rows, w.x);
        plane dy = take_dy(d, sample, m, row, row + n_rows, w.decoded);
        /* No position between two rows counts. */
        d->cores->pad(dy.data, dy.first + row * g->wo, g->wo, n_rows, 1, 0, p->cols, p->pitch, w.y);
        d->cores->dot(w.x, w.offsets, taps, w.y, (n_rows - 1) * p->pitch + p->cols, w.sums);
    }
    for (i64 i = 0; i < taps * LANES16; i++) w.totals[i] += w.sums[i];
}

/* Sixteen parts of each sum become one, where the filter's gradient goes. */
static void finish_filter(const depthwise *d, i64 m, workspace w) {
    i64 taps = d->g->kh * d->g->kw;
    float *dw = d->sink.take ? w.weights : d->dw + m * taps;
    for (i64 t = 0; t < taps; t++) {
        dw[t] = 0;
        for (i64 i = 0; i < LANES16; i++) dw[t] += w.totals[t * LANES16 + i];
    }
    bnn_scale(&d->dy, dw, taps);
    if (d->sink.take) d->sink.take(d->sink.context, m, 0, dw, taps);
}

static void add_filters(void *context, i64 begin, i64 end, int thread) {
    const depthwise *d = context;
    const bnn_conv *g = d->g;
    const grid p = forward_grid(g);
    workspace w = take_workspace(g, &p, d->per_thread[thread]);
    forward_offsets(g, &p, w.offsets);
    for (i64 m = begin; m < end; m++) {
        memset(w.totals, 0, (size_t)(g->kh * g->kw * LANES16) * sizeof(float));
        for (i64 sample = 0; sample < g->n; sample++) add_plane(d, &p, sample, m, w);
        finish_filter(d, m, w);
    }
}

int bnn_conv_depthwise_weight_grad_b1(const bnn_conv *g, const uint8_t *x, const void *dy,
                                      const float *dy_unit, void *dw, const bnn_update *update,
                                      i64 dy_type, i64 dw_type, uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    bnn_sign_rows signs = {dw_type == BNN_U8 ? dw : NULL, bnn_ceil_div(g->kh * g->kw, 8)};
    const grid p = forward_grid(g);
    depthwise d = depthwise_of(g);
    d.x = x, d.x_end = x + g->n * bnn_ceil_div(g->c * g->h * g->w, 8);
    d.dy = bnn_map_of(dy, dy_type, dy_unit, g->m * g->ho * g->wo);
    d.dw = dw, d.sink = bnn_sink_of(update, &signs), d.per_thread = per_thread;
    if (!bnn_share(&scratch, share_bytes(g, &p), per_thread)) return 0;
    bnn_parallel(g->m, bnn_grain_of(g->n * g->ho * g->wo * g->kh * g->kw), add_filters, &d);
    return 1;
}
