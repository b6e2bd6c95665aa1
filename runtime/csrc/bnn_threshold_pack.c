/* Bits of x >= a threshold of its channel. */
#include "bnn_pack.h"
#include "bnn_rows.h"
#include "bnn_tiles.h"

struct threshold_pack {
    const void *x;
    enum bnn_type type;
    const float *threshold;
    uint8_t *packed;
    i64 c, length;
    struct bnn_rows rows;
};

/* reached[i] = whether element first + i reaches its threshold; a run of them is of one channel, or, where
   each has a plane of one element, of one sample. */
BNN_INLINE void compare(const struct threshold_pack *p, const float *x, i64 first, i64 n,
                        float *reached) {
    for (i64 i = 0, run; i < n; i += run, x += run, reached += run) {
        const i64 place = (first + i) % (p->c * p->length), c = place / p->length;
        if (p->length == 1) {
            run = bnn_min(n - i, p->c - c);
            for (i64 j = 0; j < run; j++) reached[j] = x[j] >= p->threshold[c + j] ? 1.0f : 0.0f;
        } else {
            const float threshold = p->threshold[c];
            run = bnn_min(n - i, (c + 1) * p->length - place);
            for (i64 j = 0; j < run; j++) reached[j] = x[j] >= threshold ? 1.0f : 0.0f;
        }
    }
}

BNN_INLINE void threshold_pack(void *context, i64 begin, i64 end) {
    const struct threshold_pack *p = context;
    float room[BNN_TILE], reached[BNN_TILE];
    for (i64 i = begin; i < end; i++) {
        const struct bnn_piece piece = bnn_piece_of(&p->rows, i);
        for (i64 at = 0; at < piece.n; at += BNN_TILE) {
            const i64 m = bnn_min(BNN_TILE, piece.n - at), first = piece.element + at;
            compare(p, bnn_floats(p->x, first, m, p->type, room), first, m, reached);
            bnn_pack_floats(reached, p->packed + piece.byte + at / 8, m, BNN_GREATER, 0, 0);
        }
    }
}

BNN_BOTH(threshold_pack)

/* x, of `type`: (n, c, length); threshold: c; packed: n rows of ceil(c length / 8) bytes. */
BNN_EXPORT void bnn_threshold_pack(const void *x, const float *threshold, uint8_t *packed,
                                   i64 type, i64 n, i64 c, i64 length) {
    struct threshold_pack p = {x, type, threshold, packed, c, length, {.row = c * length}};
    bnn_parallel_rows(&p.rows, n, BNN_PICK(threshold_pack), &p);
}
