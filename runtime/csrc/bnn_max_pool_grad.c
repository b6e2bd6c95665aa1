/* The gradient of max pooling over (planes, h, w), from indices or from places in windows. */
#include "bnn_places.h"
#include "bnn_tiles.h"

#include <stdatomic.h>

enum { TILE = 64 }; /* outputs of a row that are worked on together */

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

/* Halves are summed in float32, so many elements of a plane of dx at a time. */
enum { HALF_TILE = 1024 };

struct half_scatter {
    const bnn_half *dy;
    const i64 *indices;
    bnn_half *dx;
    i64 plane_in, plane_out;
    atomic_int strays;
};

static void max_pool_grad_f16(void *context, i64 begin, i64 end, int thread) {
    struct half_scatter *s = context;
    float sums[HALF_TILE];
    (void)thread;
    for (i64 plane = begin; plane < end; plane++) {
        const bnn_half *dy = s->dy + plane * s->plane_out;
        const i64 *indices = s->indices + plane * s->plane_out;
        for (i64 first = 0; first < s->plane_in; first += HALF_TILE) {
            const i64 n = bnn_min(HALF_TILE, s->plane_in - first);
            memset(sums, 0, sizeof sums);
            for (i64 j = 0; j < s->plane_out; j++) {
                const uint64_t at = (uint64_t)(indices[j] - plane * s->plane_in);
                if (at >= (uint64_t)s->plane_in) s->strays = 1;
                else if (at - (uint64_t)first < (uint64_t)n)
                    sums[at - (uint64_t)first] += bnn_half_to_float(dy[j]);
            }
            bnn_encode_halves(sums, s->dx + plane * s->plane_in + first, n);
        }
    }
}

BNN_EXPORT int bnn_max_pool_grad_f16(const bnn_half *dy, const i64 *indices, bnn_half *dx, i64 planes,
                                     i64 plane_in, i64 plane_out) {
    struct half_scatter s = {dy, indices, dx, plane_in, plane_out, 0};
    bnn_parallel(planes, bnn_grain_of(plane_in), max_pool_grad_f16, &s);
    return !s.strays;
}

struct spread {
    const void *dy;
    const uint8_t *packed;
    const int32_t *origin;
    void *dx;
    enum bnn_type type;
    i64 channels, h, w, out_h, out_w, n_bits, row_bytes;
    int pairs; /* the windows are 2 x 2, side by side, and inside */
    int32_t offsets[MAX_PLACES];
};

/* 0 .. 7 of `first` at 0, 2 .. 14 of y, and those of `second` between them; 0 + x, so no -0. */
BNN_INLINE void store_pairs(float *y, const v8f *first, const v8f *second) {
    const v8f low = BNN_SHUFFLE(v8i, *first, *second, 0, 8, 1, 9, 2, 10, 3, 11) + 0.0f;
    const v8f high = BNN_SHUFFLE(v8i, *first, *second, 4, 12, 5, 13, 6, 14, 7, 15) + 0.0f;
    memcpy(y, &low, sizeof low), memcpy(y + 8, &high, sizeof high);
}

/* Lane by lane: v where place is `wanted`, else 0. */
BNN_INLINE void chosen(v8f *y, const v8f *v, const v8i *place, int32_t wanted) {
    v8i bits;
    memcpy(&bits, v, sizeof bits);
    bits &= *place == wanted;
    memcpy(y, &bits, sizeof bits);
}

/* Two rows of dx under n windows: dy[j] at the place that place[j] says, 0 elsewhere. */
BNN_INLINE void spread_pairs(const float *dy, const int32_t *place, i64 n, float *top,
                             float *bottom) {
    i64 j = 0;
    for (; j + 8 <= n; j += 8) {
        v8f v, corner[4];
        v8i at;
        memcpy(&v, dy + j, sizeof v), memcpy(&at, place + j, sizeof at);
        for (int i = 0; i < 4; i++) chosen(corner + i, &v, &at, i);
        store_pairs(top + 2 * j, corner, corner + 1);
        store_pairs(bottom + 2 * j, corner + 2, corner + 3);
    }
    for (; j < n; j++) {
        for (int i = 0; i < 2; i++) {
            top[2 * j + i] = place[j] == i ? 0 + dy[j] : 0;
            bottom[2 * j + i] = place[j] == 2 + i ? 0 + dy[j] : 0;
        }
    }
}

/* Two bits each, eight at a time where they start at a byte. */
BNN_INLINE void take_pairs(struct reader *r, int32_t *place, i64 n) {
    const v8i shifts = {0, 2, 4, 6, 8, 10, 12, 14};
    i64 j = 0;
    for (; r->left == 0 && j + 8 <= n; j += 8, r->next += 2) {
        const int32_t both = r->next[0] | r->next[1] << 8;
        const v8i all = {both, both, both, both, both, both, both, both};
        const v8i eight = all >> shifts & 3;
        memcpy(place + j, &eight, sizeof eight);
    }
    for (; j < n; j++) place[j] = (int32_t)take(r, 2);
}

/* Elements of dx, made of floats. */
BNN_INLINE void fill(const struct spread *s, i64 at, const float *x, i64 n) {
    if (s->type == BNN_F32) memcpy((float *)s->dx + at, x, (size_t)n * sizeof *x);
    else bnn_keep(x, s->dx, at, n, s->type);
}

BNN_INLINE void clear(const struct spread *s, i64 at, i64 n) {
    const i64 size = bnn_size_of(s->type);
    memset((uint8_t *)s->dx + at * size, 0, (size_t)(n * size));
}

BNN_INLINE void spread_plane_2_by_2(const struct spread *s, i64 plane, struct reader *r) {
    float dy_room[TILE], top[2 * TILE], bottom[2 * TILE], both[4 * TILE];
    int32_t place[TILE];
    const i64 start = plane * s->h * s->w, used = 2 * s->out_w, unread = s->w - used;
    const i64 together = unread ? 1 : bnn_max(1, TILE / s->out_w);
    for (i64 y = 0, rows; y < s->out_h; y += rows) {
        rows = bnn_min(together, s->out_h - y);
        const i64 row = start + 2 * y * s->w;
        for (i64 first = 0; first < s->out_w; first += TILE) {
            const i64 n = rows * bnn_min(TILE, s->out_w - first);
            const i64 out = (plane * s->out_h + y) * s->out_w + first;
            take_pairs(r, place, n);
            spread_pairs(bnn_floats(s->dy, out, n, s->type, dy_room), place, n, top, bottom);
            if (rows == 1) {
                fill(s, row + 2 * first, top, 2 * n);
                fill(s, row + 2 * first + s->w, bottom, 2 * n);
                continue;
            }
            for (i64 i = 0; i < rows; i++) { /* narrow rows, of which `top` has several */
                memcpy(both + 2 * i * used, top + i * used, (size_t)used * sizeof *top);
                memcpy(both + (2 * i + 1) * used, bottom + i * used, (size_t)used * sizeof *top);
            }
            fill(s, row, both, 4 * n);
        }
        if (unread) clear(s, row + used, unread), clear(s, row + s->w + used, unread);
    }
    clear(s, start + 2 * s->out_h * s->w, (s->h - 2 * s->out_h) * s->w);
}

BNN_INLINE void spread_plane(const struct spread *s, i64 plane, struct reader *r) {
    const i64 outputs = s->out_h * s->out_w, elements = s->h * s->w;
    float room[MAX_SUMS];
    float *dx = bnn_room(s->dx, plane * elements, s->type, room);
    memset(dx, 0, (size_t)elements * sizeof *dx);
    for (i64 j = 0; j < outputs; j++) {
        const uint32_t offset = (uint32_t)s->offsets[take(r, (unsigned)s->n_bits)];
        const uint32_t at = (uint32_t)s->origin[j] + offset;
        if (at < (uint64_t)elements) dx[at] += bnn_float_at(s->dy, plane * outputs + j, s->type);
    }
    bnn_keep(dx, s->dx, plane * elements, elements, s->type);
}

BNN_INLINE void packed_max_pool_grad(void *context, i64 begin, i64 end) {
    const struct spread *s = context;
    const i64 plane_bits = s->out_h * s->out_w * s->n_bits;
    for (i64 plane = begin; plane < end; plane++) {
        const uint8_t *packed = s->packed + plane / s->channels * s->row_bytes;
        struct reader r = reader_at(packed, plane % s->channels * plane_bits);
        if (s->pairs) spread_plane_2_by_2(s, plane, &r);
        else spread_plane(s, plane, &r);
    }
}

BNN_BOTH(packed_max_pool_grad)

/* dx = 0, then dx[origin[j] + offset of j's place] += dy[j] in order, in each plane; dy and dx are
   of `type`, of int8 if no windows overlap. A dilated kernel is not wider than w. Returns whether it has done that: not for large
   planes of halves. */
BNN_EXPORT int bnn_packed_max_pool_grad(const void *dy, const uint8_t *packed,
                                        const int32_t *origin, void *dx, i64 type, i64 samples,
                                        i64 channels, i64 h, i64 w, i64 out_h, i64 out_w,
                                        i64 kernel_w, i64 dilation_h, i64 dilation_w, i64 n_bits,
                                        i64 pairs) {
    struct spread s = {.dy = dy, .packed = packed, .origin = origin, .dx = dx, .type = type,
                       .channels = channels, .h = h, .w = w, .out_h = out_h, .out_w = out_w,
                       .n_bits = n_bits, .pairs = (int)pairs};
    if (type != BNN_F32 && !pairs && h * w > MAX_SUMS) return 0;
    s.row_bytes = bnn_ceil_div(channels * out_h * out_w * n_bits, 8);
    bnn_place_offsets(s.offsets, n_bits, w, kernel_w, dilation_h, dilation_w);
    bnn_parallel(samples * channels, bnn_grain_of(h * w), BNN_PICK(packed_max_pool_grad), &s);
    return 1;
}
