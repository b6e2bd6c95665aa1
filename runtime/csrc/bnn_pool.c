/* Average pooling over (planes, h, w), and its gradient; a plane is one sample's channel.

   A row of outputs goes in tiles: each tap of the window is a loop along the tile, so that there
   are no tests for padding inside. Maps are float32 or float16, sums float32. */
#include "bnn_tiles.h"
#include "bnn_window.h"

struct pool {
    const void *x;
    void *y;
    const float *counts; /* of the gradient: what each window of a plane divides by */
    enum bnn_type type;
    struct bnn_window g;
    int counts_pad;
};

BNN_INLINE void sum_tap(const float *x, int32_t n, int32_t stride, float *sum) {
    BNN_SAME_OR_APART
    for (int32_t j = 0; j < n; j++) sum[j] += x[j * stride];
}

BNN_INLINE void sum_tile(const struct pool *p, i64 plane, const struct tile *t, i64 stride,
                         float *sum) {
    const struct bnn_window *g = &p->g;
    float room[BNN_TILE];
    for (i64 j = 0; j < t->last - t->first; j++) sum[j] = 0;
    for (i64 ky = 0; ky < g->kernel_h; ky++) {
        i64 row = t->y * g->stride_h + ky * g->dilation_h - g->begin_h;
        if (row < 0 || row >= g->h) continue;
        for (i64 kx = 0; kx < g->kernel_w; kx++) {
            i64 first, offset = kx * g->dilation_w - g->begin_w;
            i64 n = inside(g, t, stride, offset, &first);
            if (n <= 0) continue;
            const i64 at = (plane * g->h + row) * g->w + first * stride + offset;
            const float *x = bnn_floats(p->x, at, (n - 1) * stride + 1, p->type, room);
            sum_tap(x, (int32_t)n, (int32_t)stride, sum + first - t->first);
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
    const i64 most = bnn_max(1, bnn_min(TILE, BNN_TILE / stride)); /* whose taps fit a tile */
    float sum[TILE], columns[TILE], room[TILE];
    for (i64 first = 0; first < g->out_w; first += most) {
        const i64 n = bnn_min(most, g->out_w - first);
        for (i64 j = 0; j < n; j++)
            columns[j] = (float)taps_in((first + j) * stride - g->begin_w, g->kernel_w,
                                        g->dilation_w, -pad * g->begin_w, g->w + pad * g->end_w);
        for (i64 y = 0; y < g->out_h; y++) {
            const struct tile t = {y, first, first + n};
            const float rows = (float)taps_in(y * g->stride_h - g->begin_h, g->kernel_h,
                                              g->dilation_h, -pad * g->begin_h,
                                              g->h + pad * g->end_h);
            const i64 at = (plane * g->out_h + y) * g->out_w + first;
            float *out = bnn_room(p->y, at, p->type, room);
            sum_tile(p, plane, &t, stride, sum);
            for (i64 j = 0; j < n; j++) out[j] = sum[j] / (rows * columns[j]);
            bnn_keep(out, p->y, at, n, p->type);
        }
    }
}

BNN_INLINE void average_pool(void *context, i64 begin, i64 end) {
    const struct pool *p = context;
    for (i64 plane = begin; plane < end; plane++) {
        if (p->g.stride_w == 1) average_pool_plane(p, plane, 1);
        else if (p->g.stride_w == 2) average_pool_plane(p, plane, 2);
        else average_pool_plane(p, plane, p->g.stride_w);
    }
}

BNN_BOTH(average_pool)

/* x (planes, h, w) and y (planes, out_h, out_w), both of `type`: float32 or float16. `window` is the
   14 numbers of struct bnn_window; the divisor counts the elements inside, and the padding if
   `counts_pad`. */
BNN_EXPORT void bnn_average_pool(const void *x, void *y, const i64 *window, i64 type, i64 planes,
                                 i64 counts_pad) {
    struct pool p = {.x = x, .y = y, .type = type, .counts_pad = counts_pad != 0};
    memcpy(&p.g, window, sizeof p.g);
    bnn_parallel(planes, bnn_grain_of(8 * p.g.h * p.g.w), BNN_PICK(average_pool), &p);
}

/* The outputs whose tap is on one of the columns low .. high - 1, from *first on. */
BNN_INLINE i64 outputs_on(const struct bnn_window *g, i64 stride, i64 offset, i64 low, i64 high,
                          i64 *first) {
    *first = low > offset ? bnn_ceil_div(low - offset, stride) : 0;
    return high > offset ? bnn_min(g->out_w, bnn_ceil_div(high - offset, stride)) - *first : 0;
}

/* What the windows of row `row` of dy give to the columns low .. high - 1 of a row. */
BNN_INLINE void spread_row(const struct pool *p, i64 plane, i64 row, i64 stride, i64 low, i64 high,
                           float *sum) {
    const struct bnn_window *g = &p->g;
    float room[TILE], share[TILE];
    for (i64 kx = 0; kx < g->kernel_w; kx++) {
        i64 first, offset = kx * g->dilation_w - g->begin_w;
        const i64 n = outputs_on(g, stride, offset, low, high, &first);
        if (n <= 0) continue;
        const i64 at = row * g->out_w + first;
        const float *counts = p->counts + at;
        const float *dy = bnn_floats(p->x, plane * g->out_h * g->out_w + at, n, p->type, room);
        float *to = sum + first * stride + offset - low;
        for (i64 j = 0; j < n; j++) share[j] = dy[j] / counts[j];
        for (i64 j = 0; j < n; j++) to[j * stride] += share[j];
    }
}

BNN_INLINE void average_pool_grad_plane(const struct pool *p, i64 plane, i64 stride) {
    const struct bnn_window *g = &p->g;
    float sum[TILE];
    for (i64 y = 0; y < g->h; y++) {
        for (i64 low = 0; low < g->w; low += TILE) {
            const i64 high = bnn_min(g->w, low + TILE);
            for (i64 j = 0; j < high - low; j++) sum[j] = 0;
            for (i64 ky = 0; ky < g->kernel_h; ky++) {
                const i64 above = y + g->begin_h - ky * g->dilation_h;
                if (above < 0 || above % g->stride_h || above / g->stride_h >= g->out_h) continue;
                spread_row(p, plane, above / g->stride_h, stride, low, high, sum);
            }
            const i64 at = (plane * g->h + y) * g->w + low;
            if (p->type == BNN_F32) memcpy((float *)p->y + at, sum, (size_t)(high - low) * 4);
            else bnn_keep(sum, p->y, at, high - low, p->type);
        }
    }
}

BNN_INLINE void average_pool_grad(void *context, i64 begin, i64 end) {
    const struct pool *p = context;
    for (i64 plane = begin; plane < end; plane++) {
        if (p->g.stride_w == 1) average_pool_grad_plane(p, plane, 1);
        else if (p->g.stride_w == 2) average_pool_grad_plane(p, plane, 2);
        else average_pool_grad_plane(p, plane, p->g.stride_w);
    }
}

BNN_BOTH(average_pool_grad)

/* dx (planes, h, w) of dy (planes, out_h, out_w), both of `type`: the sum of dy / counts over the
   windows that an element is in. counts: (out_h, out_w). */
BNN_EXPORT void bnn_average_pool_grad(const void *dy, const float *counts, void *dx,
                                      const i64 *window, i64 type, i64 planes) {
    struct pool p = {.x = dy, .y = dx, .counts = counts, .type = type};
    memcpy(&p.g, window, sizeof p.g);
    bnn_parallel(planes, bnn_grain_of(8 * p.g.h * p.g.w), BNN_PICK(average_pool_grad), &p);
}
