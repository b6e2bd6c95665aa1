/* Convolution of real numbers and its input gradient: matrix products whose columns are gathered a
   panel at a time.

   Lanes are output positions, in the order of samples, rows and columns. For a block of channels the
   panel holds what each (channel, tap) meets at the lanes, 0 in the padding; the rows of factors lie
   in memory as they are read, and the sums of a tile of rows and lanes are complete before the next
   panel. The input gradient is as many of these as the strides have phases: the input positions of a
   phase meet the same taps, and dy without a stride. Its factors are the weights turned, for as many
   channels at a time as the scratch holds.

   Each sum is taken in one order, that of channels and taps, whatever the number of threads. */
#include "bnn_real.h"

typedef struct {
    i64 y, x, number;
} tap;

typedef struct {
    const bnn_real_cores *cores;
    /* The source: position (i, j) meets tap t at (i * step_y + y of t, j * step_x + x of t). */
    bnn_floats x;
    i64 n, channels, height, width; /* channels of a group */
    i64 rows, cols, step_y, step_x, n_taps;
    const tap *taps;
    /* The factors, n_groups of n_rows by channels and taps, and from one to the next: rows first_row ..
       of group_rows. */
    const float *a;
    i64 a_group, a_row, a_channel;
    i64 first_group, n_groups, groups, first_row, n_rows, group_rows;
    /* The result: position (i, j) of a plane is at y_first + i * y_row + j * y_col. */
    void *y;
    int y_is_half;
    i64 y_plane, y_first, y_row, y_col;
    const float *bias;
    /* How it is cut. */
    i64 block_rows, block_channels;
    bnn_scratch *per_thread;
} gather;

typedef struct {
    float *panel, *tile;
    i64 *offsets;
} workspace;

enum { CHUNK = 1 << 18 }; /* multiplications that are worth handing out */

/* Add lanes that follow the last stretch both in the panel and in memory to it. */
static i64 append(bnn_stretch *out, i64 n, bnn_stretch next, i64 step) {
    if (n > 0) {
        bnn_stretch *last = out + n - 1;
        if (last->lane + last->n == next.lane && last->offset + last->n * step == next.offset) {
            last->n += next.n;
            return n;
        }
    }
    out[n] = next;
    return n + 1;
}

/* The lanes for which a tap lies inside the source, whose channel 0 of the batch is at 0. */
static i64 inside(const gather *d, tap t, const bnn_run *runs, i64 n_runs, i64 first,
                  bnn_stretch *out) {
    i64 count = 0, sample = d->groups * d->channels * d->height * d->width;
    for (i64 r = 0; r < n_runs; r++) {
        i64 y = runs[r].row * d->step_y + t.y, x = runs[r].col * d->step_x + t.x;
        if (y < 0 || y >= d->height || x >= d->width) continue;
        i64 low = x < 0 ? bnn_ceil_div(-x, d->step_x) : 0; /* a division is slow, and rarely needed */
        i64 last = x + (runs[r].n - 1) * d->step_x;
        i64 high = last < d->width ? runs[r].n : (d->width - 1 - x) / d->step_x + 1;
        if (low >= high) continue;
        i64 offset = first + runs[r].sample * sample + y * d->width + x + low * d->step_x;
        count = append(out, count, (bnn_stretch){runs[r].lane + low, high - low, offset},
                       d->step_x);
    }
    return count;
}

static void fill_panel(const gather *d, i64 group, i64 channel, i64 n_channels,
                       const bnn_run *runs, i64 n_runs, i64 n_lanes, float *panel) {
    i64 plane = d->height * d->width, first = (group * d->channels + channel) * plane;
    bnn_floats x = bnn_from_plane(d->x, group * d->channels + channel);
    for (i64 t = 0; t < d->n_taps; t++) {
        bnn_stretch stretches[PANEL];
        i64 count = inside(d, d->taps[t], runs, n_runs, first, stretches), covered = 0;
        for (i64 s = 0; s < count; s++) covered += stretches[s].n;
        d->cores->take(x, plane, n_channels, d->step_x, stretches, count,
                       covered < bnn_min(PANEL, bnn_round_up(n_lanes, 16)), panel + t * PANEL,
                       d->n_taps * PANEL);
    }
}

static void emit_tile(const gather *d, i64 group, i64 row, i64 n_rows, const bnn_run *runs,
                      i64 n_runs, const float *tile) {
    bnn_stretch stretches[PANEL];
    i64 count = 0, first = group * d->group_rows + row;
    for (i64 r = 0; r < n_runs; r++) {
        i64 plane = runs[r].sample * d->groups * d->group_rows + first;
        i64 offset = plane * d->y_plane + d->y_first + runs[r].row * d->y_row +
                     runs[r].col * d->y_col;
        count = append(stretches, count, (bnn_stretch){runs[r].lane, runs[r].n, offset}, d->y_col);
    }
    d->cores->emit(tile, n_rows, d->bias ? d->bias + first : NULL, stretches, count, d->y,
                   d->y_is_half, d->y_plane, d->y_col);
}

/* Rows row .. row + n_rows - 1 of those of the factors, at the positions of a panel. */
static void add_tile(const gather *d, i64 group, i64 row, i64 n_rows, i64 position, workspace w) {
    i64 n_lanes = bnn_min(PANEL, d->n * d->rows * d->cols - position);
    i64 terms = d->channels * d->n_taps;
    const float *a = d->a + group * d->a_group + row * d->a_row;
    const int is_run = d->n_taps == 1 || d->a_channel == d->n_taps; /* one step between all terms */
    bnn_run runs[LANES];
    i64 n_runs = bnn_runs(position, position + n_lanes, d->rows, d->cols, runs);
    if (terms == 0) memset(w.tile, 0, (size_t)(n_rows * PANEL) * sizeof(float));
    for (i64 c = 0; c < d->channels && d->n_taps; c += d->block_channels) {
        i64 n_channels = bnn_min(d->block_channels, d->channels - c);
        fill_panel(d, d->first_group + group, c, n_channels, runs, n_runs, n_lanes, w.panel);
        bnn_strips strips = {.start = a + c * d->a_channel, .offsets = w.offsets,
                             .step = d->n_taps == 1 ? d->a_channel : 1,
                             .n_terms = is_run ? n_channels * d->n_taps : d->n_taps,
                             .run = d->a_channel, .n_runs = is_run ? 1 : n_channels,
                             .n_groups = 1};
        d->cores->multiply(&strips, n_rows, w.panel, PANEL, n_lanes, w.tile, PANEL, c > 0);
    }
    emit_tile(d, d->first_group + group, d->first_row + row, n_rows, runs, n_runs, w.tile);
}

static i64 panel_bytes(i64 channels, i64 n_taps) {
    return bnn_round_up(channels * n_taps * PANEL * (i64)sizeof(float), 64);
}

static i64 share_bytes(i64 block_rows, i64 block_channels, i64 n_taps) {
    i64 tile = block_rows * PANEL * (i64)sizeof(float);
    return panel_bytes(block_channels, n_taps) + tile + bnn_round_up(block_rows * 8, 64);
}

static void add_tiles(void *context, i64 begin, i64 end, int thread) {
    const gather *d = context;
    bnn_scratch scratch = d->per_thread[thread];
    workspace w = {.panel = bnn_take(&scratch, panel_bytes(d->block_channels, d->n_taps)),
                   .tile = bnn_take(&scratch, d->block_rows * PANEL * (i64)sizeof(float)),
                   .offsets = bnn_take(&scratch, d->block_rows * 8)};
    i64 n_panels = bnn_ceil_div(d->n * d->rows * d->cols, PANEL);
    i64 n_blocks = bnn_ceil_div(d->n_rows, d->block_rows);
    for (i64 i = 0; i < d->block_rows; i++) w.offsets[i] = i * d->a_row;
    for (i64 unit = begin; unit < end; unit++) {
        i64 row = unit / n_panels % n_blocks * d->block_rows;
        add_tile(d, unit / n_panels / n_blocks, row, bnn_min(d->block_rows, d->n_rows - row),
                 unit % n_panels * PANEL, w);
    }
}

static void run(gather *d) {
    i64 n_panels = bnn_ceil_div(d->n * d->rows * d->cols, PANEL);
    i64 n_blocks = bnn_ceil_div(d->n_rows, d->block_rows);
    i64 products = PANEL * bnn_min(d->block_rows, d->n_rows) * (d->channels * d->n_taps + 1);
    bnn_parallel(d->n_groups * n_blocks * n_panels, bnn_max(1, CHUNK / products), add_tiles, d);
}

/* y (N, M, Ho, Wo) of x (N, C, H, W), w (M, C / group, kh, kw) and b (M,), which may be NULL. With
   `factor` and `shift` (C,), x are bytes that stand for x * factor + shift. Returns 0, with nothing
   done, if the scratch is too small. */
BNN_EXPORT int bnn_conv_f32f32f32(const bnn_conv *g, const void *x, i64 x_is_half,
                                  const float *factor, const float *shift, const float *w,
                                  const float *b, void *y, i64 y_is_half, uint8_t *memory,
                                  i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 n_taps = g->kh * g->kw;
    tap *taps = bnn_take(&scratch, n_taps * (i64)sizeof(tap));
    if (!taps) return 0;
    if (!bnn_share(&scratch, share_bytes(g->filters, g->channels, n_taps), per_thread)) return 0;
    for (i64 t = 0; t < n_taps; t++)
        taps[t] = (tap){t / g->kw * g->dh - g->pt, t % g->kw * g->dw - g->pl, t};
    gather d = {.cores = bnn_best_real_cores(), .x = {x, (int)x_is_half, factor, shift},
                .n = g->n, .channels = g->c / g->group, .height = g->h, .width = g->w,
                .rows = g->ho, .cols = g->wo, .step_y = g->sh, .step_x = g->sw,
                .n_taps = n_taps, .taps = taps, .a = w,
                .a_group = g->m / g->group * (g->c / g->group) * n_taps,
                .a_row = g->c / g->group * n_taps, .a_channel = n_taps, .n_groups = g->group,
                .groups = g->group, .n_rows = g->m / g->group,
                .group_rows = g->m / g->group, .y = y, .y_is_half = (int)y_is_half,
                .y_plane = g->ho * g->wo, .y_row = g->wo, .y_col = 1, .bias = b,
                .block_rows = g->filters, .block_channels = g->channels, .per_thread = per_thread};
    run(&d);
    return 1;
}

/* ---- the input gradient ---- */

typedef struct {
    const bnn_conv *g;
    const float *w;
    const gather *d;
    float *turned;
} turning;

/* turned (groups, n_rows, filters, taps of the phase). */
static void turn_rows(void *context, i64 begin, i64 end, int thread) {
    const turning *c = context;
    const gather *d = c->d;
    i64 channels = c->g->c / c->g->group, n_taps = c->g->kh * c->g->kw;
    (void)thread;
    for (i64 i = begin; i < end; i++) {
        i64 group = d->first_group + i / d->n_rows, channel = d->first_row + i % d->n_rows;
        const float *w = c->w + (group * d->channels * channels + channel) * n_taps;
        float *out = c->turned + i * d->channels * d->n_taps;
        for (i64 m = 0; m < d->channels; m++, w += channels * n_taps)
            for (i64 t = 0; t < d->n_taps; t++) *out++ = w[d->taps[t].number];
    }
}

/* The taps that the input positions of a phase meet: those k where dilation * k and the position
   differ by whole strides. */
static i64 phase_taps(const bnn_conv *g, i64 phase_y, i64 phase_x, tap *taps) {
    i64 count = 0;
    for (i64 ky = 0; ky < g->kh; ky++) {
        i64 y = phase_y + g->pt - ky * g->dh;
        for (i64 kx = 0; kx < g->kw; kx++) {
            i64 x = phase_x + g->pl - kx * g->dw;
            if (y % g->sh == 0 && x % g->sw == 0)
                taps[count++] = (tap){y / g->sh, x / g->sw, ky * g->kw + kx};
        }
    }
    return count;
}

/* All input positions of one phase, for as many groups or channels at a time as `room` holds. */
static void run_phase(const bnn_conv *g, const float *w, gather d, float *turned, i64 room) {
    i64 channels = g->c / g->group, terms = bnn_max(1, d.channels * d.n_taps);
    d.n_rows = bnn_min(channels, room / terms);
    d.n_groups = bnn_clamp(room / (terms * channels), 1, g->group);
    i64 n_rows = d.n_rows, n_groups = d.n_groups;
    d.a = turned;
    d.a_channel = d.n_taps;
    d.a_row = d.channels * d.n_taps;
    d.a_group = d.n_rows * d.a_row;
    for (i64 group = 0; group < g->group; group += n_groups) {
        for (i64 row = 0; row < channels; row += n_rows) {
            gather part = d;
            part.first_group = group;
            part.n_groups = bnn_min(n_groups, g->group - group);
            part.first_row = row;
            part.n_rows = bnn_min(n_rows, channels - row);
            turning c = {g, w, &part, turned};
            bnn_parallel(part.n_groups * part.n_rows, bnn_grain_of(terms), turn_rows, &c);
            run(&part);
        }
    }
}

/* The one phase of a stride of 1, which meets all taps in their order: no weight need be turned. */
static void run_whole(const bnn_conv *g, const float *w, gather d) {
    i64 channels = g->c / g->group;
    d.a = w;
    d.a_row = d.n_taps;
    d.a_channel = channels * d.n_taps;
    d.a_group = d.channels * d.a_channel;
    d.n_rows = channels;
    d.n_groups = g->group;
    run(&d);
}

/* dx (N, C, H, W) of dy (N, M, Ho, Wo) and w (M, C / group, kh, kw). `room` floats of the scratch
   hold turned weights, those of one input channel at least. Returns 0, with nothing done, if the
   scratch is too small. */
BNN_EXPORT int bnn_conv_input_grad_f32f32f32(const bnn_conv *g, const void *dy, i64 dy_is_half,
                                             const float *w, void *dx, i64 dx_is_half, i64 room,
                                             uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 n_taps = g->kh * g->kw, filters = g->m / g->group;
    tap *taps = bnn_take(&scratch, n_taps * (i64)sizeof(tap));
    float *turned = bnn_take(&scratch, room * (i64)sizeof(float));
    if (!taps || !turned || room < filters * n_taps) return 0;
    if (!bnn_share(&scratch, share_bytes(g->channels, g->filters, n_taps), per_thread)) return 0;
    for (i64 y = 0; y < bnn_min(g->sh, g->h); y++) {
        for (i64 x = 0; x < bnn_min(g->sw, g->w); x++) {
            gather d = {.cores = bnn_best_real_cores(), .n = g->n,
                        .x = bnn_plain(dy, (int)dy_is_half), .channels = filters,
                        .height = g->ho, .width = g->wo,
                        .rows = bnn_ceil_div(g->h - y, g->sh),
                        .cols = bnn_ceil_div(g->w - x, g->sw), .step_y = 1, .step_x = 1,
                        .n_taps = phase_taps(g, y, x, taps), .taps = taps,
                        .groups = g->group, .group_rows = g->c / g->group, .y = dx,
                        .y_is_half = (int)dx_is_half, .y_plane = g->h * g->w,
                        .y_first = y * g->w + x, .y_row = g->sh * g->w, .y_col = g->sw,
                        .block_rows = g->channels, .block_channels = g->filters,
                        .per_thread = per_thread};
            if (g->sh == 1 && g->sw == 1) run_whole(g, w, d);
            else run_phase(g, w, d, turned, room);
        }
    }
    return 1;
}
