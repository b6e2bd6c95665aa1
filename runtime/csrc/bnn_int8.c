/* A gradient in int8: integers of -127 to 127 times one unit, rounded up or down by chance. */
#include "bnn_rounding.h"
#include "bnn_tiles.h"

enum { TOP = 127, INFINITE = 0x7f800000 };
static const float LEAST = 0x1p-100f; /* below which a largest magnitude counts as this */

struct rounding {
    const void *x;
    enum bnn_type type;
    int8_t *q;
    float inverse;
    uint32_t stream;
    i64 begin; /* the present elements begin here */
};

/* floor(place + fraction) as an integer of -127 to 127. */
BNN_INLINE int8_t rounded(float place, uint32_t drawn) {
    const float moved = place + (float)(int32_t)(drawn >> 8) * 0x1p-24f;
    const int32_t whole = (int32_t)moved, below = whole - ((float)whole > moved);
    const int32_t low = below < -TOP ? -TOP : below;
    return (int8_t)(low > TOP ? TOP : low);
}

/* Tile by tile, each read before any of it is written. */
BNN_INLINE void round_tiles(void *context, i64 begin, i64 end) {
    const struct rounding r = *(const struct rounding *)context;
    float room[BNN_TILE];
    for (i64 at = r.begin + begin; at < r.begin + end; at += BNN_TILE) {
        const i64 n = bnn_min(BNN_TILE, r.begin + end - at);
        const float *x = bnn_floats(r.x, at, n, r.type, room);
        int8_t integers[BNN_TILE];
        for (i64 i = 0; i < n; i++)
            integers[i] = rounded(x[i] * r.inverse, random32(r.stream + (uint32_t)(at + i)));
        memcpy(r.q + at, integers, (size_t)n);
    }
}

BNN_BOTH(round_tiles)

/* q may lie where x begins: in rounds of as many elements as their integers take no room of which
   the floats are still to be read. */
static void round_all(struct rounding *r, i64 n) {
    const i64 size = bnn_size_of(r->type);
    for (i64 end = BNN_TILE; r->begin < n; end *= size) {
        bnn_parallel(bnn_min(end, n) - r->begin, BNN_GRAIN, BNN_PICK(round_tiles), r);
        r->begin = bnn_min(end, n);
    }
}

/* x, q: n elements; q may begin where x does. The bits are those of the seed and `step`. */
BNN_EXPORT void bnn_int8_pack(const void *x, const i64 *step, int8_t *q, float *unit, i64 n,
                              i64 seed, i64 type) {
    const int32_t bits = bnn_largest_magnitude(x, n, type);
    const float found = bnn_float_of_bits((uint32_t)bits), largest = found > LEAST ? found : LEAST;
    *unit = bits < INFINITE ? largest / TOP : bnn_float_of_bits(0x7fc00000);
    if (bits >= INFINITE) {
        memset(q, 0, (size_t)n);
        return;
    }
    struct rounding r = {x, type, q, TOP / largest, stream_start(*step, seed), 0};
    round_all(&r, n);
}
