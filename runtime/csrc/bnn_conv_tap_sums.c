/* What the taps of a convolution's kernel see of a gradient: sums of dy over the outputs whose tap
   lies inside the input. */
#include "bnn_tiles.h"
#include "bnn_window.h"

enum {
    MAX_OUTPUTS = 1 << 14, /* of a plane, whose sums are on the stack */
    MAX_ROWS = 1 << 10,
    SIDE = 4,
};

struct tap_sums {
    const void *dy;
    enum bnn_type type;
    float *sums;
    struct bnn_window g;
    i64 n, filters;
};

struct span {
    i64 first, last;
};

/* The outputs whose tap is inside, first .. last - 1. */
BNN_INLINE struct span outputs_of(i64 tap, i64 size, i64 outputs, i64 stride, i64 dilation,
                                  i64 begin) {
    const i64 offset = tap * dilation - begin;
    const i64 last = offset < size ? bnn_min(outputs, (size - 1 - offset) / stride + 1) : 0;
    return (struct span){offset < 0 ? bnn_ceil_div(-offset, stride) : 0, last};
}

/* The sums of n rows, of columns first .. last - 1: of SIDE at a time, each in its own order. */
BNN_INLINE void sum_rows(const double *x, i64 n, i64 width, struct span columns, double *sums) {
    double sum[SIDE] = {0};
    if (n == SIDE)
        for (i64 j = columns.first; j < columns.last; j++)
            for (int r = 0; r < SIDE; r++) sum[r] += x[r * width + j];
    else
        for (i64 r = 0; r < n; r++)
            for (i64 j = columns.first; j < columns.last; j++) sum[r] += x[r * width + j];
    for (i64 r = 0; r < n; r++) sums[r] = sum[r];
}

/* Filters begin .. end - 1: the planes of all samples are added up, then cut. */
BNN_INLINE void tap_sums(void *context, i64 begin, i64 end) {
    const struct tap_sums *p = context;
    const struct bnn_window *g = &p->g;
    const i64 outputs = g->out_h * g->out_w;
    double plane[MAX_OUTPUTS], rows[MAX_ROWS];
    float room[BNN_TILE];
    for (i64 filter = begin; filter < end; filter++) {
        float *sums = p->sums + filter * g->kernel_h * g->kernel_w;
        memset(plane, 0, (size_t)outputs * sizeof *plane);
        for (i64 at = 0; at < outputs; at += BNN_TILE) /* whose sums stay in the first cache */
            for (i64 n = 0; n < p->n; n++) {
                const i64 m = bnn_min(BNN_TILE, outputs - at);
                const i64 i = (n * p->filters + filter) * outputs + at;
                const float *dy = bnn_floats(p->dy, i, m, p->type, room);
                for (i64 j = 0; j < m; j++) plane[at + j] += dy[j];
            }
        for (i64 kx = 0; kx < g->kernel_w; kx++) {
            const struct span x =
                outputs_of(kx, g->w, g->out_w, g->stride_w, g->dilation_w, g->begin_w);
            for (i64 row = 0; row < g->out_h; row += SIDE)
                sum_rows(plane + row * g->out_w, bnn_min(SIDE, g->out_h - row), g->out_w, x,
                         rows + row);
            for (i64 ky = 0; ky < g->kernel_h; ky++) {
                const struct span y =
                    outputs_of(ky, g->h, g->out_h, g->stride_h, g->dilation_h, g->begin_h);
                double sum = 0;
                for (i64 row = y.first; row < y.last; row++) sum += rows[row];
                sums[ky * g->kernel_w + kx] = (float)sum;
            }
        }
    }
}

BNN_BOTH(tap_sums)

/* dy, of `type`: (n, filters, out_h, out_w); sums: (filters, kernel_h, kernel_w). `window` is the 14
   numbers of struct bnn_window. Returns whether it has done that: not for large planes. */
BNN_EXPORT int bnn_conv_tap_sums(const void *dy, float *sums, const i64 *window, i64 type, i64 n,
                                 i64 filters) {
    struct tap_sums p = {.dy = dy, .type = type, .sums = sums, .n = n, .filters = filters};
    memcpy(&p.g, window, sizeof p.g);
    if (p.g.out_h * p.g.out_w > MAX_OUTPUTS || p.g.out_h > MAX_ROWS) return 0;
    bnn_parallel(filters, bnn_grain_of(n * p.g.out_h * p.g.out_w), BNN_PICK(tap_sums), &p);
    return 1;
}
