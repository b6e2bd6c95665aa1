/* The transposed convolution, position by position; for programs without numpy. */
#include "bnn_products.h"

/* y of sample n: filter m of x is added where its window lies. `g` is the convolution from y to x. */
static void add_filter(const bnn_conv *g, const float *x, const float *w, float *y, i64 n, i64 m) {
    const i64 group_channels = g->c / g->group, first = m / (g->m / g->group) * group_channels;
    for (i64 c = 0; c < group_channels; c++) {
        const float *taps = w + (m * group_channels + c) * g->kh * g->kw;
        float *plane = y + (n * g->c + first + c) * g->h * g->w;
        for (i64 i = 0; i < g->ho * g->wo; i++) {
            const float value = x[(n * g->m + m) * g->ho * g->wo + i];
            for (i64 tap = 0; tap < g->kh * g->kw; tap++) {
                const i64 row = i / g->wo * g->sh - g->pt + tap / g->kw * g->dh;
                const i64 column = i % g->wo * g->sw - g->pl + tap % g->kw * g->dw;
                if (row >= 0 && row < g->h && column >= 0 && column < g->w)
                    plane[row * g->w + column] += value * taps[tap];
            }
        }
    }
}

/* x (n, m, ho, wo), w (m, c / group, kh, kw), b (c) or NULL, y (n, c, h, w). */
BNN_EXPORT void bnn_conv_transpose_f32(const bnn_conv *g, const float *x, const float *w,
                                       const float *b, float *y) {
    for (i64 i = 0; i < g->n * g->c; i++)
        for (i64 j = 0; j < g->h * g->w; j++) y[i * g->h * g->w + j] = b ? b[i % g->c] : 0;
    for (i64 n = 0; n < g->n; n++)
        for (i64 m = 0; m < g->m; m++) add_filter(g, x, w, y, n, m);
}
