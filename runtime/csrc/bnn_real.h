/* What the kernels of real-valued convolutions share: panels, strips, and the inner loops, which
   exist once for each instruction set.

   A panel is (n, 48) floats: 48 lanes, side by side, for each of n terms. A tile is (rows, 48) sums. */
#ifndef BNN_REAL_H
#define BNN_REAL_H

#include "bnn_half.h"
#include "bnn_normalize.h"
#include "bnn_products.h"

enum {
    PANEL = 48,
    LANES16 = 16, /* floats of the widest vector: what a sum by itself is kept in */
};

/* Floats of either precision; or, with a factor, bytes that are normalised as they are read: then
   there are a factor and a shift for each plane from the first one on. */
typedef struct {
    const void *data;
    int is_half;
    const float *factor, *shift;
} bnn_floats;

/* Floats as they are. */
static inline bnn_floats bnn_plain(const void *data, int is_half) {
    return (bnn_floats){data, is_half, NULL, NULL};
}

/* x, of which the factors begin with those of a plane. */
static inline bnn_floats bnn_from_plane(bnn_floats x, i64 plane) {
    if (x.factor) x.factor += plane, x.shift += plane;
    return x;
}

/* A stretch of lanes that is contiguous, or a fixed step apart, in memory. */
typedef struct {
    i64 lane, n, offset;
} bnn_stretch;

/* Rows of numbers where they lie: term k of row r is at start[offsets[r] + ...], terms `step` apart
   in runs of n_terms; n_runs of these `run` apart, and n_groups of those `group` apart. */
typedef struct {
    const float *start;
    const i64 *offsets;
    i64 step, n_terms, run, n_runs, group, n_groups;
} bnn_strips;

/* The inner loops. */
typedef struct {
    /* tile[r][lane] (+)= the sum over all terms k of row r's k-th times panel[k][lane], rows of the
       two `pitch` and `panel_pitch` floats apart; the sum is taken in the order of k and then added
       once, to 0 if not to what is there. Up to the next 16 of n_lanes are read and written. */
    void (*multiply)(const bnn_strips *a, i64 n_rows, const float *panel, i64 panel_pitch,
                     i64 n_lanes, float *tile, i64 pitch, int add);
    /* The same, where term k of a run meets x[shifts[k] + lane], and x begins `plane` behind it for
       the next run; rows of the tile are PANEL floats apart. */
    void (*slide)(const bnn_strips *a, i64 n_rows, const float *x, i64 plane, const i64 *shifts,
                  i64 n_lanes, float *tile, int add);
    /* out[i * pitch + lane] = x[i * plane + offset + step * ...] for the lanes of all stretches;
       the other lanes of a panel become 0 if `clear`. */
    void (*take)(bnn_floats x, i64 plane, i64 n, i64 step, const bnn_stretch *stretches,
                 i64 n_stretches, int clear, float *out, i64 pitch);
    /* out[r * pitch + i] = x[first + r * row + i * step] for low <= i < high, else 0, i < pitch. */
    void (*pad)(bnn_floats x, i64 first, i64 row, i64 n_rows, i64 step, i64 low, i64 high,
                i64 pitch, float *out);
    /* y[i * plane + offset + step * ...] = tile[i][lane] + bias[i]; no bias is 0. */
    void (*emit)(const float *tile, i64 n, const float *bias, const bnn_stretch *stretches,
                 i64 n_stretches, void *y, int is_half, i64 plane, i64 step);
    /* panel[k][lane] = x[lane * plane + k]; lanes up to the next 16 become 0. */
    void (*turn)(bnn_floats x, i64 plane, i64 n_terms, i64 n_lanes, float *panel);
    /* y[i] (+)= the sum over taps t, in their order, of w[t] * x[offsets[t] + i]; up to the next 16
       of n are read and written. */
    void (*correlate)(const float *x, const i64 *offsets, const float *w, i64 n_taps, i64 n,
                      float *y, int add);
    /* sums[t][i % 16] += dy[i] * x[offsets[t] + i] for all i < n. */
    void (*dot)(const float *x, const i64 *offsets, i64 n_taps, const float *dy, i64 n,
                float *sums);
} bnn_real_cores;

extern const bnn_real_cores bnn_real_cores_portable;
#if BNN_X86_64
extern const bnn_real_cores bnn_real_cores_avx2, bnn_real_cores_avx512;
#endif

static inline const bnn_real_cores *bnn_best_real_cores(void) {
#if BNN_X86_64
    if (bnn_has_avx512()) return &bnn_real_cores_avx512;
    if (bnn_has_avx2()) return &bnn_real_cores_avx2;
#endif
    return &bnn_real_cores_portable;
}

#endif
