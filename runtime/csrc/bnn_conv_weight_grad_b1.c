/* Weight gradient of a binary convolution, x kept as bits, by signed sums over positions.

   Lanes are filters, rows are pairs of channel and tap, terms are output positions. For a band of
   positions the bits of x are laid out so that the 48 positions of a block are one word for every
   row: a copy for each tap column, shifted (and thinned by the stride), padding 0. Each row of the
   output is filled up to whole bytes; dy is 0 there. See
   bnn_gemm_f32b1f32.c for the method.

   A bit of padding is 0 and so counts as -1: dy is added back for each tap that lies outside. Each
   band's sums are added to dw, in the order of the bands, whatever the number of threads. Those of
   a dy in int8 are integers, which are multiplied by the unit at last; for a sink they go on from
   band to band where they are. */
#include "bnn_depthwise.h"

typedef struct {
    const bnn_conv *g;
    const bnn_cores *cores;
    const uint8_t *x, *x_end;
    bnn_map dy;
    float *dw;     /* where it is summed, if it has no sink */
    bnn_sink sink; /* takes each row of a unit when all bands are summed */
    bnn_scratch *per_thread;
    i64 row_bytes;  /* of a row of positions */
    i64 phase_rows; /* rows of x that lie a whole number of strides apart */
    i64 plane;      /* bytes of one channel for one tap column */
    int padded;     /* whether any tap lies outside at any position */
} gradient;

/* Of a dy in int8 rows are int8, and tables int16. */
typedef struct {
    uint8_t *bits;
    i64 *offsets;
    void *rows, *tables;
    int16_t *narrow; /* sums of integers, until they are added to `sums`: 0 where they are not */
    float *sums, *outside; /* outside: (taps, 64) */
    float *finished; /* for a sink: dw of the unit, (filters, channels, taps), or a piece of a tile */
} tile;

typedef struct {
    i64 group, channel, n_channels, filter, n_filters; /* within the group */
} block;

/* Every second bit, the lower half of the result. */
static inline uint64_t thin(uint64_t v) {
    v &= 0x5555555555555555ull;
    v = (v | v >> 1) & 0x3333333333333333ull;
    v = (v | v >> 2) & 0x0F0F0F0F0F0F0F0Full;
    v = (v | v >> 4) & 0x00FF00FF00FF00FFull;
    v = (v | v >> 8) & 0x0000FFFF0000FFFFull;
    return (v | v >> 16) & 0xFFFFFFFFull;
}

static inline uint64_t ones(i64 n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

/* As bnn_bits_at; bits before the string are 0. first > -64. */
static inline uint64_t bits_from(const gradient *d, i64 first) {
    return first < 0 ? bnn_bits_at(d->x, d->x_end, 0) << -first
                     : bnn_bits_at(d->x, d->x_end, first);
}

/* n bits of a row of x from column `col` on, `stride` apart; 0 in the padding. The bits lie within
   57 columns if the stride is 1 or 2. */
static inline uint64_t row_bits(const gradient *d, i64 first_bit, i64 col, i64 stride, i64 n) {
    i64 low = bnn_max(-col, 0), high = d->g->w - col;
    if (low >= (n - 1) * stride + 1 || high <= 0) return 0;
    if (stride <= 2) {
        uint64_t v = bnn_bits_at(d->x, d->x_end, first_bit + col + low) & ones(high - low);
        return (stride == 2 ? thin(v << low) : v << low) & ones(n);
    }
    uint64_t v = 0;
    for (i64 i = 0; i < n; i++)
        if (i * stride >= low && i * stride < high)
            v |= (bnn_bits_at(d->x, d->x_end, first_bit + col + i * stride) & 1) << i;
    return v;
}

/* The bits of one row of x, for a band whose positions begin at column `col` of x. Writes eight
   bytes at a time; what is too much the next row writes over. */
static inline void fill_line(const gradient *d, i64 first_bit, i64 col, i64 n_cols, uint8_t *out) {
    i64 step = d->g->sw == 1 ? 7 : 3; /* 56 columns, or 47 for 24 bits */
    for (i64 i = 0; i < d->row_bytes; i += step) {
        i64 n = bnn_min(8 * step, n_cols - 8 * i);
        uint64_t v = n > 0 ? row_bits(d, first_bit, col + 8 * i * d->g->sw, d->g->sw, n) : 0;
        memcpy(out + i, &v, 8);
    }
}

/* All rows of a plane that is kept just as x is, but for the shift by some columns: 8 or 16 wide,
   a whole number of rows in 32 bits. */
static void fill_narrow(const gradient *d, i64 first_bit, i64 shift, i64 begin, i64 end,
                        uint8_t *out) {
    i64 width = d->g->w;
    uint64_t columns = ones(bnn_clamp(width - shift, 0, width)) &
                       ~ones(bnn_clamp(-shift, 0, width));
    for (i64 filled = width; filled < 32; filled *= 2) columns |= columns << filled;
    for (i64 i = 0; i < (end - begin) * width; i += 32) {
        uint64_t v = bits_from(d, first_bit + begin * width + i + shift) & columns;
        memcpy(out + i / 8, &v, 4);
    }
}

/* All rows of a plane whose columns fit a word: one word each, as in fill_line. */
static void fill_words(const gradient *d, i64 first_bit, i64 col, i64 n_cols, i64 begin, i64 end,
                       uint8_t *out) {
    i64 width = d->g->w, low = bnn_clamp(-col, 0, n_cols), high = bnn_clamp(width - col, low, n_cols);
    uint64_t columns = ones(high) & ~ones(low);
    if (!columns) col = 0;
    for (i64 y = begin; y < end; y++, out += d->row_bytes) {
        uint64_t v = bits_from(d, first_bit + y * width + col) & columns;
        memcpy(out, &v, 8);
    }
}

/* The bits of one channel for one tap column: rows from `top` on, those of each phase together. */
static void fill_plane(const gradient *d, i64 first_bit, i64 top, i64 col, i64 n_cols,
                       uint8_t *out) {
    const bnn_conv *g = d->g;
    i64 n_rows = d->phase_rows, row = d->row_bytes;
    if (g->sh == 1 && g->sw == 1 && n_cols <= 56) {
        i64 begin = bnn_clamp(top, 0, g->h), end = bnn_clamp(top + n_rows, begin, g->h);
        uint8_t *inside = out + (begin - top) * row, *below = out + (end - top) * row;
        memset(out, 0, (size_t)(inside - out));
        if (g->w == n_cols && 8 * row == g->w && row <= 2)
            fill_narrow(d, first_bit, bnn_clamp(col, -g->w, g->w), begin, end, inside);
        else
            fill_words(d, first_bit, col, n_cols, begin, end, inside);
        memset(below, 0, (size_t)((top + n_rows - end) * row));
        return;
    }
    for (i64 phase = 0; phase < g->sh; phase++) {
        for (i64 r = 0; r < n_rows; r++, out += row) {
            i64 y = top + r * g->sh + phase;
            if (y < 0 || y >= g->h)
                memset(out, 0, (size_t)row);
            else
                fill_line(d, first_bit + y * g->w, col, n_cols, out);
        }
    }
}

/* bits (samples, channels, kw, stride phases, rows, row_bytes). */
static void fill_bits(const gradient *d, bnn_band b, block k, uint8_t *bits) {
    const bnn_conv *g = d->g;
    i64 sample_bytes = bnn_ceil_div(g->c * g->h * g->w, 8);
    i64 channel = k.group * (g->c / g->group) + k.channel;
    for (i64 s = 0; s < b.samples; s++) {
        for (i64 c = 0; c < k.n_channels; c++) {
            i64 first = 8 * (b.sample + s) * sample_bytes + (channel + c) * g->h * g->w;
            for (i64 kx = 0; kx < g->kw; kx++, bits += d->plane)
                fill_plane(d, first, b.row * g->sh - g->pt,
                           b.col * g->sw + kx * g->dw - g->pl, b.cols, bits);
        }
    }
}

static inline int is_whole(const gradient *d) { return bnn_is_whole(&d->dy); }

/* Whether a tile's sums are those of all bands so far. */
static inline int goes_on(const gradient *d) {
    return is_whole(d) && d->sink.take && bnn_n_bands(d->g) > 1;
}

/* Row i of dy by position, 64 lanes. */
static inline void *row_at(const gradient *d, void *rows, i64 i) {
    return (uint8_t *)rows + i * LANES * bnn_size_of(is_whole(d) ? BNN_I8 : BNN_F32);
}

/* Add the dy of a position to all taps that lie outside there. */
static void add_outside(const gradient *d, i64 y, i64 x, const void *dy, float *outside) {
    const bnn_conv *g = d->g;
    i64 top = y * g->sh - g->pt, left = x * g->sw - g->pl;
    i64 bottom = top + (g->kh - 1) * g->dh, right = left + (g->kw - 1) * g->dw;
    if (top >= 0 && left >= 0 && bottom < g->h && right < g->w) return;
    for (i64 ky = 0; ky < g->kh; ky++) {
        i64 at_y = top + ky * g->dh;
        for (i64 kx = 0; kx < g->kw; kx++, outside += LANES) {
            i64 at_x = left + kx * g->dw;
            if (at_y >= 0 && at_y < g->h && at_x >= 0 && at_x < g->w) continue;
            if (is_whole(d))
                d->cores->int8.accumulate(outside, dy, LANES);
            else
                d->cores->accumulate(outside, dy, LANES);
        }
    }
}

/* dy by position for a piece of a row of the band: bytes at .. at + n_bytes - 1 of its bits. */
static void take_row(const gradient *d, bnn_band b, block k, i64 sample, i64 row, i64 at, i64 n_bytes,
                     tile t, void *rows) {
    const bnn_conv *g = d->g;
    i64 plane = g->ho * g->wo, filter = k.group * (g->m / g->group) + k.filter;
    i64 y = b.row + row, x = b.col + 8 * at, n_cols = bnn_clamp(b.cols - 8 * at, 0, 8 * n_bytes);
    i64 first = ((b.sample + sample) * g->m + filter) * plane + y * g->wo + x;
    uint8_t *behind = row_at(d, rows, n_cols), *end = row_at(d, rows, 8 * n_bytes);
    if (is_whole(d))
        bnn_turn_int8(d->cores, &d->dy, first, plane, n_cols, k.n_filters, rows);
    else
        bnn_turn(d->cores, &d->dy, first, plane, n_cols, k.n_filters, rows);
    memset(behind, 0, (size_t)(end - behind));
    if (!d->padded) return;
    for (i64 i = 0; i < n_cols; i++) add_outside(d, y, x + i, row_at(d, rows, i), t.outside);
}

static void flush(const gradient *d, block k, tile t) {
    d->cores->int8.flush(t.narrow, k.n_channels * d->g->kh * d->g->kw * LANES, t.sums);
}

/* One block of up to 48 positions: the band's bytes from `byte` on, whatever their rows. `largest`:
   what a sum of integers has come to at most. */
static void add_positions(const gradient *d, bnn_band b, block k, i64 sample, i64 byte, tile t,
                          i64 *largest) {
    const bnn_conv *g = d->g;
    i64 n_bytes = bnn_min(TERMS / 8, b.rows * d->row_bytes - byte);
    for (i64 i = 0, n; i < n_bytes; i += n) {
        i64 row = (byte + i) / d->row_bytes, at = (byte + i) % d->row_bytes;
        n = bnn_min(d->row_bytes - at, n_bytes - i);
        take_row(d, b, k, sample, row, at, n, t, row_at(d, t.rows, 8 * i));
    }
    const uint8_t *bits = t.bits + sample * k.n_channels * g->kw * d->plane;
    if (!is_whole(d)) {
        d->cores->sum(t.rows, LANES, 8 * n_bytes, bnn_round_up(k.n_filters, STRIP), bits + byte,
                      k.n_channels, g->kw * d->plane, t.offsets, g->kh * g->kw, t.tables, t.sums);
        return;
    }
    i64 more = d->cores->int8.bound(t.rows, LANES, 8 * n_bytes, k.n_filters);
    if (*largest + more > MOST) flush(d, k, t);
    *largest = more + (*largest + more > MOST ? 0 : *largest);
    d->cores->int8.sum(t.rows, LANES, 8 * n_bytes, bnn_round_up(k.n_filters, STRIP8), bits + byte,
                       k.n_channels, g->kw * d->plane, t.offsets, g->kh * g->kw, t.tables,
                       t.narrow);
}

static void add_band(const gradient *d, bnn_band b, block k, i64 band, tile t) {
    const bnn_conv *g = d->g;
    i64 taps = g->kh * g->kw, largest = 0;
    if (band == 0 || !goes_on(d))
        memset(t.sums, 0, (size_t)(k.n_channels * taps * LANES) * sizeof(float));
    memset(t.outside, 0, (size_t)(taps * LANES) * sizeof(float));
    for (i64 s = 0; s < b.samples; s++)
        for (i64 byte = 0; byte < b.rows * d->row_bytes; byte += TERMS / 8)
            add_positions(d, b, k, s, byte, t, &largest);
    if (is_whole(d)) flush(d, k, t);
    if (d->padded)
        for (i64 c = 0; c < k.n_channels; c++)
            d->cores->accumulate(t.sums + c * taps * LANES, t.outside, taps * LANES);
}

/* Channels of a tile that are handed on together: whole bytes of bits, and some 256 floats. */
static i64 piece_channels(const bnn_conv *g) {
    return bnn_min(g->channels, bnn_round_up(bnn_ceil_div(256, g->kh * g->kw), 8));
}

static i64 piece_bytes(const bnn_conv *g) {
    return LANES * piece_channels(g) * g->kh * g->kw * (i64)sizeof(float);
}

static i64 narrow_bytes(const gradient *d) {
    const bnn_conv *g = d->g;
    i64 sums = g->channels * g->kh * g->kw * LANES * (i64)sizeof(int16_t);
    if (!is_whole(d)) return 0;
    return d->sink.take ? bnn_max(sums, piece_bytes(g)) : sums;
}

/* Give the sink elements `from` .. from + n - 1 of the block's filters, which follow each other. */
static void hand_on(const gradient *d, block k, i64 from, float *dw, i64 n) {
    const bnn_conv *g = d->g;
    i64 row = k.group * (g->m / g->group) + k.filter;
    i64 start = k.channel * g->kh * g->kw + from;
    bnn_scale(&d->dy, dw, k.n_filters * n);
    for (i64 i = 0; i < k.n_filters; i++)
        d->sink.take(d->sink.context, row + i, start, dw + i * n, n);
}

/* Add the sums of a band to those of the bands before it, unless they go on; after the last one dw
   is finished. */
static void add_sums(const gradient *d, block k, i64 first, i64 band, tile t) {
    const bnn_conv *g = d->g;
    i64 taps = g->kh * g->kw, row = g->c / g->group * taps, n = k.n_channels * taps;
    i64 last = bnn_n_bands(g) - 1, piece = piece_channels(g) * taps;
    if (!d->sink.take) {
        float *dw = d->dw + (k.group * (g->m / g->group) + k.filter) * row + k.channel * taps;
        d->cores->spill(t.sums, n, k.n_filters, dw, row, band > 0);
        for (i64 i = 0; band == last && i < k.n_filters; i++) bnn_scale(&d->dy, dw + i * row, n);
    } else if (last > 0 && !goes_on(d)) {
        float *dw = t.finished + (k.filter - first) * n;
        d->cores->spill(t.sums, n, k.n_filters, dw, n, band > 0);
        if (band == last) hand_on(d, k, 0, dw, n);
    } else if (band == last) {
        for (i64 i = 0; i < n; i += piece) {
            i64 length = bnn_min(piece, n - i);
            d->cores->spill(t.sums + i * LANES, length, k.n_filters, t.finished, length, 0);
            hand_on(d, k, i, t.finished, length);
        }
        memset(t.narrow, 0, (size_t)narrow_bytes(d));
    }
}

/* Of a dy of integers it lies in `narrow`. */
static i64 finished_bytes(const gradient *d) {
    const bnn_conv *g = d->g;
    i64 held = g->filters * g->channels * g->kh * g->kw * (i64)sizeof(float);
    if (!d->sink.take || is_whole(d)) return 0;
    return bnn_n_bands(g) > 1 ? held : piece_bytes(g);
}

/* Of one tile, or of all tiles of a unit, which come back to them in each band. */
static i64 n_sums(const gradient *d) {
    const bnn_conv *g = d->g;
    return (goes_on(d) ? bnn_round_up(g->filters, LANES) : LANES) * g->channels * g->kh * g->kw;
}

static i64 bits_bytes(const gradient *d) {
    const bnn_conv *g = d->g;
    return g->samples * g->channels * g->kw * d->plane + 64;
}

static tile take_tile(const gradient *d, bnn_scratch scratch) {
    const bnn_conv *g = d->g;
    i64 taps = g->kh * g->kw, floats = sizeof(float);
    tile t = {.bits = bnn_take(&scratch, bits_bytes(d)),
              .offsets = bnn_take(&scratch, taps * 8),
              .rows = bnn_take(&scratch, TERMS * LANES * floats),
              .tables = bnn_take(&scratch, BNN_TABLES_BYTES),
              .sums = bnn_take(&scratch, n_sums(d) * floats),
              .narrow = bnn_take(&scratch, narrow_bytes(d)),
              .outside = bnn_take(&scratch, taps * LANES * floats),
              .finished = bnn_take(&scratch, finished_bytes(d))};
    if (is_whole(d)) t.finished = (float *)t.narrow;
    return t;
}

/* Filters of a unit of work. */
static i64 unit_filters(const gradient *d) { return is_whole(d) ? STRIP8 : STRIP; }

/* Some channels of a group with a strip of its filters or several, over the whole batch. */
static void add_unit(const gradient *d, block k, i64 first, i64 last, tile t) {
    const bnn_conv *g = d->g;
    i64 n = last - first, width = bnn_round_up(bnn_ceil_div(n, bnn_ceil_div(n, LANES)), STRIP);
    for (i64 band = 0; band < bnn_n_bands(g); band++) {
        bnn_band b = bnn_band_at(g, band);
        fill_bits(d, b, k, t.bits);
        tile own = t;
        for (k.filter = first; k.filter < last; k.filter += width) {
            k.n_filters = bnn_min(width, last - k.filter);
            add_band(d, b, k, band, own);
            add_sums(d, k, first, band, own);
            if (goes_on(d)) own.sums += g->channels * g->kh * g->kw * LANES;
        }
    }
}

/* Strips that follow each other share the bits of their channels, if one thread has them. */
static void add_units(void *context, i64 begin, i64 end, int thread) {
    const gradient *d = context;
    const bnn_conv *g = d->g;
    i64 channels = g->c / g->group, filters = g->m / g->group, width = unit_filters(d), n = 1;
    i64 n_channels = bnn_ceil_div(channels, g->channels), strips = bnn_ceil_div(filters, width);
    i64 most = bnn_max(1, g->filters / width);
    tile t = take_tile(d, d->per_thread[thread]);
    memset(t.rows, 0, TERMS * LANES * sizeof(float)); /* lanes that fill up the last vector */
    memset(t.narrow, 0, (size_t)narrow_bytes(d));
    for (i64 ky = 0; ky < g->kh; ky++)
        for (i64 kx = 0; kx < g->kw; kx++)
            t.offsets[ky * g->kw + kx] =
                kx * d->plane +
                (ky * g->dh % g->sh * d->phase_rows + ky * g->dh / g->sh) * d->row_bytes;
    for (i64 unit = begin; unit < end; unit += n) {
        i64 strip = unit % strips;
        block k = {.group = unit / (n_channels * strips),
                   .channel = unit / strips % n_channels * g->channels};
        k.n_channels = bnn_min(g->channels, channels - k.channel);
        n = bnn_min(bnn_min(most, strips - strip), end - unit);
        add_unit(d, k, strip * width, bnn_min((strip + n) * width, filters), t);
    }
}

/* dw (M, C / group, kh, kw) from x (N, C, H, W), packed, and dy (N, M, Ho, Wo), float32 or
   float16, or powers of two or int8 with their unit.
   dw: float32, or its signs (M, ceil(C / group kh kw / 8)) alone, a block of channels whole bytes;
   or NULL with an `update` of w (M, C / group, kh, kw), which takes dw as it is finished.
   Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_conv_weight_grad_b1(const bnn_conv *g, const uint8_t *x, const void *dy,
                                       const float *dy_unit, void *dw, const bnn_update *update,
                                       i64 dy_type, i64 dw_type, uint8_t *memory, i64 n_bytes) {
    if (is_depthwise(g))
        return bnn_conv_depthwise_weight_grad_b1(g, x, dy, dy_unit, dw, update, dy_type, dw_type,
                                                 memory, n_bytes);
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    bnn_sign_rows signs = {dw_type == BNN_U8 ? dw : NULL,
                           bnn_ceil_div(g->c / g->group * g->kh * g->kw, 8)};
    gradient d = {.g = g, .cores = bnn_best_cores(), .x = x,
                  .dy = bnn_map_of(dy, dy_type, dy_unit, g->m * g->ho * g->wo),
                  .dw = dw, .sink = bnn_sink_of(update, &signs),
                  .x_end = x + g->n * bnn_ceil_div(g->c * g->h * g->w, 8),
                  .row_bytes = bnn_ceil_div(g->cols, 8), .per_thread = per_thread};
    i64 bottom = (g->ho - 1) * g->sh - g->pt + (g->kh - 1) * g->dh;
    i64 right = (g->wo - 1) * g->sw - g->pl + (g->kw - 1) * g->dw;
    d.padded = g->pt > 0 || g->pl > 0 || bottom >= g->h || right >= g->w;
    d.phase_rows = g->rows + (g->kh - 1) * g->dh / g->sh;
    d.plane = d.phase_rows * g->sh * d.row_bytes;
    i64 taps = g->kh * g->kw, floats = sizeof(float);
    i64 share = bnn_round_up(bits_bytes(&d), 64) + bnn_round_up(taps * 8, 64) +
                BNN_TABLES_BYTES + ((TERMS + taps) * LANES + n_sums(&d)) * floats +
                bnn_round_up(finished_bytes(&d), 64) + narrow_bytes(&d);
    if (!bnn_share(&scratch, share, per_thread)) return 0;
    i64 filters = g->m / g->group, channels = g->c / g->group, width = unit_filters(&d);
    i64 n_units = g->group * bnn_ceil_div(channels, g->channels) * bnn_ceil_div(filters, width);
    bnn_parallel(n_units, bnn_grain_of_units(n_units, LANES / width), add_units, &d);
    return 1;
}
