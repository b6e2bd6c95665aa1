/* The largest magnitude of a tensor, by all threads. */
#include "bnn_tiles.h"

enum { MAX_THREADS = 64 };

struct search {
    const void *x;
    enum bnn_type type;
    int32_t largest[MAX_THREADS]; /* magnitude, as its bits */
};

BNN_INLINE void find_largest(void *context, i64 begin, i64 end, int thread) {
    struct search *p = context;
    float room[BNN_TILE];
    int32_t found = p->largest[thread];
    v8i lanes = {0};
    for (i64 at = begin; at < end; at += BNN_TILE) {
        const i64 m = bnn_min(BNN_TILE, end - at);
        const float *x = bnn_floats(p->x, at, m, p->type, room);
        i64 i = 0;
        for (; i + 8 <= m; i += 8) {
            v8i bits;
            memcpy(&bits, x + i, sizeof bits);
            bits &= INT32_MAX;
            const v8i larger = bits > lanes;
            lanes = (bits & larger) | (lanes & ~larger);
        }
        for (; i < m; i++) {
            const int32_t bits = (int32_t)(bnn_bits_of_float(x[i]) & INT32_MAX);
            found = bits > found ? bits : found;
        }
    }
    for (int k = 0; k < 8; k++) found = lanes[k] > found ? lanes[k] : found;
    p->largest[thread] = found;
}

static void find_largest_any(void *context, i64 begin, i64 end, int thread) {
    find_largest(context, begin, end, thread);
}

#if BNN_X86_64
BNN_AVX2 static void find_largest_avx2(void *context, i64 begin, i64 end, int thread) {
    find_largest(context, begin, end, thread);
}
#endif

int32_t bnn_largest_magnitude(const void *x, i64 n, enum bnn_type type) {
    struct search p = {.x = x, .type = type};
    int32_t largest = 0;
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(find_largest), &p);
    for (int i = 0; i < MAX_THREADS; i++) largest = p.largest[i] > largest ? p.largest[i] : largest;
    return largest;
}
