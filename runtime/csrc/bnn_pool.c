/* Average pooling over (planes, h, w); a plane is one sample's channel.

   A row of outputs goes in tiles: each tap of the window is a loop along the tile, so that there
   are no tests for padding inside. */
#include "bnn_window.h"

struct pool {
    const float *x;
    float *y;
    struct bnn_window g;
    int counts_pad;
};

BNN_INLINE void sum_tap(const float *x, int32_t n, int32_t stride, float *sum) {
    BNN_SAME_OR_APART
    for (int32_t j = 0; j < n; j++) sum[j] += x[j * stride];
}

BNN_INLINE void sum_tile(const float *plane, const struct bnn_window *g, const struct tile *t,
                         i64 stride, float *sum) {
    for (i64 j = 0; j < t->last - t->first; j++) sum[j] = 0;
    for (i64 ky = 0; ky < g->kernel_h; ky++) {
        i64 row = t->y * g->stride_h + ky * g->dilation_h - g->begin_h;
        if (row < 0 || row >= g->h) continue;
        for (i64 kx = 0; kx < g->kernel_w; kx++) {
            i64 first, offset = kx * g->dilation_w - g->begin_w;
            i64 n = inside(g, t, stride, offset, &first);
            if (n <= 0) continue;
            sum_tap(plane + row * g->w + first * stride + offset, (int32_t)n, (int32_t)stride,
                    sum + first - t->first);
        }
    }
}

/* Taps on elements low .. high - 1, the first of them on `element`. */
BNN_INLINE i64 taps_in(i64 element, i64 kernel, i64 dilation, i64 low, i64 high) {
    i64 count = 0;
    for (i64 k = 0; k < kernel; k++, element += dilation) count += element >= low && element < high;
    return count;
}

BNN_INLINE void average_pool_plane(const struct pool *p, i64 plane, i64 stride) {
    const struct bnn_window *g = &p->g;
    const i64 pad = p->counts_pad;
    float sum[TILE], columns[TILE];
    for (i64 first = 0; first < g->out_w; first += TILE) {
        const i64 n = bnn_min(TILE, g->out_w - first);
        for (i64 j = 0; j < n; j++)
            columns[j] = (float)taps_in((first + j) * stride - g->begin_w, g->kernel_w,
                                        g->dilation_w, -pad * g->begin_w, g->w + pad * g->end_w);
        for (i64 y = 0; y < g->out_h; y++) {
            const struct tile t = {y, first, first + n};
            const float rows = (float)taps_in(y * g->stride_h - g->begin_h, g->kernel_h,
                                              g->dilation_h, -pad * g->begin_h,
                                              g->h + pad * g->end_h);
            float *out = p->y + (plane * g->out_h + y) * g->out_w + first;
            sum_tile(p->x + plane * g->h * g->w, g, &t, stride, sum);
            for (i64 j = 0; j < n; j++) out[j] = sum[j] / (rows * columns[j]);
        }
    }
}

BNN_INLINE void average_pool_f32(void *context, i64 begin, i64 end) {
    const struct pool *p = context;
    for (i64 plane = begin; plane < end; plane++) {
        if (p->g.stride_w == 1) average_pool_plane(p, plane, 1);
        else if (p->g.stride_w == 2) average_pool_plane(p, plane, 2);
        else average_pool_plane(p, plane, p->g.stride_w);
    }
}

BNN_BOTH(average_pool_f32)

/* `window` is the 14 numbers of struct bnn_window; the divisor counts the elements inside, and the
   padding if `counts_pad`. */
BNN_EXPORT void bnn_average_pool_f32(const float *x, float *y, const i64 *window, i64 planes,
                                     i64 counts_pad) {
    struct pool p = {.x = x, .y = y, .counts_pad = counts_pad != 0};
    memcpy(&p.g, window, sizeof p.g);
    bnn_parallel(planes, bnn_grain_of(p.g.h * p.g.w), BNN_PICK(average_pool_f32), &p);
}
