/* Bits of x >= a threshold of its channel. */
#include "bnn_pack.h"
#include "bnn_tiles.h"

struct threshold_pack {
    const void *x;
    enum bnn_type type;
    const float *threshold;
    uint8_t *packed;
    i64 c, length, row_bytes;
};

/* Samples begin .. end - 1 of (n, c, length). */
BNN_INLINE void threshold_pack(void *context, i64 begin, i64 end) {
    const struct threshold_pack p = *(const struct threshold_pack *)context;
    const i64 row = p.c * p.length;
    float room[BNN_TILE], reached[BNN_TILE];
    for (i64 n = begin; n < end; n++)
        for (i64 at = 0; at < row; at += BNN_TILE) {
            const i64 m = bnn_min(BNN_TILE, row - at);
            const float *x = bnn_floats(p.x, n * row + at, m, p.type, room);
            if (p.length == 1) /* as the loops below, in vectors */
                for (i64 i = 0; i < m; i++) reached[i] = x[i] >= p.threshold[at + i] ? 1.0f : 0.0f;
            for (i64 i = p.length == 1 ? m : 0, c = at / p.length; i < m; c++) {
                const i64 last = bnn_min(m, (c + 1) * p.length - at);
                const float threshold = p.threshold[c];
                for (; i < last; i++) reached[i] = x[i] >= threshold ? 1.0f : 0.0f;
            }
            bnn_pack_floats(reached, p.packed + n * p.row_bytes + at / 8, m, BNN_GREATER, 0, 0);
        }
}

BNN_BOTH(threshold_pack)

/* x, of `type`: (n, c, length); threshold: c; packed: n rows of ceil(c length / 8) bytes. */
BNN_EXPORT void bnn_threshold_pack(const void *x, const float *threshold, uint8_t *packed,
                                   i64 type, i64 n, i64 c, i64 length) {
    struct threshold_pack p = {x, type, threshold, packed, c, length, bnn_ceil_div(c * length, 8)};
    bnn_parallel(n, bnn_grain_of(c * length), BNN_PICK(threshold_pack), &p);
}
