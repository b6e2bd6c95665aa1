/* Dense product of a matrix of numbers with a +-1 matrix kept as bits, by signed sums:

       out[lane, i] = sum over t of d[t, lane] * bits[t, i]

   It is both gradients of a binary dense layer: of the weights, with d = dy and the bits of x
   (terms are samples), and of the input, with d = dy transposed and the bits of w (terms are
   filters). For every 6 terms the 64 signed sums of some lanes are tabled; 6 bits then choose one.
   Both gradients of a few samples flip the signs of d one by one instead. Sums are float32, or
   int16 and then float32 where d is int8, to be multiplied by its unit at last; what is not float32
   is rounded, once, when a tile is finished.
   Source: Arlazarov, Dinic, Kronrod, Faradzev (1970), "the method of the four Russians". */
#include "bnn_products.h"

enum {
    FEW = 3,       /* so few samples do without tables */
    PORTION = 256, /* terms that they sum at a time, to keep float32's accuracy */
    PIECE = 256,   /* bits of a tile of integers that are finished at a time */
    SHARE = 1 << 18, /* products that are worth a thread, and its tables; as in tiling/dense.py */
};

typedef struct {
    i64 n_terms, n_lanes, n_bits;  /* per term: n_bits bits, in rows of whole bytes */
    i64 block, chunk;              /* bits of a block (a multiple of 8), terms of a partial sum */
    i64 term_pitch, lane_pitch;    /* of d, in elements; one of them is 1 */
    i64 out_type;
    int is_direct;                 /* whether tiles are summed where the result belongs */
    bnn_sink sink;                 /* else where rows of them go, if not to the result */
} shape;

typedef struct {
    shape s;
    const bnn_cores *cores;
    const uint8_t *bits;
    bnn_map d;
    void *out;
    bnn_scratch *per_thread;
} product;

/* Of a d in int8 rows are int8, tables int16. */
typedef struct {
    void *rows, *tables;
    float *sums, *finished;
    int16_t *narrow; /* sums of integers, until they are added to `sums` */
    uint64_t *words;
} tile;

/* The same of integers. */
static const int8_t *take_integers(const product *p, i64 term, i64 n_terms, i64 lane, i64 n_lanes,
                                   tile t, i64 *pitch) {
    const shape *s = &p->s;
    i64 first = term * s->term_pitch + lane * s->lane_pitch;
    int8_t *rows = t.rows;
    *pitch = LANES;
    if (s->lane_pitch > 1) {
        bnn_turn_int8(p->cores, &p->d, first, s->lane_pitch, n_terms, n_lanes, rows);
    } else if (p->d.type == BNN_I8 && n_lanes % STRIP8 == 0) {
        *pitch = s->term_pitch;
        return (const int8_t *)p->d.data + first;
    } else {
        for (i64 i = 0; i < n_terms; i++)
            bnn_to_integers(&p->d, first + i * s->term_pitch, rows + i * LANES, n_lanes);
    }
    return rows;
}

/* Rows of d from a term and a lane on, `pitch` apart. */
static const float *take_rows(const product *p, i64 term, i64 n_terms, i64 lane, i64 n_lanes,
                              tile t, i64 *pitch) {
    const shape *s = &p->s;
    i64 first = term * s->term_pitch + lane * s->lane_pitch;
    *pitch = LANES;
    if (s->lane_pitch > 1) {
        bnn_turn(p->cores, &p->d, first, s->lane_pitch, n_terms, n_lanes, t.rows);
    } else if (p->d.type == BNN_F32 && n_lanes % STRIP == 0) {
        *pitch = s->term_pitch;
        return (const float *)p->d.data + first;
    } else {
        for (i64 i = 0; i < n_terms; i++)
            bnn_to_floats(&p->d, first + i * s->term_pitch, (float *)t.rows + i * LANES, n_lanes);
    }
    return t.rows;
}

static int is_whole(const product *p) { return bnn_is_whole(&p->d); }

/* Whether the sums of a tile are those of all chunks so far. */
static int goes_on(const product *p) { return is_whole(p) && !p->s.is_direct; }

/* The bits of some terms, a block of them, by columns. */
static void turn_bits(const product *p, i64 term, i64 n_terms, i64 bit, i64 n_bits, tile t) {
    i64 row_bytes = bnn_ceil_div(p->s.n_bits, 8);
    for (i64 i = 0; i < n_terms; i += TERMS)
        bnn_transpose_words(p->bits + (term + i) * row_bytes + bit / 8, row_bytes,
                            bnn_min(TERMS, n_terms - i), bnn_ceil_div(n_bits, 8),
                            t.words + i / TERMS * p->s.block);
}

static i64 narrow_bytes(const product *p) {
    i64 sums = p->s.block * LANES * (i64)sizeof(int16_t);
    i64 piece = bnn_min(PIECE, p->s.block) * LANES * (i64)sizeof(float);
    if (!is_whole(p)) return 0;
    return goes_on(p) ? bnn_max(sums, piece) : sums;
}

/* Sum some terms in `sums`, or add them to it. */
static void add_terms(const product *p, i64 term, i64 n_terms, i64 n_bits, i64 lane, i64 n_lanes,
                      tile t) {
    const i64 here = 0;
    i64 pitch, largest = 0;
    memset(t.rows, 0, TERMS * LANES * sizeof(float)); /* lanes that fill up the last vector */
    if (term == 0 || !goes_on(p)) memset(t.sums, 0, (size_t)(n_bits * LANES) * sizeof(float));
    for (i64 i = 0; i < n_terms; i += TERMS) {
        i64 n = bnn_min(TERMS, n_terms - i);
        const uint64_t *words = t.words + i / TERMS * p->s.block;
        if (is_whole(p)) {
            const int8_t *rows = take_integers(p, term + i, n, lane, n_lanes, t, &pitch);
            i64 more = p->cores->int8.bound(rows, pitch, n, n_lanes);
            if (largest + more > MOST) p->cores->int8.flush(t.narrow, n_bits * LANES, t.sums);
            largest = more + (largest + more > MOST ? 0 : largest);
            p->cores->int8.sum(rows, pitch, n, bnn_round_up(n_lanes, STRIP8),
                               (const uint8_t *)words, n_bits, sizeof *words, &here, 1, t.tables,
                               t.narrow);
        } else {
            const float *rows = take_rows(p, term + i, n, lane, n_lanes, t, &pitch);
            p->cores->sum(rows, pitch, n, bnn_round_up(n_lanes, STRIP), (const uint8_t *)words,
                          n_bits, sizeof *words, &here, 1, t.tables, t.sums);
        }
    }
    if (is_whole(p)) p->cores->int8.flush(t.narrow, n_bits * LANES, t.sums);
}

/* Hand on a finished tile, rows of which are `pitch` apart, or round it to the type of the result,
   if it is not there. */
static void finish_tile(const product *p, i64 bit, i64 n_bits, i64 lane, i64 n_lanes, tile t,
                        i64 pitch) {
    const shape *s = &p->s;
    for (i64 l = 0; l < n_lanes; l++) {
        float *row = s->is_direct ? (float *)p->out + (lane + l) * s->n_bits + bit
                                  : t.finished + l * pitch;
        bnn_scale(&p->d, row, n_bits);
        if (s->is_direct) continue;
        if (s->sink.take)
            s->sink.take(s->sink.context, lane + l, bit, row, n_bits);
        else
            bnn_from_floats(row, p->out, s->out_type, (lane + l) * s->n_bits + bit, n_bits);
    }
}

/* Finish the sums of integers by some bits at a time. */
static void finish_integers(const product *p, i64 bit, i64 n_bits, i64 lane, i64 n_lanes, tile t) {
    t.finished = (float *)t.narrow;
    for (i64 i = 0; i < n_bits; i += PIECE) {
        i64 n = bnn_min(PIECE, n_bits - i);
        p->cores->spill(t.sums + i * LANES, n, n_lanes, t.finished, n, 0);
        finish_tile(p, bit + i, n, lane, n_lanes, t, n);
    }
    memset(t.narrow, 0, (size_t)narrow_bytes(p));
}

/* Some lanes of a block, whose bits are turned unless they are. */
static void multiply_tile(const product *p, i64 bit, i64 n_bits, i64 lane, i64 n_lanes,
                          int is_turned, tile t) {
    const shape *s = &p->s;
    float *out = s->is_direct ? (float *)p->out + lane * s->n_bits + bit : t.finished;
    for (i64 term = 0; term < s->n_terms; term += s->chunk) {
        i64 n_terms = bnn_min(s->chunk, s->n_terms - term);
        if (!is_turned || s->n_terms > s->chunk) turn_bits(p, term, n_terms, bit, n_bits, t);
        add_terms(p, term, n_terms, n_bits, lane, n_lanes, t);
        if (goes_on(p)) continue;
        p->cores->spill(t.sums, n_bits, n_lanes, out, s->is_direct ? s->n_bits : s->block,
                        term > 0);
    }
    if (goes_on(p)) finish_integers(p, bit, n_bits, lane, n_lanes, t);
    else finish_tile(p, bit, n_bits, lane, n_lanes, t, s->block);
}

/* The numbers of a lane, as floats. */
static void take_lane(const product *p, i64 term, i64 n_terms, i64 lane, float *d) {
    const shape *s = &p->s;
    i64 first = term * s->term_pitch + lane * s->lane_pitch;
    if (s->term_pitch == 1)
        bnn_to_floats(&p->d, first, d, n_terms);
    else
        for (i64 i = 0; i < n_terms; i++) bnn_to_floats(&p->d, first + i * s->term_pitch, d + i, 1);
}

/* A tile of few lanes or terms, for which no tables are worth building. */
static void multiply_few(const product *p, i64 bit, i64 n_bits, i64 lane, i64 n_lanes, tile t) {
    const shape *s = &p->s;
    i64 row_bytes = bnn_ceil_div(s->n_bits, 8), pitch = s->is_direct ? s->n_bits : s->block;
    float *out = s->is_direct ? (float *)p->out + lane * s->n_bits + bit : t.finished;
    for (i64 l = 0; l < n_lanes; l++) {
        memset(out + l * pitch, 0, (size_t)n_bits * sizeof(float));
        for (i64 term = 0; term < s->n_terms; term += PORTION) {
            i64 n = bnn_min(PORTION, s->n_terms - term);
            take_lane(p, term, n, lane + l, t.rows);
            for (i64 i = 0; i < n_bits; i += LANES)
                p->cores->flip(p->bits + term * row_bytes + (bit + i) / 8, row_bytes, n, t.rows,
                               bnn_min(LANES, n_bits - i), out + l * pitch + i);
        }
    }
    finish_tile(p, bit, n_bits, lane, n_lanes, t, s->block);
}

static i64 words_bytes(const shape *s) { return bnn_ceil_div(s->chunk, TERMS) * s->block * 8; }

/* That of integers lies in `narrow`, or in place of the sums where few need none. */
static i64 finished_bytes(const product *p) {
    return p->s.is_direct || is_whole(p) ? 0 : LANES * p->s.block * (i64)sizeof(float);
}

static i64 share_bytes(const product *p) {
    const shape *s = &p->s;
    return bnn_round_up(words_bytes(s), 64) + BNN_TABLES_BYTES +
           (TERMS + s->block) * LANES * (i64)sizeof(float) + finished_bytes(p) + narrow_bytes(p);
}

/* Terms of the weight gradient are samples, lanes of the input gradient. */
static int is_few(const shape *s) {
    return (s->lane_pitch > 1 ? s->n_lanes : s->n_terms) <= FEW;
}

/* Lanes of a unit of work, which also is some bits; neighbours are worked on together. */
static i64 unit_lanes(const product *p) { return is_whole(p) ? STRIP8 : STRIP; }

static void multiply_units(void *context, i64 begin, i64 end, int thread) {
    const product *p = context;
    const shape *s = &p->s;
    i64 row = LANES * sizeof(float), width = unit_lanes(p), n = 1;
    i64 strips = bnn_ceil_div(s->n_lanes, width);
    bnn_scratch scratch = p->per_thread[thread];
    tile t = {.words = bnn_take(&scratch, words_bytes(s)),
              .rows = bnn_take(&scratch, TERMS * row),
              .tables = bnn_take(&scratch, BNN_TABLES_BYTES),
              .sums = bnn_take(&scratch, s->block * row),
              .finished = bnn_take(&scratch, finished_bytes(p)),
              .narrow = bnn_take(&scratch, narrow_bytes(p))};
    if (goes_on(p)) t.finished = t.sums;
    memset(t.narrow, 0, (size_t)narrow_bytes(p));
    for (i64 unit = begin; unit < end; unit += n) {
        i64 bit = unit / strips * s->block, n_bits = bnn_min(s->block, s->n_bits - bit);
        i64 lane = unit % strips * width;
        n = bnn_min(bnn_min(LANES / width, strips - unit % strips), end - unit);
        i64 n_lanes = bnn_min(n * width, s->n_lanes - lane);
        if (is_few(s))
            multiply_few(p, bit, n_bits, lane, n_lanes, t);
        else
            multiply_tile(p, bit, n_bits, lane, n_lanes, unit > begin && lane > 0, t);
    }
}

static i64 threads_of(const shape *s) {
    const i64 products_of_bit = bnn_min(s->n_terms * s->n_lanes, (i64)SHARE * BNN_MAX_THREADS);
    return bnn_min(bnn_threads(), bnn_ceil_div(products_of_bit * s->n_bits, SHARE));
}

static int multiply(const shape *s, const uint8_t *bits, bnn_map d, void *out, uint8_t *memory,
                    i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    product p = {*s, bnn_best_cores(), bits, d, out, per_thread};
    i64 n_threads = threads_of(s), width = unit_lanes(&p);
    if (!bnn_share_among(&scratch, share_bytes(&p), n_threads, per_thread)) return 0;
    i64 n_units = bnn_ceil_div(s->n_bits, s->block) * bnn_ceil_div(s->n_lanes, width);
    i64 grain = bnn_grain_of_units(n_units, LANES / width);
    if (n_threads < bnn_threads()) grain = bnn_max(grain, bnn_ceil_div(n_units, n_threads));
    bnn_parallel(n_units, grain, multiply_units, &p);
    return 1;
}

/* dw (M, K) = dy (N, M) transposed times x (N, K), x packed. dy: float32, float16, or powers of two
   or int8 with their unit. dw: float32, or its signs (M, ceil(K / 8)) alone; or NULL with an
   `update` of w (M, K), which takes dw as it is finished. Returns 0, with nothing done, if the
   scratch is too small. */
BNN_EXPORT int bnn_gemm_weight_grad_b1(const bnn_gemm *g, const uint8_t *x, const void *dy,
                                       const float *dy_unit, void *dw, const bnn_update *update,
                                       i64 dy_type, i64 dw_type, uint8_t *memory, i64 n_bytes) {
    bnn_sign_rows signs = {dw_type == BNN_U8 ? dw : NULL, bnn_ceil_div(g->k, 8)};
    bnn_sink sink = bnn_sink_of(update, &signs);
    shape s = {g->n, g->m, g->k, g->block, g->chunk, g->m, 1, dw_type, !sink.take, sink};
    return multiply(&s, x, bnn_map_of(dy, dy_type, dy_unit, g->m), dw, memory, n_bytes);
}

/* dx (N, K) = dy (N, M) times w (M, K), w packed; dy and dx: float32 or float16, dy also powers
   of two or int8 with their unit. Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_gemm_input_grad_b1(const bnn_gemm *g, const void *dy, const float *dy_unit,
                                      const uint8_t *w, void *dx, i64 dy_type, i64 dx_type,
                                      uint8_t *memory, i64 n_bytes) {
    shape s = {g->m, g->n, g->k, g->block, g->chunk, 1, g->m, dx_type, 0, {NULL, NULL}};
    return multiply(&s, w, bnn_map_of(dy, dy_type, dy_unit, g->m), dx, memory, n_bytes);
}
