/* Planes of depthwise convolutions: a band of one, with its padding, split by the phases of the
   strides. What a tap meets at consecutive positions lies side by side, and every tap is one shift
   of one string of floats. */
#ifndef BNN_DEPTHWISE_H
#define BNN_DEPTHWISE_H

#include "bnn_real.h"

/* A plane of x (height, width) and the grid of positions that read it. */
typedef struct {
    i64 height, width, rows, cols, step_y, step_x;
    i64 low_y, low_x;         /* the least tap: position 0 reads from here on */
    i64 phase_rows, pitch;    /* of a phase in the copy of a band */
    i64 band_rows;            /* positions */
} grid;

typedef struct {
    i64 y, x, number;
} tap;

/* The copy (step_y phases, step_x phases, phase_rows, pitch) of the rows that positions row ..
   row + n_rows - 1 read. */
static inline void copy_band(const bnn_real_cores *cores, bnn_floats x, i64 first, const grid *p,
                             i64 row, i64 n_rows, float *out) {
    i64 used = n_rows + p->phase_rows - p->band_rows;
    for (i64 phase_y = 0; phase_y < p->step_y; phase_y++) {
        for (i64 phase_x = 0; phase_x < p->step_x; phase_x++) {
            float *to = out + (phase_y * p->step_x + phase_x) * p->phase_rows * p->pitch;
            i64 left = p->low_x + phase_x;
            i64 low = left < 0 ? bnn_min(p->pitch, bnn_ceil_div(-left, p->step_x)) : 0;
            i64 high = left < p->width ? (p->width - 1 - left) / p->step_x + 1 : 0;
            high = bnn_clamp(high, low, p->pitch);
            i64 top = p->low_y + phase_y + row * p->step_y;
            i64 begin = bnn_min(used, bnn_ceil_div(bnn_max(-top, 0), p->step_y));
            i64 end = bnn_clamp(bnn_ceil_div(p->height - top, p->step_y), begin, used);
            size_t row_bytes = (size_t)p->pitch * sizeof(float);
            memset(to, 0, (size_t)begin * row_bytes);
            cores->pad(x, first + (top + begin * p->step_y) * p->width + left,
                       p->step_y * p->width, end - begin, p->step_x, low, high, p->pitch,
                       to + begin * p->pitch);
            memset(to + end * p->pitch, 0, (size_t)(used - end) * row_bytes);
        }
    }
}

/* Where a tap finds what position 0 of a band meets. */
static inline i64 shift(const grid *p, tap t) {
    i64 y = t.y - p->low_y, x = t.x - p->low_x;
    return ((y % p->step_y * p->step_x + x % p->step_x) * p->phase_rows + y / p->step_y) *
               p->pitch + x / p->step_x;
}

static inline i64 copy_floats(const grid *p) {
    return p->step_y * p->step_x * p->phase_rows * p->pitch + 4 * LANES16;
}
static inline i64 band_floats(const grid *p) { return p->band_rows * p->pitch + 4 * LANES16; }

/* Rows of the source that a band reads, or as many positions, at most; in eights. */
static inline i64 decoded_floats(const grid *p) {
    i64 rows = bnn_min(p->phase_rows * p->step_y, p->height);
    return bnn_max(rows * p->width, p->band_rows * p->cols) + 8;
}

/* Positions `rows` x `cols` whose taps reach from `low` over `span` elements of the source. */
static inline grid make_grid(i64 height, i64 width, i64 rows, i64 cols, i64 step_y, i64 step_x,
                             tap low, tap span, i64 band_rows) {
    grid p = {.height = height, .width = width, .rows = rows, .cols = cols, .step_y = step_y,
              .step_x = step_x, .low_y = low.y, .low_x = low.x,
              .band_rows = bnn_min(rows, band_rows)};
    p.phase_rows = p.band_rows + (span.y - 1) / step_y;
    p.pitch = cols + (span.x - 1) / step_x;
    return p;
}

/* The grid of the convolution itself. */
static inline grid forward_grid(const bnn_conv *g) {
    tap span = {(g->kh - 1) * g->dh + 1, (g->kw - 1) * g->dw + 1, 0};
    return make_grid(g->h, g->w, g->ho, g->wo, g->sh, g->sw, (tap){-g->pt, -g->pl, 0}, span,
                     g->rows);
}

static inline void forward_offsets(const bnn_conv *g, const grid *p, i64 *offsets) {
    for (i64 t = 0; t < g->kh * g->kw; t++) {
        tap at = {t / g->kw * g->dh - g->pt, t % g->kw * g->dw - g->pl, t};
        offsets[t] = shift(p, at);
    }
}

/* What has room for every phase of the input gradient. */
static inline grid largest_phase(const bnn_conv *g) {
    tap span = {(g->kh - 1) * g->dh / g->sh + 1, (g->kw - 1) * g->dw / g->sw + 1, 0};
    return make_grid(g->ho, g->wo, bnn_ceil_div(g->h, g->sh), bnn_ceil_div(g->w, g->sw), 1, 1,
                     (tap){0, 0, 0}, span, g->rows);
}

/* The grid of the input positions of one phase, which read dy; and the taps that they meet. */
static inline grid phase_grid(const bnn_conv *g, i64 phase_y, i64 phase_x, tap *taps, i64 *n_taps) {
    i64 count = 0;
    tap low = {0, 0, 0}, high = {0, 0, 0};
    for (i64 ky = 0; ky < g->kh; ky++) {
        i64 y = phase_y + g->pt - ky * g->dh;
        for (i64 kx = 0; kx < g->kw; kx++) {
            i64 x = phase_x + g->pl - kx * g->dw;
            if (y % g->sh || x % g->sw) continue;
            tap t = {y / g->sh, x / g->sw, ky * g->kw + kx};
            low = count ? (tap){bnn_min(low.y, t.y), bnn_min(low.x, t.x), 0} : t;
            high = count ? (tap){bnn_max(high.y, t.y), bnn_max(high.x, t.x), 0} : t;
            taps[count++] = t;
        }
    }
    *n_taps = count;
    tap span = {high.y - low.y + 1, high.x - low.x + 1, 0};
    return make_grid(g->ho, g->wo, bnn_ceil_div(g->h - phase_y, g->sh),
                     bnn_ceil_div(g->w - phase_x, g->sw), 1, 1, low, span, g->rows);
}

static inline i64 floats_bytes(i64 n) {
    return bnn_round_up(n * (i64)sizeof(float), 64);
}

/* Binary ones, as the kernels of bnn_conv_b1b1.c, bnn_conv_input_grad_b1.c and
   bnn_conv_weight_grad_b1.c, which call them. */
static inline int is_depthwise(const bnn_conv *g) { return g->group == g->c && g->c > 1; }

int bnn_conv_depthwise_b1b1(const bnn_conv *g, const uint8_t *x, const uint8_t *w, void *y,
                            i64 y_type, uint8_t *memory, i64 n_bytes);
int bnn_conv_depthwise_input_grad_b1(const bnn_conv *g, const void *dy, const float *dy_unit,
                                     const uint8_t *w, void *dx, i64 dy_type, i64 dx_type,
                                     uint8_t *memory, i64 n_bytes);
int bnn_conv_depthwise_weight_grad_b1(const bnn_conv *g, const uint8_t *x, const void *dy,
                                      const float *dy_unit, void *dw, const bnn_update *update,
                                      i64 dy_type, i64 dw_type, uint8_t *memory, i64 n_bytes);

#endif
