/* What the kernels of binary products share: geometry, bit strings, scratch, and the inner loops,
   which exist once for each instruction set. */
#ifndef BNN_PRODUCTS_H
#define BNN_PRODUCTS_H

#include "bnn_half.h"
#include "bnn_int4.h"
#include "bnn_pow2.h"
#include "bnn_update.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the bit strings are read in little-endian words"
#endif

enum {
    LANES = 64,    /* outputs side by side: positions or filters */
    STRINGS = 4,   /* outputs of a XNOR product computed together for each lane */
    STRIP = 16,    /* lanes that share a set of tables, which has to fit the first-level cache */
    STRIP8 = 32,   /* the same of integers, whose sums are half as wide */
    GROUP = 6,     /* rows of the float operand behind one table */
    TABLE = 64,    /* their signed sums */
    TERMS = 48,    /* rows in one set of tables: eight groups */
    MOST = 32767,  /* that a sum of integers comes to in int16 */
    OUTSIDE = 128, /* in place of a nibble: this tap lies in the padding and counts nothing */
};

/* A convolution and how it is cut; kernels/tiling/shapes.py fills it in, in this order. Position o puts
   tap k on o * stride + k * dilation - pad. */
typedef struct {
    i64 n, c, h, w, m, kh, kw, ho, wo, sh, sw, pt, pl, dh, dw, group;
    i64 samples, rows, cols; /* of a band: the output positions that are worked on together */
    i64 channels, filters;   /* of a block, within a group */
    i64 staged;              /* samples of dy that are copied at a time if dx is written over it */
} bnn_conv;

/* A dense product: N samples, M filters, K inputs, and how it is cut. */
typedef struct {
    i64 n, m, k;
    i64 block, chunk; /* see each kernel */
} bnn_gemm;

static inline i64 bnn_round_up(i64 a, i64 b) { return bnn_ceil_div(a, b) * b; }
static inline i64 bnn_clamp(i64 a, i64 low, i64 high) { return bnn_max(low, bnn_min(a, high)); }

/* Units of work that a thread takes at a time, `whole` of which fill a tile: whole tiles, and no
   more than leaves some to each thread for as many turns as it can. */
static inline i64 bnn_grain_of_units(i64 n, i64 whole) {
    i64 threads = bnn_threads();
    return bnn_max(bnn_min(whole, bnn_ceil_div(n, threads)), n / (4 * threads));
}

/* A gradient dy: float32, float16, powers of two in rows of `row` elements, times a unit, or
   integers, int8 or of four bits in such rows, times a unit that the sums are multiplied by at last. */
typedef struct {
    const void *data;
    i64 type, row;
    float unit;
} bnn_map;

static inline bnn_map bnn_map_of(const void *data, i64 type, const float *unit, i64 row) {
    return (bnn_map){data, type, row, unit ? *unit : 1};
}

static inline int bnn_is_whole(const bnn_map *d) { return d->type == BNN_I8 || d->type == BNN_I4; }

/* y[i] = integer first + i of x, n of them; of packed ones those of one row. */
static inline void bnn_to_integers(const bnn_map *x, i64 first, int8_t *y, i64 n) {
    if (x->type == BNN_I8)
        memcpy(y, (const int8_t *)x->data + first, (size_t)n);
    else
        bnn_decode_int4((const uint8_t *)x->data + first / x->row * bnn_int4_row_bytes(x->row),
                        first % x->row, y, n);
}

/* x *= the unit of d, if x are sums of its integers. */
static inline void bnn_scale(const bnn_map *d, float *x, i64 n) {
    if (!bnn_is_whole(d)) return;
    for (i64 i = 0; i < n; i++) x[i] *= d->unit;
}

/* y[i] = x[first + i], n elements; of packed ones those of one row, of integers themselves. */
static inline void bnn_to_floats(const bnn_map *x, i64 first, float *y, i64 n) {
    int8_t whole[LANES];
    if (x->type == BNN_F32)
        memcpy(y, (const float *)x->data + first, (size_t)n * sizeof *y);
    else if (x->type == BNN_F16)
        bnn_decode_halves((const bnn_half *)x->data + first, y, n);
    else if (bnn_is_whole(x))
        for (i64 i = 0; i < n; i += LANES) {
            const i64 m = bnn_min(LANES, n - i);
            bnn_to_integers(x, first + i, whole, m);
            for (i64 j = 0; j < m; j++) y[i + j] = whole[j];
        }
    else
        bnn_decode_pow2((const uint8_t *)x->data + first / x->row * bnn_pow2_row_bytes(x->row),
                        x->row, first % x->row, x->unit, y, n);
}

/* y[first + i] = x[i]. */
static inline void bnn_from_floats(const float *x, void *y, i64 type, i64 first, i64 n) {
    if (type == BNN_F32)
        memcpy((float *)y + first, x, (size_t)n * sizeof *x);
    else
        bnn_encode_halves(x, (bnn_half *)y + first, n);
}

/* The signs of a weight gradient, in rows of whole bytes; bnn_sign_row writes some of a row. */
typedef struct {
    uint8_t *bits;
    i64 row_bytes;
} bnn_sign_rows;

void bnn_sign_row(const void *context, i64 row, i64 start, const float *dw, i64 n);

/* Where dw goes: to an optimiser, or its signs; take is NULL where it is summed in its place. */
static inline bnn_sink bnn_sink_of(const bnn_update *update, const bnn_sign_rows *signs) {
    if (update) return (bnn_sink){bnn_update_row, update};
    return signs->bits ? (bnn_sink){bnn_sign_row, signs} : (bnn_sink){NULL, NULL};
}

/* bnn_differing[16 * a + b] = number of bits where the nibbles a and b differ. */
extern const uint8_t bnn_differing[256];

/* At least 57 bits of a string, from bit `first` >= 0 on; zeros behind `end`. */
static inline uint64_t bnn_bits_at(const uint8_t *bits, const uint8_t *end, i64 first) {
    uint64_t word = 0;
    const uint8_t *at = bits + (first >> 3);
    if (end - at >= 8)
        memcpy(&word, at, 8);
    else if (end > at)
        memcpy(&word, at, (size_t)(end - at));
    return word >> (first & 7);
}

/* out[i] = the nibble of bits first + j * pitch + i, j < n_strings <= 4; up to 7 bytes too many. */
void bnn_nibbles(const uint8_t *bits, const uint8_t *end, i64 first, i64 pitch, i64 n_strings,
                 i64 n, uint8_t *out);

/* words[i] bit j = bit i of row j, for n_rows <= TERMS rows and 8 * n_bytes bits. */
void bnn_transpose_words(const uint8_t *rows, i64 row_bytes, i64 n_rows, i64 n_bytes,
                         uint64_t *words);

/* Scratch, handed out from its start in multiples of 64 bytes. */
typedef struct {
    uint8_t *next, *end;
} bnn_scratch;

/* The next piece; NULL, and nothing more, if the scratch is too small. */
void *bnn_take(bnn_scratch *scratch, i64 n_bytes);

/* The same share of the rest for each thread, or for so many; 0 if the rest is too small. */
enum { BNN_MAX_THREADS = 64 };
int bnn_share(bnn_scratch *scratch, i64 n_bytes, bnn_scratch per_thread[BNN_MAX_THREADS]);
int bnn_share_among(bnn_scratch *scratch, i64 n_bytes, i64 n_threads,
                    bnn_scratch per_thread[BNN_MAX_THREADS]);

/* The output positions of some samples, or of some rows or columns of one. */
typedef struct {
    i64 sample, row, col, samples, rows, cols;
} bnn_band;

i64 bnn_n_bands(const bnn_conv *g);
bnn_band bnn_band_at(const bnn_conv *g, i64 number);

/* The taps k of an axis that lie inside at position o: their number. */
static inline i64 bnn_taps_inside(i64 o, i64 stride, i64 pad, i64 dilation, i64 taps, i64 size) {
    i64 at = o * stride - pad, count = 0;
    for (i64 k = 0; k < taps; k++, at += dilation) count += at >= 0 && at < size;
    return count;
}

/* A stretch of a tile's lanes that is contiguous in memory. */
typedef struct {
    i64 lane, n;
    i64 sample, row, col; /* where it starts, within the band */
} bnn_run;

/* Cut lanes begin .. end - 1 of a band of samples x rows x cols at the ends of its rows. */
i64 bnn_runs(i64 begin, i64 end, i64 rows, i64 cols, bnn_run runs[LANES]);

/* n sums that lie in a row, and where they are added: from column `col` of a row of dx on. */
typedef struct {
    i64 from, to;
    int32_t n, col;
} bnn_piece;

/* Those of a tile, the pieces of a row behind each other; the same for each channel. */
typedef struct {
    const bnn_piece *pieces;
    i64 n_pieces, stride, width;              /* of a row */
    i64 n_channels, sums_pitch, window_pitch; /* from one to the next */
} bnn_pieces;

/* Those of a dy in int8, whose sums are exact. */
typedef struct {
    /* As `sum` below, sums in int16; n_lanes is a multiple of STRIP8. */
    void (*sum)(const int8_t *rows, i64 pitch, i64 n_terms, i64 n_lanes, const uint8_t *words,
                i64 n_outer, i64 word_pitch, const i64 *offsets, i64 n_inner, int16_t *tables,
                int16_t *sums);
    /* The largest sum of magnitudes of n_terms <= TERMS rows in any lane: no sum of them with any
       signs is larger. */
    i64 (*bound)(const int8_t *rows, i64 pitch, i64 n_terms, i64 n_lanes);
    /* out[i] += sums[i]; sums[i] = 0. */
    void (*flush)(int16_t *sums, i64 n, float *out);
    /* As `scatter`, `accumulate` and `turn`. */
    void (*scatter)(const bnn_pieces *p, const int16_t *sums, float *out);
    void (*accumulate)(float *a, const int8_t *b, i64 n);
    void (*turn)(const int8_t *d, i64 pitch, i64 n_rows, i64 n_lanes, int8_t *rows);
} bnn_int8_cores;

/* The inner loops. All give the same bits. Counts of 64 lanes: 4 strings against a panel (n_steps, 64) of nibbles. */
typedef struct {
    /* counts[i][lane] = number of differing bits; indices: (n_steps, 4) nibbles times 16. */
    void (*count)(const uint8_t *panel, const uint8_t *indices, i64 n_steps,
                  uint16_t counts[STRINGS][LANES]);
    /* counts[i] = number of bits where the string differs from row i, of n_bytes each. */
    void (*differ)(const uint8_t *string, const uint8_t *rows, i64 row_bytes, i64 n_rows,
                   i64 n_bytes, uint16_t *counts);
    /* y[first + i] = base[i] - 2 counts[i], added to y if `add`, which a float16 cannot. */
    void (*emit)(const uint16_t *counts, const int32_t *base, i64 n, void *y, i64 type, i64 first,
                 int add);
    /* sums (n_outer * n_inner, 64) += sum over t < n_terms of rows[t * pitch + lane], its sign bit
       t of a word; the word of row (o, i) is at words + o * word_pitch + offsets[i]. For every
       strip of lanes the signed sums of 6 terms are tabled, and 6 bits choose one.
       tables: BNN_TABLES_BYTES; n_lanes is a multiple of STRIP. */
    void (*sum)(const float *rows, i64 pitch, i64 n_terms, i64 n_lanes, const uint8_t *words,
                i64 n_outer, i64 word_pitch, const i64 *offsets, i64 n_inner, float *tables,
                float *sums);
    /* sums[i] += sum over t < n_terms of d[t], its sign bit i of the string at bits + t * pitch;
       i < n <= 64. Without tables: for few results of the same bits. */
    void (*flip)(const uint8_t *bits, i64 pitch, i64 n_terms, const float *d, i64 n, float *sums);
    /* out[lane * pitch + i] (+)= sums[i * 64 + lane]. */
    void (*spill)(const float *sums, i64 n_rows, i64 n_lanes, float *out, i64 pitch, int add);
    /* rows[i * 64 + lane] = d[lane * pitch + i]. */
    void (*turn)(const float *d, i64 pitch, i64 n_rows, i64 n_lanes, float *rows);
    /* a[i] += b[i]. */
    void (*accumulate)(float *a, const float *b, i64 n);
    /* out[to + i * stride] += sums[from + i], i < n, piece by piece, for each channel. */
    void (*scatter)(const bnn_pieces *p, const float *sums, float *out);
    bnn_int8_cores int8;
} bnn_cores;

/* Of integers as well: STRIP8 of them are as many bytes. */
#define BNN_TABLES_BYTES (TERMS / GROUP * TABLE * STRIP * (i64)sizeof(float))

/* As `turn`, from element `first` on. */
void bnn_turn(const bnn_cores *cores, const bnn_map *d, i64 first, i64 pitch, i64 n_rows,
              i64 n_lanes, float *rows);

/* The same of a map of integers. */
void bnn_turn_int8(const bnn_cores *cores, const bnn_map *d, i64 first, i64 pitch, i64 n_rows,
                   i64 n_lanes, int8_t *rows);

extern const bnn_cores bnn_cores_portable;
#if BNN_X86_64
extern const bnn_cores bnn_cores_avx2, bnn_cores_avx512;
#endif

static inline const bnn_cores *bnn_best_cores(void) {
#if BNN_X86_64
    if (bnn_has_avx512()) return &bnn_cores_avx512;
    if (bnn_has_avx2()) return &bnn_cores_avx2;
#endif
    return &bnn_cores_portable;
}

#endif
