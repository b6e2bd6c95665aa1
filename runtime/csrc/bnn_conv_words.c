/* Convolution of +-1 tensors kept as bits: XNOR and popcount by words of 64 channels.

   A row of x becomes a row of words, one a column, and a tap a shift of that row, as with nibbles in
   bnn_conv_b1b1.c. Which lanes lie outside depends on the tap alone: a mask. */
#include "bnn_conv_b1b1.h"

enum { COLUMNS = 56 }; /* bits of a string that are read at a time */

/* n <= COLUMNS columns of `n_strings` strings of bits, `pitch` apart, as words; in eights. */
static void turn_strings(const bnn_forward *f, const uint8_t *bits, const uint8_t *end, i64 first,
                         i64 pitch, i64 n_strings, i64 n, uint64_t *words) {
    uint64_t rows[64];
    for (i64 i = 0; i < n_strings; i++) rows[i] = bnn_bits_at(bits, end, first + i * pitch);
    for (i64 i = n_strings; i < 64; i++) rows[i] = 0;
    f->words->turn(rows, n, words);
}

/* Words of four filters, tap by tap, in the order of the panel. */
void bnn_index_words(void *context, i64 begin, i64 end, int thread) {
    const bnn_forward *f = context;
    const bnn_conv *g = f->g;
    i64 taps = g->kh * g->kw, row_bytes = bnn_ceil_div(g->c / g->group * taps, 8);
    uint64_t *indices = (uint64_t *)f->indices, words[64];
    (void)thread;
    for (i64 m = begin; m < end; m++) {
        uint64_t *out = indices + m / STRINGS * STRINGS * f->n_steps + m % STRINGS;
        const uint8_t *row = f->w + (f->group * (g->m / g->group) + f->filter + m) * row_bytes;
        for (i64 c = 0; c < f->n_channels; c += 64, out += taps * STRINGS) {
            i64 n = bnn_min(64, f->n_channels - c);
            for (i64 t = 0; t < taps; t += COLUMNS) {
                i64 n_taps = bnn_min(COLUMNS, taps - t);
                if (m < f->n_filters)
                    turn_strings(f, row, row + row_bytes, (f->channel + c) * taps + t, taps, n,
                                 n_taps, words);
                for (i64 k = 0; k < n_taps; k++)
                    out[(t + k) * STRINGS] = m < f->n_filters ? words[k] : 0;
            }
        }
    }
}

/* A row of words from column `left` of x on, whose bits are at `first`; by phases of the stride. */
static void place_words(const bnn_forward *f, i64 first, i64 n_channels, i64 left, uint64_t *out) {
    const bnn_conv *g = f->g;
    i64 low = bnn_clamp(-left, 0, f->pitch), high = bnn_clamp(g->w - left, low, f->pitch);
    uint64_t words[64];
    for (i64 i = low; i < high; i += COLUMNS) {
        i64 n = bnn_min(COLUMNS, high - i);
        turn_strings(f, f->x, f->x_end, first + left + i, g->h * g->w, n_channels, n, words);
        if (g->sw == 1)
            memcpy(out + i, words, (size_t)n * sizeof *words);
        else
            for (i64 k = 0; k < n; k++) out[(i + k) % g->sw * f->phase + (i + k) / g->sw] = words[k];
    }
}

/* What lies outside is left as it is: no mask has it. */
void bnn_word_planes(const bnn_forward *f, bnn_band b, uint64_t *planes) {
    const bnn_conv *g = f->g;
    i64 row_bytes = bnn_ceil_div(g->c * g->h * g->w, 8);
    i64 channel = f->group * (g->c / g->group) + f->channel;
    i64 top = b.row * g->sh - g->pt, left = b.col * g->sw - g->pl;
    for (i64 c = 0; c < f->n_channels; c += 64) {
        for (i64 s = 0; s < b.samples; s++) {
            i64 plane = 8 * (b.sample + s) * row_bytes + (channel + c) * g->h * g->w;
            for (i64 y = top; y < top + f->in_rows; y++, planes += f->pitch)
                if (y >= 0 && y < g->h)
                    place_words(f, plane + y * g->w, bnn_min(64, f->n_channels - c), left, planes);
        }
    }
}

/* The lanes of a run whose tap kx lies inside. */
static uint64_t lanes_inside(const bnn_conv *g, i64 col, bnn_run run, i64 kx) {
    i64 at = (col + run.col) * g->sw - g->pl + kx * g->dw;
    i64 begin = at < 0 ? bnn_min(run.n, bnn_ceil_div(-at, g->sw)) : 0;
    i64 end = at < g->w ? bnn_min(run.n, (g->w - 1 - at) / g->sw + 1) : 0;
    uint64_t below_end = end < 64 ? (1ull << end) - 1 : ~0ull;
    return begin < end ? (below_end & ~((1ull << begin) - 1)) << run.lane : 0;
}

void bnn_fill_words(const bnn_forward *f, bnn_band b, const bnn_run *runs, i64 n_runs,
                    const uint64_t *planes, uint64_t *panel, uint64_t *masks) {
    const bnn_conv *g = f->g;
    i64 taps = g->kh * g->kw;
    for (i64 c = 0; c < f->n_channels; c += 64, planes += b.samples * f->in_rows * f->pitch) {
        for (i64 t = 0; t < taps; t++, panel += LANES, masks++) {
            i64 ky = t / g->kw, kx = t % g->kw;
            const uint64_t *tap = planes + ky * g->dh * f->pitch + kx * g->dw % g->sw * f->phase +
                                  kx * g->dw / g->sw;
            *masks = c > 0 ? masks[-taps] : 0;
            for (i64 i = 0; i < n_runs; i++) {
                i64 row = runs[i].row * g->sh, y = b.row * g->sh + row - g->pt + ky * g->dh;
                if (c == 0 && y >= 0 && y < g->h) *masks |= lanes_inside(g, b.col, runs[i], kx);
                memcpy(panel + runs[i].lane,
                       tap + (runs[i].sample * f->in_rows + row) * f->pitch + runs[i].col,
                       (size_t)runs[i].n * sizeof *panel);
            }
        }
    }
}
