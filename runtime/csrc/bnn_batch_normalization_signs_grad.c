/* The gradient of batch normalisation that became signs and a mask, from those bits alone.

   Where the input was is known from the two bits of its result, as one of four levels; see
   finish_groups in bnn_batch_normalization.c. */
#include "bnn_lanes.h"
#include "bnn_normalization.h"

struct signs_grad {
    const void *dy;
    void *dx;
    enum bnn_type type; /* of both */
    const uint8_t *signs, *mask;
    const float *scale, *inv_std, *levels, *slopes;
    float *dscale, *dbias;
    i64 n, c, length, step, row_bytes; /* step: channels that go together, a strip or a group */
};

/* The bits of a tile that starts at bit `first` of its row. */
struct bits {
    const uint8_t *signs, *mask;
    i64 first, row_bytes;
};

/* Those of elements i .. i + 7. */
BNN_INLINE void lanes_at(const struct bits *b, i64 i, int aligned, v8i *sign, v8i *kept) {
    lanes_of(sign, eight_bits(b->signs, b->first + i, b->row_bytes, aligned));
    lanes_of(kept, eight_bits(b->mask, b->first + i, b->row_bytes, aligned));
}

BNN_INLINE void bits_at(const struct bits *b, i64 i, unsigned *sign, unsigned *kept) {
    *sign = b->signs[(b->first + i) / 8] >> (b->first + i) % 8 & 1u;
    *kept = b->mask[(b->first + i) / 8] >> (b->first + i) % 8 & 1u;
}

/* Sums of dy where the mask is set, by sign; at most a tile. */
BNN_INLINE void add_by_sign(const float *dy, const struct bits *b, i64 n, int aligned,
                            double sums[2]) {
    v8f by_sign[2] = {{0}};
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v8f v;
        v8i sign, kept;
        memcpy(&v, dy + i, sizeof v);
        lanes_at(b, i, aligned, &sign, &kept);
        by_sign[0] += (v8f)((v8i)v & kept & ~sign);
        by_sign[1] += (v8f)((v8i)v & kept & sign);
    }
    for (int k = 0; k < 2; k++)
        for (int lane = 0; lane < 8; lane++) sums[k] += by_sign[k][lane];
    for (; i < n; i++) {
        unsigned sign, kept;
        bits_at(b, i, &sign, &kept);
        sums[sign] += kept ? dy[i] : 0;
    }
}

/* dx = ((mask ? dy : 0) - drift[sign + 2 mask]) factor. */
struct drifts {
    float drift[4], factor;
};

BNN_INLINE struct drifts finish_signs(const struct signs_grad *p, i64 c, const double sums[2]) {
    const float *levels = p->levels + 4 * c, *slopes = p->slopes + 4 * c;
    const float dbias = (float)(sums[0] + sums[1]);
    const float dscale = (float)(sums[0] * levels[2] + sums[1] * levels[3]);
    const float count = (float)(p->n * p->length);
    const float along = dscale / count, shift = dbias / count;
    struct drifts d = {.factor = p->scale[c] * p->inv_std[c]};
    for (int k = 0; k < 4; k++) d.drift[k] = slopes[k] * along + shift;
    if (p->dscale) p->dscale[c] = dscale;
    if (p->dbias) p->dbias[c] = dbias;
    return d;
}

BNN_INLINE float grad_of_one(float dy, unsigned sign, unsigned kept, const struct drifts *d) {
    return ((kept ? dy : 0) - d->drift[sign + 2 * kept]) * d->factor;
}

BNN_INLINE void apply_signs(const float *dy, const struct bits *b, float *dx, i64 n, int aligned,
                            const struct drifts *d) {
    const v8i none = {0};
    v8i drift[4];
    for (int k = 0; k < 4; k++) {
        int32_t one;
        memcpy(&one, d->drift + k, sizeof one);
        drift[k] = none + one;
    }
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v8f v;
        v8i sign, kept;
        memcpy(&v, dy + i, sizeof v);
        lanes_at(b, i, aligned, &sign, &kept);
        const v8i inside = drift[2] ^ (sign & (drift[3] ^ drift[2]));
        const v8i outside = drift[0] ^ (sign & (drift[1] ^ drift[0]));
        const v8f moved = (v8f)(outside ^ (kept & (inside ^ outside)));
        v = ((v8f)((v8i)v & kept) - moved) * d->factor;
        memcpy(dx + i, &v, sizeof v);
    }
    for (; i < n; i++) {
        unsigned sign, kept;
        bits_at(b, i, &sign, &kept);
        dx[i] = grad_of_one(dy[i], sign, kept, d);
    }
}

/* Calls DO for every tile of a group's planes: elements i .. i + m - 1, of channel first + j. */
#define EACH_TILE(DO)                                                                   \
    for (i64 n = 0; n < p.n; n++)                                                       \
        for (i64 j = 0; j < width; j++)                                                 \
            for (i64 at = 0; at < p.length; at += BNN_TILE) {                           \
                const i64 m = bnn_min(BNN_TILE, p.length - at);                         \
                const i64 bit = (first + j) * p.length + at;                            \
                const i64 i = n * p.c * p.length + bit;                                 \
                const float *dy = bnn_floats(p.dy, i, m, p.type, room);                 \
                const struct bits bits = {p.signs + n * p.row_bytes,                    \
                                          p.mask + n * p.row_bytes, bit, p.row_bytes};  \
                DO                                                                      \
            }

BNN_INLINE void differentiate_planes(void *context, i64 begin, i64 end) {
    const struct signs_grad p = *(const struct signs_grad *)context;
    const int aligned = p.length % 8 == 0;
    float room[BNN_TILE];
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        double sums[GROUP][2] = {{0}};
        struct drifts drifts[GROUP];
        EACH_TILE({
            if (aligned) add_by_sign(dy, &bits, m, 1, sums[j]);
            else add_by_sign(dy, &bits, m, 0, sums[j]);
        })
        for (i64 j = 0; j < width; j++) drifts[j] = finish_signs(&p, first + j, sums[j]);
        EACH_TILE({
            float *dx = bnn_room(p.dx, i, p.type, room);
            if (aligned) apply_signs(dy, &bits, dx, m, 1, drifts + j);
            else apply_signs(dy, &bits, dx, m, 0, drifts + j);
            bnn_keep(dx, p.dx, i, m, p.type);
        })
    }
}

/* One float a bit: 1 or 0; up to 7 more. */
BNN_INLINE void spread_bits(const uint8_t *bits, i64 n, float *ones) {
    const v8f one = {1, 1, 1, 1, 1, 1, 1, 1};
    for (i64 j = 0; j < n; j += 8) {
        v8i lanes;
        lanes_of(&lanes, bits[j / 8]);
        const v8i some = lanes & (v8i)one;
        memcpy(ones + j, &some, sizeof some);
    }
}

BNN_INLINE void differentiate_rows(void *context, i64 begin, i64 end) {
    const struct signs_grad p = *(const struct signs_grad *)context;
    float room[BNN_TILE], sign[STRIP], kept[STRIP], drift[4][STRIP], factor[STRIP];
    for (i64 first = begin * p.step; first < bnn_min(end * p.step, p.c); first += p.step) {
        const i64 width = bnn_min(p.step, p.c - first);
        double minus[STRIP] = {0}, plus[STRIP] = {0};
        for (i64 n = 0; n < p.n; n++) {
            const float *dy = bnn_floats(p.dy, n * p.c + first, width, p.type, room);
            spread_bits(p.signs + n * p.row_bytes + first / 8, width, sign);
            spread_bits(p.mask + n * p.row_bytes + first / 8, width, kept);
            for (i64 j = 0; j < width; j++) {
                const float d = kept[j] > 0 ? dy[j] : 0;
                plus[j] += sign[j] > 0 ? d : 0;
                minus[j] += sign[j] > 0 ? 0 : d;
            }
        }
        for (i64 j = 0; j < width; j++) {
            const struct drifts d = finish_signs(&p, first + j, (double[2]){minus[j], plus[j]});
            for (int k = 0; k < 4; k++) drift[k][j] = d.drift[k];
            factor[j] = d.factor;
        }
        for (i64 n = 0; n < p.n; n++) {
            const i64 i = n * p.c + first;
            const float *dy = bnn_floats(p.dy, i, width, p.type, room);
            float *dx = bnn_room(p.dx, i, p.type, room);
            spread_bits(p.signs + n * p.row_bytes + first / 8, width, sign);
            spread_bits(p.mask + n * p.row_bytes + first / 8, width, kept);
            BNN_SAME_OR_APART
            for (i64 j = 0; j < width; j++) {
                const float inside = sign[j] > 0 ? drift[3][j] : drift[2][j];
                const float outside = sign[j] > 0 ? drift[1][j] : drift[0][j];
                const float moved = kept[j] > 0 ? inside : outside;
                dx[j] = ((kept[j] > 0 ? dy[j] : 0) - moved) * factor[j];
            }
            bnn_keep(dx, p.dx, i, width, p.type);
        }
    }
}

BNN_ALL(differentiate_planes)
BNN_ALL(differentiate_rows)

/* dx is of dy's type and may be dy; dscale and dbias may be NULL. signs and mask have rows of
   ceil(c length / 8) bytes; levels and slopes are (c, 4). */
BNN_EXPORT void bnn_batch_normalization_signs_grad(
    const void *dy, const uint8_t *signs, const uint8_t *mask, const float *scale,
    const float *inv_std, const float *levels, const float *slopes, void *dx, float *dscale,
    float *dbias, i64 type, i64 n, i64 c, i64 length) {
    const i64 step = bnn_channels_together(c, length, 1);
    struct signs_grad p = {.dy = dy, .dx = dx, .type = type, .signs = signs, .mask = mask,
                           .scale = scale, .inv_std = inv_std, .levels = levels,
                           .slopes = slopes, .dscale = dscale, .dbias = dbias, .n = n, .c = c,
                           .length = length, .step = step,
                           .row_bytes = bnn_ceil_div(c * length, 8)};
    bnn_body body = length == 1 ? BNN_PICK_ALL(differentiate_rows) : BNN_PICK_ALL(differentiate_planes);
    bnn_parallel(bnn_ceil_div(c, step), bnn_grain_of(4 * n * length * step), body, &p);
}
