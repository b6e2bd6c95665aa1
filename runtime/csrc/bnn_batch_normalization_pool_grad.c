/* The gradient of max pooling over batch normalisation (L1), with a ReLU between them or without,
   from the pooled values, their places, and one bit an element: on which side of its channel's mean
   it lies. */
#include "bnn_lanes.h"
#include "bnn_normalization.h"
#include "bnn_places.h"

struct pool_norm_grad {
    const void *dy, *y;
    void *dx; /* of dy's type, of `width` channels from `first` on */
    enum bnn_type dy_type, y_type;
    const uint8_t *packed, *signs;
    const int32_t *origin;
    const float *scale, *bias, *inv_std;
    float *dscale, *dbias;
    int relu;
    float epsilon;
    i64 n, c, first, width, plane, outputs, n_bits;
    i64 place_bytes, sign_bytes; /* of a sample */
    int32_t offsets[MAX_PLACES];
};

/* Sums of d and of d (y - bias), at most a tile; d is dy, with a ReLU 0 where y is not above 0. */
BNN_INLINE void add_pooled(const float *dy, const float *y, i64 n, float bias, int relu,
                           double sums[2]) {
    v8f sum = {0}, along = {0};
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v8f d, at;
        memcpy(&d, dy + i, sizeof d), memcpy(&at, y + i, sizeof at);
        if (relu) d = (v8f)((v8i)d & (at > 0));
        sum += d;
        along += d * (at - bias);
    }
    for (int lane = 0; lane < 8; lane++) sums[0] += sum[lane], sums[1] += along[lane];
    for (; i < n; i++) {
        const float d = relu && !(y[i] > 0) ? 0 : dy[i];
        sums[0] += d;
        sums[1] += d * (y[i] - bias);
    }
}

/* Bits that are set among n from bit `first` of a row on. */
BNN_INLINE i64 count_bits(const uint8_t *row, i64 first, i64 n) {
    i64 count = 0, i = 0;
    for (; i < n && (first + i) % 8; i++) count += row[(first + i) / 8] >> (first + i) % 8 & 1;
    for (; i + 64 <= n; i += 64) {
        uint64_t word;
        memcpy(&word, row + (first + i) / 8, sizeof word);
        count += __builtin_popcountll(word);
    }
    for (; i < n; i++) count += row[(first + i) / 8] >> (first + i) % 8 & 1;
    return count;
}

/* dx = sum of d gain - drift[bit]. */
struct pool_drifts {
    float gain, drift[2];
};

BNN_INLINE struct pool_drifts finish_pooled(const struct pool_norm_grad *p, i64 c,
                                            const double sums[2], i64 n_set) {
    const float scale = p->scale[c], inv_std = p->inv_std[c];
    const double count = (double)(p->n * p->plane);
    const float mean = (float)(sums[0] / count), along = (float)(sums[1] / count);
    const float mean_sign = (float)(2 * (double)n_set / count - 1);
    const float rest = 1 - p->epsilon * inv_std * inv_std, size = rest > 0 ? sqrtf(rest) : 0;
    const float turn = (float)((scale > 0) - (scale < 0)) * size * along;
    struct pool_drifts d = {.gain = inv_std * scale};
    for (int bit = 0; bit < 2; bit++)
        d.drift[bit] = inv_std * (scale * mean + ((float)(2 * bit - 1) - mean_sign) * turn);
    if (p->dbias) p->dbias[c] = (float)sums[0];
    if (p->dscale) p->dscale[c] = scale != 0 ? (float)sums[1] / scale : 0;
    return d;
}

/* Adds up d of plane (sample, c) where each maximum was. What a ReLU leaves out is an added 0, as a
   branch would be taken half of the time. */
BNN_INLINE void scatter(const struct pool_norm_grad *p, i64 sample, i64 c, float *dx) {
    float dy_room[BNN_TILE], y_room[BNN_TILE], d[BNN_TILE];
    int32_t place[BNN_TILE];
    struct reader r = reader_at(p->packed + sample * p->place_bytes, c * p->outputs * p->n_bits);
    const i64 start = (sample * p->c + c) * p->outputs;
    memset(dx, 0, (size_t)p->plane * sizeof *dx);
    for (i64 first = 0; first < p->outputs; first += BNN_TILE) {
        const i64 n = bnn_min(BNN_TILE, p->outputs - first);
        const float *dy = bnn_floats(p->dy, start + first, n, p->dy_type, dy_room);
        const float *y = bnn_floats(p->y, start + first, n, p->y_type, y_room);
        const int all = !p->relu;
        for (i64 j = 0; j < n; j++) d[j] = (all | (y[j] > 0)) ? dy[j] : 0;
        take_places(&r, (unsigned)p->n_bits, place, n);
        for (i64 j = 0; j < n; j++) {
            const uint32_t at = (uint32_t)(p->origin[first + j] + p->offsets[place[j]]);
            if (at < (uint64_t)p->plane) dx[at] += d[j];
        }
    }
}

BNN_INLINE void drift(float *dx, i64 n, const uint8_t *row, i64 first, i64 row_bytes, int aligned,
                      const struct pool_drifts *d) {
    const v8i none = {0};
    int32_t low, high;
    memcpy(&low, d->drift, sizeof low), memcpy(&high, d->drift + 1, sizeof high);
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v8f v;
        v8i set;
        memcpy(&v, dx + i, sizeof v);
        lanes_of(&set, eight_bits(row, first + i, row_bytes, aligned));
        v = v * d->gain - (v8f)((none + low) ^ (set & ((none + low) ^ (none + high))));
        memcpy(dx + i, &v, sizeof v);
    }
    for (; i < n; i++)
        dx[i] = dx[i] * d->gain - d->drift[row[(first + i) / 8] >> (first + i) % 8 & 1];
}

/* Channels begin .. end - 1 of dx. */
BNN_INLINE void pool_norm_grad(void *context, i64 begin, i64 end) {
    const struct pool_norm_grad *p = context;
    float room[MAX_SUMS], dy_room[BNN_TILE], y_room[BNN_TILE];
    for (i64 k = begin; k < end; k++) {
        const i64 c = p->first + k;
        double sums[2] = {0};
        i64 n_set = 0;
        for (i64 n = 0; n < p->n; n++) {
            n_set += count_bits(p->signs + n * p->sign_bytes, c * p->plane, p->plane);
            for (i64 at = 0; at < p->outputs; at += BNN_TILE) {
                const i64 m = bnn_min(BNN_TILE, p->outputs - at);
                const i64 i = (n * p->c + c) * p->outputs + at;
                add_pooled(bnn_floats(p->dy, i, m, p->dy_type, dy_room),
                           bnn_floats(p->y, i, m, p->y_type, y_room), m, p->bias[c], p->relu,
                           sums);
            }
        }
        const struct pool_drifts d = finish_pooled(p, c, sums, n_set);
        for (i64 n = 0; n < p->n; n++) {
            const i64 start = (n * p->width + k) * p->plane;
            float *dx = bnn_room(p->dx, start, p->dy_type, room);
            scatter(p, n, c, dx);
            drift(dx, p->plane, p->signs + n * p->sign_bytes, c * p->plane, p->sign_bytes,
                  p->plane % 8 == 0, &d);
            bnn_keep(dx, p->dx, start, p->plane, p->dy_type);
        }
    }
}

BNN_BOTH(pool_norm_grad)

/* dy, of dy_type, and y, of y_type: (n, c, outputs). dx, of dy_type: (n, width, h, w), of the
   channels from `first` on; of dscale and dbias theirs are written; both may be NULL. packed and
   origin as for bnn_packed_max_pool_grad; signs: rows of ceil(c h w / 8) bytes. Returns whether it
   has done that: not for large planes of halves. */
BNN_EXPORT int bnn_batch_normalization_pool_grad(
    const void *dy, const void *y, const uint8_t *packed, const int32_t *origin,
    const uint8_t *signs, const float *scale, const float *bias, const float *inv_std, void *dx,
    float *dscale, float *dbias, i64 relu, i64 dy_type, i64 y_type, i64 n, i64 c, i64 first,
    i64 width, i64 h, i64 w, i64 outputs, i64 kernel_w, i64 dilation_h, i64 dilation_w, i64 n_bits,
    float epsilon) {
    struct pool_norm_grad p = {.dy = dy, .y = y, .packed = packed, .origin = origin,
                               .signs = signs, .scale = scale, .bias = bias, .inv_std = inv_std,
                               .dx = dx, .dscale = dscale, .dbias = dbias, .relu = relu != 0,
                               .dy_type = dy_type, .y_type = y_type, .n = n, .c = c,
                               .first = first, .width = width,
                               .plane = h * w, .outputs = outputs, .n_bits = n_bits,
                               .place_bytes = bnn_ceil_div(c * outputs * n_bits, 8),
                               .sign_bytes = bnn_ceil_div(c * h * w, 8), .epsilon = epsilon};
    if (dy_type != BNN_F32 && h * w > MAX_SUMS) return 0;
    bnn_place_offsets(p.offsets, n_bits, w, kernel_w, dilation_h, dilation_w);
    bnn_parallel(width, bnn_grain_of(n * h * w), BNN_PICK(pool_norm_grad), &p);
    return 1;
}
