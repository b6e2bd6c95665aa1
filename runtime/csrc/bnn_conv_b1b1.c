/* Convolution of +-1 tensors kept as bits: XNOR and popcount, by nibbles.

   Four channels of an input row become a row of nibbles, one byte a column; a tap is then a shift
   of that row, and padding is a byte that counts nothing. A tile of 64 positions collects, for
   every four channels and every tap, its nibbles in a panel; for four filters at a time the count
   of differing bits is looked up for all 64. y = valid bits - 2 * differing bits, exact. */
#include "bnn_conv_b1b1.h"
#include "bnn_depthwise.h"

enum { FEW_BANDS = 4 }; /* fewer for each thread: the filters are shared as well */

/* Filters of a block. */
typedef struct {
    i64 begin, end;
} bnn_filters;

/* Nibbles of four filters, tap by tap, in the order of the panel. */
static void index_filters(void *context, i64 begin, i64 end, int thread) {
    (void)thread;
    const bnn_forward *f = context;
    const bnn_conv *g = f->g;
    i64 taps = g->kh * g->kw, row_bytes = bnn_ceil_div(g->c / g->group * taps, 8);
    i64 first = f->group * (g->m / g->group) + f->filter;
    memset(f->indices + begin * f->n_steps, 0, (size_t)((end - begin) * f->n_steps));
    for (i64 block = begin / STRINGS; block < end / STRINGS; block++) {
        i64 n = bnn_min(STRINGS, f->n_filters - block * STRINGS);
        for (i64 i = 0; i < n; i++) {
            const uint8_t *row = f->w + (first + block * STRINGS + i) * row_bytes;
            uint8_t *out = f->indices + block * STRINGS * f->n_steps + i;
            for (i64 c = 0; c < f->n_channels; c += 4) {
                for (i64 t = 0; t < taps; t += 56) {
                    uint8_t nibbles[64];
                    i64 n_taps = bnn_min(56, taps - t), step = c / 4 * taps + t;
                    bnn_nibbles(row, row + row_bytes, (f->channel + c) * taps + t, taps,
                                bnn_min(4, f->n_channels - c), n_taps, nibbles);
                    for (i64 k = 0; k < n_taps; k++)
                        out[(step + k) * STRINGS] = (uint8_t)(nibbles[k] << 4);
                }
            }
        }
    }
}

/* Copies in eights; up to 7 bytes too many, which whoever fills the next bytes writes over. */
static inline void copy_eights(uint8_t *to, const uint8_t *from, i64 n) {
    for (i64 i = 0; i < n; i += 8) memcpy(to + i, from + i, 8);
}

/* A row of nibbles between its padding, from column `col` of x on; columns that the stride puts
   into different phases lie apart. */
static void place_row(const bnn_forward *f, const uint8_t *row, i64 col, uint8_t *out) {
    const bnn_conv *g = f->g;
    if (g->sw == 1) {
        i64 low = bnn_clamp(-col, 0, f->pitch), high = bnn_clamp(g->w - col, low, f->pitch);
        memset(out, OUTSIDE, (size_t)low);
        copy_eights(out + low, row + col + low, high - low);
        memset(out + high, OUTSIDE, (size_t)(f->pitch - high));
        return;
    }
    for (i64 p = 0; p < g->sw; p++)
        for (i64 i = 0, at = col + p; i < f->phase; i++, at += g->sw)
            *out++ = at >= 0 && at < g->w ? row[at] : OUTSIDE;
}

/* Four channels of rows begin .. end - 1 of x as nibbles, one byte a column, in `lines`. */
static void nibble_lines(const bnn_forward *f, i64 first_bit, i64 begin, i64 end, i64 col,
                         i64 n_strings, uint8_t *lines) {
    const bnn_conv *g = f->g;
    i64 low = bnn_clamp(col, 0, g->w), high = bnn_clamp(col + f->pitch, low, g->w);
    if (g->cols == g->wo) { /* nearly all columns: all rows at once */
        bnn_nibbles(f->x, f->x_end, first_bit + begin * g->w, g->h * g->w, n_strings,
                    (end - begin) * g->w, lines);
        return;
    }
    for (i64 y = begin; y < end; y++, lines += g->w)
        bnn_nibbles(f->x, f->x_end, first_bit + y * g->w + low, g->h * g->w, n_strings, high - low,
                    lines + low);
}

static void nibble_planes(const bnn_forward *f, bnn_band b, uint8_t *lines, uint8_t *planes) {
    const bnn_conv *g = f->g;
    i64 row_bytes = bnn_ceil_div(g->c * g->h * g->w, 8);
    i64 channel = f->group * (g->c / g->group) + f->channel;
    i64 top = b.row * g->sh - g->pt, left = b.col * g->sw - g->pl;
    i64 begin = bnn_clamp(top, 0, g->h), end = bnn_clamp(top + f->in_rows, begin, g->h);
    for (i64 c = 0; c < f->n_channels; c += 4) {
        for (i64 s = 0; s < b.samples; s++) {
            i64 plane = 8 * (b.sample + s) * row_bytes + (channel + c) * g->h * g->w;
            nibble_lines(f, plane, begin, end, left, bnn_min(4, f->n_channels - c), lines);
            for (i64 y = top; y < top + f->in_rows; y++, planes += f->pitch) {
                if (y < begin || y >= end)
                    memset(planes, OUTSIDE, (size_t)f->pitch);
                else
                    place_row(f, lines + (y - begin) * g->w, left, planes);
            }
        }
    }
}

/* Panel (n_steps, 64): the nibbles of every tap for the lanes of a tile. */
static void fill_panel(const bnn_forward *f, i64 samples, const bnn_run *runs, i64 n_runs,
                       const uint8_t *planes, uint8_t *panel) {
    const bnn_conv *g = f->g;
    i64 starts[LANES];
    for (i64 i = 0; i < n_runs; i++)
        starts[i] = (runs[i].sample * f->in_rows + runs[i].row * g->sh) * f->pitch + runs[i].col;
    for (i64 c = 0; c < f->n_channels; c += 4, planes += samples * f->in_rows * f->pitch) {
        for (i64 ky = 0; ky < g->kh; ky++) {
            for (i64 kx = 0; kx < g->kw; kx++, panel += LANES) {
                const uint8_t *tap = planes + ky * g->dh * f->pitch +
                                     kx * g->dw % g->sw * f->phase + kx * g->dw / g->sw;
                for (i64 i = 0; i < n_runs; i++)
                    copy_eights(panel + runs[i].lane, tap + starts[i], runs[i].n);
            }
        }
    }
}

/* Bits of the block that are not padding, for every lane. */
static void count_valid(const bnn_forward *f, bnn_band b, const bnn_run *runs, i64 n_runs,
                        int32_t *valid) {
    const bnn_conv *g = f->g;
    for (i64 i = 0; i < n_runs; i++) {
        i64 rows = bnn_taps_inside(b.row + runs[i].row, g->sh, g->pt, g->dh, g->kh, g->h);
        for (i64 j = 0; j < runs[i].n; j++) {
            i64 cols = bnn_taps_inside(b.col + runs[i].col + j, g->sw, g->pl, g->dw, g->kw, g->w);
            valid[runs[i].lane + j] = (int32_t)(f->n_channels * rows * cols);
        }
    }
}

/* Some filters of the block on one tile, whose lanes are contiguous within each sample. */
static void multiply_tile(const bnn_forward *f, bnn_band b, bnn_filters filters,
                          const bnn_run *runs, i64 n_runs, const uint8_t *panel,
                          const uint64_t *masks) {
    const bnn_conv *g = f->g;
    i64 plane = g->ho * g->wo, first = f->group * (g->m / g->group) + f->filter;
    int32_t valid[LANES];
    uint16_t counts[STRINGS][LANES] __attribute__((aligned(64)));
    count_valid(f, b, runs, n_runs, valid);
    for (i64 m = filters.begin; m < filters.end; m += STRINGS) {
        if (f->words)
            f->words->count((const uint64_t *)panel, masks,
                            (const uint64_t *)f->indices + m * f->n_steps, f->n_steps, counts);
        else
            f->cores->count(panel, f->indices + m * f->n_steps, f->n_steps, counts);
        for (i64 i = 0; i < bnn_min(STRINGS, filters.end - m); i++) {
            for (i64 r = 0, n = 0; r < n_runs; r += n) {
                i64 lanes = 0;
                for (n = 0; r + n < n_runs && runs[r + n].sample == runs[r].sample; n++)
                    lanes += runs[r + n].n;
                i64 at = ((b.sample + runs[r].sample) * g->m + first + m + i) * plane +
                         (b.row + runs[r].row) * g->wo + b.col + runs[r].col;
                f->cores->emit(counts[i] + runs[r].lane, valid + runs[r].lane, lanes, f->y,
                               f->y_type, at, f->channel > 0);
            }
        }
    }
}

static i64 planes_bytes(const bnn_forward *f, i64 samples) {
    return bnn_ceil_div(f->n_channels, 4) * samples * f->in_rows * f->pitch + 64;
}

static i64 words_bytes(const bnn_forward *f) {
    return bnn_ceil_div(f->n_channels, 64) * f->g->samples * f->in_rows * f->pitch *
           (i64)sizeof(uint64_t);
}

static i64 lines_bytes(const bnn_forward *f) {
    return bnn_min(f->in_rows, f->g->h) * f->g->w + 64;
}

static void convolve_nibbles(const bnn_forward *f, bnn_band b, bnn_filters filters,
                             bnn_scratch scratch) {
    uint8_t *panel = bnn_take(&scratch, f->n_steps * LANES + 64);
    uint8_t *lines = bnn_take(&scratch, lines_bytes(f));
    uint8_t *planes = bnn_take(&scratch, planes_bytes(f, f->g->samples));
    i64 n_positions = b.samples * b.rows * b.cols;
    nibble_planes(f, b, lines, planes);
    for (i64 p = 0; p < n_positions; p += LANES) {
        bnn_run runs[LANES];
        i64 n_runs = bnn_runs(p, bnn_min(p + LANES, n_positions), b.rows, b.cols, runs);
        fill_panel(f, b.samples, runs, n_runs, planes, panel);
        multiply_tile(f, b, filters, runs, n_runs, panel, NULL);
    }
}

static void convolve_words(const bnn_forward *f, bnn_band b, bnn_filters filters,
                           bnn_scratch scratch) {
    i64 size = sizeof(uint64_t), n_positions = b.samples * b.rows * b.cols;
    uint64_t *panel = bnn_take(&scratch, f->n_steps * LANES * size);
    uint64_t *masks = bnn_take(&scratch, f->n_steps * size);
    uint64_t *planes = bnn_take(&scratch, words_bytes(f));
    bnn_word_planes(f, b, planes);
    for (i64 p = 0; p < n_positions; p += LANES) {
        bnn_run runs[LANES];
        i64 n_runs = bnn_runs(p, bnn_min(p + LANES, n_positions), b.rows, b.cols, runs);
        bnn_fill_words(f, b, runs, n_runs, planes, panel, masks);
        multiply_tile(f, b, filters, runs, n_runs, (const uint8_t *)panel, masks);
    }
}

/* A unit: a part of the filters on a band. */
static void convolve_units(void *context, i64 begin, i64 end, int thread) {
    const bnn_forward *f = context;
    for (i64 unit = begin, next; unit < end; unit = next) {
        i64 band = unit / f->n_parts, first = band * f->n_parts;
        next = bnn_min(end, first + f->n_parts);
        bnn_filters filters = {(unit - first) * f->part,
                               bnn_min(f->n_filters, (next - first) * f->part)};
        if (f->words)
            convolve_words(f, bnn_band_at(f->g, band), filters, f->per_thread[thread]);
        else
            convolve_nibbles(f, bnn_band_at(f->g, band), filters, f->per_thread[thread]);
    }
}

static void convolve_block(bnn_forward *f) {
    const bnn_conv *g = f->g;
    i64 n_bands = bnn_n_bands(g), few = n_bands < FEW_BANDS * bnn_threads();
    f->n_channels = bnn_min(g->channels, g->c / g->group - f->channel);
    f->n_filters = bnn_min(g->filters, g->m / g->group - f->filter);
    f->n_steps = bnn_ceil_div(f->n_channels, f->words ? 64 : 4) * g->kh * g->kw;
    f->part = bnn_round_up(bnn_ceil_div(f->n_filters, few ? bnn_threads() : 1), STRINGS);
    f->n_parts = bnn_ceil_div(f->n_filters, f->part);
    bnn_parallel(bnn_round_up(f->n_filters, STRINGS), 2 * STRINGS,
                 f->words ? bnn_index_words : index_filters, f);
    bnn_parallel(n_bands * f->n_parts, 1, convolve_units, f);
}

/* y (N, M, Ho, Wo) = the convolution of x (N, C, H, W) with w (M, C / group, kh, kw), both packed;
   y is float32, int16 or float16, the last with all channels in one block.
   Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_conv_b1b1(const bnn_conv *g, const uint8_t *x, const uint8_t *w, void *y,
                             i64 y_type, uint8_t *memory, i64 n_bytes) {
    if (is_depthwise(g))
        return bnn_conv_depthwise_b1b1(g, x, w, y, y_type, memory, n_bytes);
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 x_bytes = g->n * bnn_ceil_div(g->c * g->h * g->w, 8), taps = g->kh * g->kw;
    bnn_forward f = {.g = g, .cores = bnn_best_cores(), .x = x, .x_end = x + x_bytes, .w = w, .y = y,
                 .y_type = y_type, .per_thread = per_thread,
                 .words = bnn_fills_words(g->channels) ? bnn_best_word_cores() : NULL};
    f.phase = g->cols + (g->kw - 1) * g->dw / g->sw;
    f.pitch = f.phase * g->sw;
    f.in_rows = (g->rows - 1) * g->sh + (g->kh - 1) * g->dh + 1;
    f.n_channels = g->channels;
    f.n_steps = bnn_ceil_div(g->channels, 4) * taps;
    f.indices = bnn_take(&scratch, bnn_round_up(g->filters, STRINGS) * f.n_steps);
    i64 share = bnn_round_up(f.n_steps * LANES + 64, 64) + bnn_round_up(lines_bytes(&f), 64) +
                bnn_round_up(planes_bytes(&f, g->samples), 64);
    if (!bnn_share(&scratch, share, per_thread)) return 0;
    for (f.group = 0; f.group < g->group; f.group++)
        for (f.channel = 0; f.channel < g->c / g->group; f.channel += g->channels)
            for (f.filter = 0; f.filter < g->m / g->group; f.filter += g->filters)
                convolve_block(&f);
    return 1;
}
