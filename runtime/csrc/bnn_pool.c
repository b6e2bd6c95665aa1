/* Pooling over (planes, h, w) and the gradient of max pooling; a plane is one sample's channel.

   A row of outputs goes in tiles: each tap of the window is a loop along the tile, so that there
   are no tests for padding inside. */
#include "bnn_variants.h"

#include <math.h>
#include <stdatomic.h>

enum { TILE = 64 };

/* Output o of an axis has tap k on element o * stride + k * dilation - begin. */
struct window {
    i64 h, w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    i64 begin_h, begin_w, end_h, end_w;
};

struct pool {
    const float *x;
    float *y;
    i64 *indices;
    struct window g;
    int counts_pad;
};

/* A tile's outputs first .. last - 1, on row y. */
struct tile {
    i64 y, first, last;
};

/* The outputs of the tile whose tap `offset` lies inside the row, and the first one's element. */
BNN_INLINE i64 inside(const struct window *g, const struct tile *t, i64 stride, i64 offset,
                      i64 *first) {
    i64 least = offset < 0 ? bnn_ceil_div(-offset, stride) : 0;
    i64 most = offset < g->w ? (g->w - 1 - offset) / stride + 1 : 0;
    *first = bnn_max(t->first, least);
    return bnn_min(t->last, most) - *first;
}

/* Whether v is the maximum after b: the first of equal ones stays, NaN beats any number. */
BNN_INLINE int beats(float v, float b) { return !(v <= b) & (b == b); }

/* *best = max(*best, *v) in every lane, and *at = *place where that is *v; also where *at < 0. */
BNN_INLINE void take_better(v8f *best, v8i *at, const v8f *v, const v8i *place) {
    const v8i take = (*at < 0) | (~(*v <= *best) & (*best == *best));
    v8i old, new;
    memcpy(&old, best, sizeof old), memcpy(&new, v, sizeof new);
    old = (take & new) | (~take & old);
    memcpy(best, &old, sizeof old);
    *at = (take & *place) | (~take & *at);
}

/* x[0], x[stride] .. x[7 stride], and nothing behind that is read. */
BNN_INLINE void load_strided(v8f *v, const float *x, int32_t stride) {
    if (stride == 2) {
        v8f first, second;
        memcpy(&first, x, sizeof first), memcpy(&second, x + 7, sizeof second);
        *v = __builtin_shuffle(first, second, (v8i){0, 2, 4, 6, 9, 11, 13, 15});
    } else {
        memcpy(v, x, sizeof *v);
    }
}

/* best[j] = max(best[j], x[j * stride]), with its place. */
BNN_INLINE void max_tap(const float *x, int32_t n, int32_t stride, int32_t place, float *best,
                        int32_t *at) {
    const v8i lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    int32_t j = 0;
    for (; stride <= 2 && n >= 8 && j < n; j += 8) {
        j = j + 8 <= n ? j : n - 8; /* the last 8 again: a tap seen twice changes nothing */
        v8f v, b;
        v8i old, here = place + (j + lanes) * stride;
        load_strided(&v, x + j * stride, stride);
        memcpy(&b, best + j, sizeof b), memcpy(&old, at + j, sizeof old);
        take_better(&b, &old, &v, &here);
        memcpy(best + j, &b, sizeof b), memcpy(at + j, &old, sizeof old);
    }
    for (; j < n; j++) {
        float v = x[j * stride];
        if (at[j] >= 0 && !beats(v, best[j])) continue;
        best[j] = v;
        at[j] = place + j * stride;
    }
}

BNN_INLINE void max_tile(const float *plane, const struct window *g, const struct tile *t,
                         i64 stride, float *best, int32_t *at) {
    for (i64 j = 0; j < t->last - t->first; j++) best[j] = -INFINITY, at[j] = -1;
    for (i64 ky = 0; ky < g->kernel_h; ky++) {
        i64 row = t->y * g->stride_h + ky * g->dilation_h - g->begin_h;
        if (row < 0 || row >= g->h) continue;
        for (i64 kx = 0; kx < g->kernel_w; kx++) {
            i64 first, offset = kx * g->dilation_w - g->begin_w;
            i64 n = inside(g, t, stride, offset, &first), j = first - t->first;
            if (n <= 0) continue;
            i64 place = row * g->w + first * stride + offset;
            max_tap(plane + place, (int32_t)n, (int32_t)stride, (int32_t)place, best + j, at + j);
        }
    }
}

BNN_INLINE void max_pool_plane(const struct pool *p, i64 plane, i64 stride) {
    const struct window *g = &p->g;
    const i64 start = plane * g->h * g->w;
    float best[TILE];
    int32_t at[TILE];
    for (i64 y = 0; y < g->out_h; y++)
        for (i64 first = 0; first < g->out_w; first += TILE) {
            struct tile t = {y, first, bnn_min(first + TILE, g->out_w)};
            max_tile(p->x + start, g, &t, stride, best, at);
            i64 out = (plane * g->out_h + y) * g->out_w + first, n = t.last - first;
            memcpy(p->y + out, best, (size_t)n * sizeof *best);
            if (!p->indices) continue;
            for (i64 j = 0; j < n; j++) p->indices[out + j] = start + (at[j] < 0 ? 0 : at[j]);
        }
}

/* Elements 0, 2 .. 14 and 1, 3 .. 15. */
BNN_INLINE void load_pairs(v8f *even, v8f *odd, const float *x) {
    v8f first, second;
    memcpy(&first, x, sizeof first), memcpy(&second, x + 8, sizeof second);
    *even = __builtin_shuffle(first, second, (v8i){0, 2, 4, 6, 8, 10, 12, 14});
    *odd = __builtin_shuffle(first, second, (v8i){1, 3, 5, 7, 9, 11, 13, 15});
}

/* The 2 x 2 windows of the rows at top and top + w; the commonest pooling by far. */
BNN_INLINE void max_of_pairs(const float *top, int32_t w, int32_t n, float *best, int32_t *at) {
    const v8i lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    const float *bottom = top + w;
    int32_t j = 0;
    for (; n >= 8 && j < n; j += 8) {
        j = j + 8 <= n ? j : n - 8; /* the last 8 again */
        v8f a, b, c, d;
        load_pairs(&a, &b, top + 2 * j);
        load_pairs(&c, &d, bottom + 2 * j);
        v8i here = 2 * (j + lanes), right = here + 1, below = here + w, last = below + 1;
        take_better(&a, &here, &b, &right);
        take_better(&a, &here, &c, &below);
        take_better(&a, &here, &d, &last);
        memcpy(best + j, &a, sizeof a), memcpy(at + j, &here, sizeof here);
    }
    for (; j < n; j++) { /* by arithmetic: which of the four it is cannot be predicted */
        const float quad[4] = {top[2 * j], top[2 * j + 1], bottom[2 * j], bottom[2 * j + 1]};
        int upper = beats(quad[1], quad[0]), lower = 2 + beats(quad[3], quad[2]);
        int low = beats(quad[lower], quad[upper]), which = low * lower + (1 - low) * upper;
        best[j] = quad[which];
        at[j] = 2 * j + (which & 1) + (which >> 1) * w;
    }
}

BNN_INLINE void max_pool_plane_2_by_2(const struct pool *p, i64 plane) {
    const struct window *g = &p->g;
    int32_t at[TILE];
    for (i64 y = 0; y < g->out_h; y++)
        for (i64 first = 0; first < g->out_w; first += TILE) {
            const i64 start = (plane * g->h + 2 * y) * g->w + 2 * first;
            const i64 out = (plane * g->out_h + y) * g->out_w + first;
            const i64 n = bnn_min(TILE, g->out_w - first);
            max_of_pairs(p->x + start, (int32_t)g->w, (int32_t)n, p->y + out, at);
            if (!p->indices) continue;
            for (i64 j = 0; j < n; j++) p->indices[out + j] = start + at[j];
        }
}

/* Whether all windows are 2 x 2, side by side, and inside. */
static int is_2_by_2(const struct window *g) {
    return g->kernel_h == 2 && g->kernel_w == 2 && g->stride_h == 2 && g->stride_w == 2 &&
           g->dilation_h == 1 && g->dilation_w == 1 && g->begin_h == 0 && g->begin_w == 0 &&
           2 * g->out_h <= g->h && 2 * g->out_w <= g->w;
}

BNN_INLINE void max_pool_f32(void *context, i64 begin, i64 end) {
    const struct pool *p = context;
    const int pairs = is_2_by_2(&p->g);
    for (i64 plane = begin; plane < end; plane++) { /* constants, so that the loops vectorise */
        if (pairs) max_pool_plane_2_by_2(p, plane);
        else if (p->g.stride_w == 1) max_pool_plane(p, plane, 1);
        else if (p->g.stride_w == 2) max_pool_plane(p, plane, 2);
        else max_pool_plane(p, plane, p->g.stride_w);
    }
}

BNN_INLINE void sum_tap(const float *x, int32_t n, int32_t stride, float *sum) {
    BNN_SAME_OR_APART
    for (int32_t j = 0; j < n; j++) sum[j] += x[j * stride];
}

BNN_INLINE void sum_tile(const float *plane, const struct window *g, const struct tile *t,
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
    const struct window *g = &p->g;
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

BNN_INLINE void global_average_pool_f32(void *context, i64 begin, i64 end) {
    const struct pool *p = context;
    const i64 n = p->g.w;
    for (i64 plane = begin; plane < end; plane++) {
        const float *x = p->x + plane * n;
        v4d a, b, sums[2] = {{0}};
        i64 i = 0;
        for (; i + 8 <= n; i += 8) {
            bnn_load_wide(&a, x + i);
            bnn_load_wide(&b, x + i + 4);
            sums[0] += a, sums[1] += b;
        }
        for (; i < n; i++) sums[0][i % 4] += x[i];
        a = sums[0] + sums[1];
        p->y[plane] = (float)(bnn_sum4(&a) / (double)n);
    }
}

BNN_BOTH(max_pool_f32)
BNN_BOTH(average_pool_f32)
BNN_BOTH(global_average_pool_f32)

/* `window` is the 14 numbers of struct window; h * w must fit 31 bits. indices may be NULL; they
   count through all planes, and are that of a plane's start for a window all in the padding. */
BNN_EXPORT void bnn_max_pool_f32(const float *x, float *y, i64 *indices, const i64 *window,
                                 i64 planes) {
    struct pool p = {.x = x, .y = y, .indices = indices};
    memcpy(&p.g, window, sizeof p.g);
    bnn_parallel(planes, bnn_grain_of(p.g.h * p.g.w), BNN_PICK(max_pool_f32), &p);
}

/* The divisor counts the elements inside, and the padding if `counts_pad`. */
BNN_EXPORT void bnn_average_pool_f32(const float *x, float *y, const i64 *window, i64 planes,
                                     i64 counts_pad) {
    struct pool p = {.x = x, .y = y, .counts_pad = counts_pad != 0};
    memcpy(&p.g, window, sizeof p.g);
    bnn_parallel(planes, bnn_grain_of(p.g.h * p.g.w), BNN_PICK(average_pool_f32), &p);
}

BNN_EXPORT void bnn_global_average_pool_f32(const float *x, float *y, i64 planes, i64 length) {
    struct pool p = {.x = x, .y = y, .g = {.w = length}};
    bnn_parallel(planes, bnn_grain_of(length), BNN_PICK(global_average_pool_f32), &p);
}

struct scatter {
    const float *dy;
    const i64 *indices;
    float *dx;
    i64 plane_in, plane_out; /* elements of a plane of dx, and of dy */
    atomic_int strays;
};

static void max_pool_grad_f32(void *context, i64 begin, i64 end, int thread) {
    struct scatter *s = context;
    (void)thread;
    for (i64 plane = begin; plane < end; plane++) {
        const i64 start = plane * s->plane_in;
        const float *dy = s->dy + plane * s->plane_out;
        const i64 *indices = s->indices + plane * s->plane_out;
        float *dx = s->dx + start;
        memset(dx, 0, (size_t)s->plane_in * sizeof *dx);
        for (i64 j = 0; j < s->plane_out; j++) {
            uint64_t at = (uint64_t)(indices[j] - start);
            if (at < (uint64_t)s->plane_in) dx[at] += dy[j];
            else s->strays = 1;
        }
    }
}

/* dx = 0, then dx[indices[j]] += dy[j] in order. Returns whether every index is in the plane of its
   dy; if not, dx is not the gradient. */
BNN_EXPORT int bnn_max_pool_grad_f32(const float *dy, const i64 *indices, float *dx, i64 planes,
                                     i64 plane_in, i64 plane_out) {
    struct scatter s = {dy, indices, dx, plane_in, plane_out, 0};
    bnn_parallel(planes, bnn_grain_of(plane_in), max_pool_grad_f32, &s);
    return !s.strays;
}
