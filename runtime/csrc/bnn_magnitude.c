/* The k-th largest magnitude of a row, by its bits: three counts of 11, 10 and 10 bits find it
   without a copy. NaN counts as the largest. */
#include "bnn_variants.h"

enum { MAGNITUDE = 0x7fffffff, BINS = 2048 };

struct rows {
    const float *x;
    uint32_t *floors;
    i64 row, k;
};

/* Counts the bits `shift` .. of the magnitudes that agree with `found` above them. */
static void count(const float *x, i64 n, int shift, int width, uint32_t found, i64 *bins) {
    const int above = shift + width;
    memset(bins, 0, sizeof *bins << width);
    for (i64 i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, sizeof u);
        u &= MAGNITUDE;
        if (above < 31 && u >> above != found >> above) continue;
        bins[u >> shift & ((1u << width) - 1)]++;
    }
}

static uint32_t kth_largest(const float *x, i64 n, i64 k) {
    static const int widths[3] = {11, 10, 10};
    i64 bins[BINS], left = k;
    uint32_t found = 0;
    int shift = 31;
    for (int pass = 0; pass < 3; pass++) {
        shift -= widths[pass];
        count(x, n, shift, widths[pass], found, bins);
        i64 bin = (1 << widths[pass]) - 1;
        while (bin > 0 && bins[bin] < left) left -= bins[bin--];
        found |= (uint32_t)bin << shift;
    }
    return found;
}

static void rows_body(void *context, i64 begin, i64 end, int thread) {
    const struct rows *p = context;
    (void)thread;
    for (i64 i = begin; i < end; i++) p->floors[i] = kth_largest(p->x + i * p->row, p->row, p->k);
}

/* floors: the bits of the k-th largest magnitude of each of `rows` rows; 1 <= k <= row. */
BNN_EXPORT void bnn_kth_magnitudes_f32(const float *x, uint32_t *floors, i64 rows, i64 row,
                                       i64 k) {
    struct rows p = {x, floors, row, k};
    bnn_parallel(rows, 1, rows_body, &p);
}

struct keep {
    float *x;
    uint32_t floor;
};

BNN_INLINE void keep_above(void *context, i64 begin, i64 end) {
    const struct keep *p = context;
    for (i64 i = begin; i < end; i++) {
        uint32_t u;
        memcpy(&u, p->x + i, sizeof u);
        u &= -(uint32_t)((u & MAGNITUDE) >= p->floor);
        memcpy(p->x + i, &u, sizeof u);
    }
}

BNN_BOTH(keep_above)

/* All but the k largest magnitudes, and those that equal the last of them, become 0; 1 <= k <= n. */
BNN_EXPORT void bnn_keep_largest_f32(float *x, i64 n, i64 k) {
    struct keep p = {x, kth_largest(x, n, k)};
    bnn_parallel(n, BNN_GRAIN, BNN_PICK(keep_above), &p);
}
