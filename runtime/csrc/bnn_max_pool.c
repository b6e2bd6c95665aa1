/* Max pooling over (planes, h, w); a plane is one sample's channel.

   A row of outputs goes in tiles: each tap of the window is a loop along the tile, so that there
   are no tests for padding inside. A maximum is known by its tap; that becomes an index into the
   input, or a place in the window of a few bits: a sample's places follow one another, least bit
   first, without gaps; samples start at a byte. */
#include "bnn_tiles.h"
#include "bnn_window.h"

#include <math.h>

enum {
    MAX_TAPS = 1024, /* in a window */
    MAX_SPAN = 1024  /* elements of a row under a tile, where they have to be converted */
};

struct pool {
    const void *x;
    void *y;
    enum bnn_type type;
    i64 *indices;    /* or NULL */
    uint8_t *packed; /* or NULL */
    struct bnn_window g;
    i64 together, n_bits, row_bytes; /* planes whose places are whole bytes; bits of a place */
    int32_t offsets[MAX_TAPS];       /* of the taps, from the window's first element */
};

/* Places on their way into bytes. */
struct writer {
    uint8_t *out;
    uint64_t bits;
    int n_bits;
};

BNN_INLINE void put(struct writer *w, uint32_t bits, int n_bits) {
    w->bits |= (uint64_t)bits << w->n_bits;
    w->n_bits += n_bits;
    if (w->n_bits < 32) return;
    uint32_t word = (uint32_t)w->bits; /* little-endian, as all supported machines are */
    memcpy(w->out, &word, sizeof word);
    w->out += sizeof word, w->bits >>= 32, w->n_bits -= 32;
}

BNN_INLINE void put_rest(struct writer *w) {
    for (; w->n_bits > 0; w->n_bits -= 8, w->bits >>= 8) *w->out++ = (uint8_t)w->bits;
}

BNN_INLINE void put_places(struct writer *w, const int32_t *tap, i64 n, int n_bits) {
    const v8i lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    i64 j = 0;
    for (; n_bits <= 4 && j + 8 <= n; j += 8) {
        v8i v;
        memcpy(&v, tap + j, sizeof v);
        v = (v & ((1 << n_bits) - 1)) << lanes * n_bits;
        const int32_t low = v[0] | v[1] | v[2] | v[3], high = v[4] | v[5] | v[6] | v[7];
        put(w, (uint32_t)(low | high), 8 * n_bits);
    }
    for (; j < n; j++) put(w, (uint32_t)tap[j] & ((1u << n_bits) - 1), n_bits);
}

/* Whether v is the maximum after b: the first of equal ones stays, NaN beats any number. */
BNN_INLINE int beats(float v, float b) { return !(v <= b) & (b == b); }

/* *best = max(*best, *v) in every lane, and *tap = `number` where that is *v; also if *tap < 0. */
BNN_INLINE void take_better(v8f *best, v8i *tap, const v8f *v, int32_t number) {
    const v8i take = (*tap < 0) | (~(*v <= *best) & (*best == *best));
    v8i old, new;
    memcpy(&old, best, sizeof old), memcpy(&new, v, sizeof new);
    old = (take & new) | (~take & old);
    memcpy(best, &old, sizeof old);
    *tap = (take & number) | (~take & *tap);
}

/* x[0], x[stride] .. x[7 stride], and nothing behind that is read. */
BNN_INLINE void load_strided(v8f *v, const float *x, int32_t stride) {
    if (stride == 2) {
        v8f first, second;
        memcpy(&first, x, sizeof first), memcpy(&second, x + 7, sizeof second);
        *v = BNN_SHUFFLE(v8i, first, second, 0, 2, 4, 6, 9, 11, 13, 15);
    } else {
        memcpy(v, x, sizeof *v);
    }
}

/* best[j] = max(best[j], x[j * stride]), with its tap. */
BNN_INLINE void max_tap(const float *x, int32_t n, int32_t stride, int32_t number, float *best,
                        int32_t *tap) {
    int32_t j = 0;
    for (; stride <= 2 && n >= 8 && j < n; j += 8) {
        j = j + 8 <= n ? j : n - 8; /* the last 8 again: a tap seen twice changes nothing */
        v8f v, b;
        v8i old;
        load_strided(&v, x + j * stride, stride);
        memcpy(&b, best + j, sizeof b), memcpy(&old, tap + j, sizeof old);
        take_better(&b, &old, &v, number);
        memcpy(best + j, &b, sizeof b), memcpy(tap + j, &old, sizeof old);
    }
    for (; j < n; j++) {
        float v = x[j * stride];
        if (tap[j] >= 0 && !beats(v, best[j])) continue;
        best[j] = v;
        tap[j] = number;
    }
}

/* The maxima of a tile of the plane at element `start`. */
BNN_INLINE void max_tile(const struct pool *p, i64 start, const struct tile *t, i64 stride,
                         float *best, int32_t *tap) {
    const struct bnn_window *g = &p->g;
    float room[MAX_SPAN];
    for (i64 j = 0; j < t->last - t->first; j++) best[j] = -INFINITY, tap[j] = -1;
    /* What the tile's windows see of a row. */
    const i64 left = bnn_max(0, t->first * stride - g->begin_w);
    const i64 end = (t->last - 1) * stride + (g->kernel_w - 1) * g->dilation_w - g->begin_w + 1;
    const i64 span = bnn_min(g->w, end) - left;
    for (i64 ky = 0; ky < g->kernel_h; ky++) {
        i64 row = t->y * g->stride_h + ky * g->dilation_h - g->begin_h;
        if (row < 0 || row >= g->h || span <= 0) continue;
        const float *x = bnn_floats(p->x, start + row * g->w + left, span, p->type, room);
        for (i64 kx = 0; kx < g->kernel_w; kx++) {
            i64 first, offset = kx * g->dilation_w - g->begin_w;
            i64 n = inside(g, t, stride, offset, &first), j = first - t->first;
            if (n <= 0) continue;
            max_tap(x + first * stride + offset - left, (int32_t)n, (int32_t)stride,
                    (int32_t)(ky * g->kernel_w + kx), best + j, tap + j);
        }
    }
}

/* Elements 0, 2 .. 14 and 1, 3 .. 15. */
BNN_INLINE void load_pairs(v8f *even, v8f *odd, const float *x) {
    v8f first, second;
    memcpy(&first, x, sizeof first), memcpy(&second, x + 8, sizeof second);
    *even = BNN_SHUFFLE(v8i, first, second, 0, 2, 4, 6, 8, 10, 12, 14);
    *odd = BNN_SHUFFLE(v8i, first, second, 1, 3, 5, 7, 9, 11, 13, 15);
}

/* The 2 x 2 windows of two rows; the commonest pooling by far. */
BNN_INLINE void max_of_pairs(const float *top, const float *bottom, int32_t n, float *best,
                             int32_t *tap) {
    int32_t j = 0;
    for (; n >= 8 && j < n; j += 8) {
        j = j + 8 <= n ? j : n - 8; /* the last 8 again */
        v8f a, b, c, d;
        v8i which = {0};
        load_pairs(&a, &b, top + 2 * j);
        load_pairs(&c, &d, bottom + 2 * j);
        take_better(&a, &which, &b, 1);
        take_better(&a, &which, &c, 2);
        take_better(&a, &which, &d, 3);
        memcpy(best + j, &a, sizeof a), memcpy(tap + j, &which, sizeof which);
    }
    for (; j < n; j++) { /* by arithmetic: which of the four it is cannot be predicted */
        const float quad[4] = {top[2 * j], top[2 * j + 1], bottom[2 * j], bottom[2 * j + 1]};
        int upper = beats(quad[1], quad[0]), lower = 2 + beats(quad[3], quad[2]);
        int low = beats(quad[lower], quad[upper]), which = low * lower + (1 - low) * upper;
        best[j] = quad[which];
        tap[j] = which;
    }
}

/* The maxima of `rows` rows of the tile, where all windows are 2 x 2, side by side, and inside; more
   rows than one are whole, and the input has nothing between them. */
BNN_INLINE void max_tile_2_by_2(const struct pool *p, i64 start, const struct tile *t, i64 rows,
                                float *best, int32_t *tap) {
    float room[4 * TILE], top[2 * TILE], bottom[2 * TILE];
    const i64 n = t->last - t->first, at = start + 2 * (t->y * p->g.w + t->first);
    if (rows == 1) {
        const float *upper = bnn_floats(p->x, at, 2 * n, p->type, top);
        const float *lower = bnn_floats(p->x, at + p->g.w, 2 * n, p->type, bottom);
        max_of_pairs(upper, lower, (int32_t)n, best, tap);
        return;
    }
    const float *x = bnn_floats(p->x, at, 4 * n * rows, p->type, room);
    for (i64 row = 0; row < rows; row++) { /* narrow rows, put behind one another */
        memcpy(top + row * 2 * n, x + row * 4 * n, (size_t)(2 * n) * sizeof *top);
        memcpy(bottom + row * 2 * n, x + row * 4 * n + 2 * n, (size_t)(2 * n) * sizeof *top);
    }
    max_of_pairs(top, bottom, (int32_t)(rows * n), best, tap);
}

static int is_2_by_2(const struct bnn_window *g) {
    return g->kernel_h == 2 && g->kernel_w == 2 && g->stride_h == 2 && g->stride_w == 2 &&
           g->dilation_h == 1 && g->dilation_w == 1 && g->begin_h == 0 && g->begin_w == 0 &&
           2 * g->out_h <= g->h && 2 * g->out_w <= g->w;
}

/* Indices through all planes; that of the plane's start for a window all in the padding. */
BNN_INLINE void put_indices(const struct pool *p, i64 start, const struct tile *t,
                            const int32_t *tap, i64 *indices) {
    const struct bnn_window *g = &p->g;
    i64 origin = start + (t->y * g->stride_h - g->begin_h) * g->w - g->begin_w;
    origin += t->first * g->stride_w;
    for (i64 j = 0; j < t->last - t->first; j++)
        indices[j] = tap[j] < 0 ? start : origin + j * g->stride_w + p->offsets[tap[j]];
}

BNN_INLINE void max_pool_plane(const struct pool *p, i64 plane, i64 stride, int pairs,
                               struct writer *places) {
    const struct bnn_window *g = &p->g;
    const i64 start = plane * g->h * g->w;
    const i64 together = pairs && g->w == 2 * g->out_w ? bnn_max(1, TILE / g->out_w) : 1;
    float best[TILE];
    int32_t tap[TILE];
    for (i64 y = 0, rows; y < g->out_h; y += rows) {
        rows = bnn_min(together, g->out_h - y);
        for (i64 first = 0; first < g->out_w; first += TILE) {
            const struct tile t = {y, first, bnn_min(first + TILE, g->out_w)};
            const i64 out = (plane * g->out_h + y) * g->out_w + first, n = t.last - first;
            if (pairs) max_tile_2_by_2(p, start, &t, rows, best, tap);
            else max_tile(p, start, &t, stride, best, tap);
            if (p->type == BNN_F32)
                memcpy((float *)p->y + out, best, (size_t)(rows * n) * sizeof *best);
            else bnn_keep(best, p->y, out, rows * n, p->type);
            if (p->packed) put_places(places, tap, rows * n, (int)p->n_bits);
            for (i64 row = 0; p->indices && row < rows; row++) {
                const struct tile line = {y + row, first, t.last};
                put_indices(p, start, &line, tap + row * n, p->indices + out + row * n);
            }
        }
    }
}

/* Runs of planes that start at a byte. */
BNN_INLINE void max_pool(void *context, i64 begin, i64 end) {
    const struct pool *p = context;
    const struct bnn_window *g = &p->g;
    const int pairs = is_2_by_2(g);
    for (i64 run = begin; run < end; run++) {
        const i64 bits = p->together * g->out_h * g->out_w * p->n_bits;
        struct writer places = {p->packed ? p->packed + run * bnn_ceil_div(bits, 8) : NULL, 0, 0};
        for (i64 i = run * p->together; i < (run + 1) * p->together; i++) {
            /* constants, so that the loops vectorise */
            if (pairs) max_pool_plane(p, i, 2, 1, &places);
            else if (g->stride_w == 1) max_pool_plane(p, i, 1, 0, &places);
            else if (g->stride_w == 2) max_pool_plane(p, i, 2, 0, &places);
            else max_pool_plane(p, i, g->stride_w, 0, &places);
        }
        if (p->packed) put_rest(&places);
    }
}

BNN_BOTH(max_pool)

static void offsets_of_taps(const struct bnn_window *g, int32_t *offsets) {
    for (i64 tap = 0; tap < g->kernel_h * g->kernel_w; tap++)
        offsets[tap] = (int32_t)(tap / g->kernel_w * g->dilation_h * g->w +
                                 tap % g->kernel_w * g->dilation_w);
}

/* Whether the windows fit the tables here. */
static int fits(const struct bnn_window *g, enum bnn_type type) {
    const i64 span = TILE * g->stride_w + g->kernel_w * g->dilation_w;
    return g->kernel_h * g->kernel_w <= MAX_TAPS && (type == BNN_F32 || span <= MAX_SPAN);
}

/* x and y are of `type`; `window` is the 14 numbers of struct bnn_window; h * w must fit 31 bits.
   indices may be NULL, or they count through all planes; packed may be NULL, or it has samples of
   whole bytes, of `n_bits` a place. Returns whether it has done that: not for huge windows. */
BNN_EXPORT int bnn_max_pool(const void *x, void *y, i64 *indices, uint8_t *packed,
                            const i64 *window, i64 type, i64 samples, i64 channels, i64 n_bits) {
    struct pool p = {.x = x, .y = y, .type = type, .indices = indices, .packed = packed,
                     .n_bits = n_bits, .together = 1};
    memcpy(&p.g, window, sizeof p.g);
    if (!fits(&p.g, p.type)) return 0;
    offsets_of_taps(&p.g, p.offsets);
    if (packed && p.g.out_h * p.g.out_w * n_bits % 8) p.together = channels;
    const i64 grain = bnn_grain_of(8 * p.g.h * p.g.w * p.together);
    bnn_parallel(samples * channels / bnn_max(1, p.together), grain, BNN_PICK(max_pool), &p);
    return 1;
}
