/* Dense product of a float matrix with a +-1 matrix kept as bits, by signed sums:

       out[lane, i] = sum over t of d[t, lane] * bits[t, i]

   It is both gradients of a binary dense layer: of the weights, with d = dy and the bits of x
   (terms are samples), and of the input, with d = dy transposed and the bits of w (terms are
   filters). For every 4 terms the 16 signed sums of 64 lanes are tabled; a nibble of bits then
   chooses one.
   Source: Arlazarov, Dinic, Kronrod, Faradzev (1970), "the method of the four Russians". */
#include "bnn_products.h"

typedef struct {
    i64 n_terms, n_lanes, n_bits;  /* per term: n_bits bits, in rows of whole bytes */
    i64 block, chunk;              /* bits of a block (a multiple of 8), terms of a partial sum */
    i64 term_pitch, lane_pitch;    /* of d, in floats; one of them is 1 */
} shape;

typedef struct {
    shape s;
    const bnn_cores *cores;
    const uint8_t *bits;
    const float *d;
    float *out;
    bnn_scratch *per_thread;
} product;

/* Tables of the rows of d from a term and a lane on; zeros where there is no term. */
static void build_tables(const product *p, i64 term, i64 n_terms, i64 lane, i64 n_lanes,
                         float *rows, float *tables) {
    const float *d = p->d + term * p->s.term_pitch + lane * p->s.lane_pitch;
    i64 n_groups = bnn_ceil_div(n_terms, 4), wide = bnn_round_up(n_lanes, p->cores->step);
    if (p->s.lane_pitch == 1 && bnn_in_place(p->cores, n_terms, n_lanes)) {
        p->cores->build(d, p->s.term_pitch, n_groups, wide, tables);
        return;
    }
    if (p->s.lane_pitch == 1)
        for (i64 t = 0; t < n_terms; t++)
            memcpy(rows + t * LANES, d + t * p->s.term_pitch, (size_t)n_lanes * sizeof(float));
    else
        p->cores->turn(d, p->s.lane_pitch, n_terms, n_lanes, rows);
    for (i64 t = n_terms; t < bnn_round_up(n_terms, 4); t++)
        memset(rows + t * LANES, 0, LANES * sizeof(float));
    p->cores->build(rows, LANES, n_groups, wide, tables);
}

static void multiply_tile(const product *p, i64 term, i64 n_terms, i64 bit, i64 n_bits, i64 lane,
                          i64 n_lanes, const uint32_t *words, uint8_t *memory) {
    float *rows = (float *)memory, *tables = rows + TERMS * LANES;
    float *sums = tables + TERMS / 4 * TABLE * LANES;
    const i64 here = 0;
    i64 wide = bnn_round_up(n_lanes, p->cores->step);
    memset(rows, 0, TERMS * LANES * sizeof(float)); /* lanes that fill up the last vector */
    memset(sums, 0, (size_t)(n_bits * LANES) * sizeof(float));
    for (i64 t = 0; t < n_terms; t += TERMS) {
        i64 n = bnn_min(TERMS, n_terms - t), n_groups = bnn_ceil_div(n, 4);
        build_tables(p, term + t, n, lane, n_lanes, rows, tables);
        p->cores->add((const uint8_t *)(words + t / TERMS * p->s.block), n_bits, 4, &here, 1,
                      n_groups, wide, tables, sums);
    }
    float *out = p->out + lane * p->s.n_bits + bit;
    p->cores->spill(sums, n_bits, n_lanes, out, p->s.n_bits, term > 0);
}

static i64 tile_bytes(const shape *s) {
    return (TERMS * LANES + TERMS / 4 * TABLE * LANES + s->block * LANES) * (i64)sizeof(float);
}

static i64 words_bytes(const shape *s) { return bnn_ceil_div(s->chunk, TERMS) * s->block * 4; }

static void multiply_blocks(void *context, i64 begin, i64 end, int thread) {
    const product *p = context;
    const shape *s = &p->s;
    i64 row_bytes = bnn_ceil_div(s->n_bits, 8);
    i64 n_tiles = bnn_ceil_div(s->n_lanes, LANES), width = bnn_ceil_div(s->n_lanes, n_tiles);
    width = bnn_round_up(width, 8);
    bnn_scratch scratch = p->per_thread[thread];
    uint32_t *words = bnn_take(&scratch, words_bytes(s));
    uint8_t *memory = bnn_take(&scratch, tile_bytes(s));
    for (i64 bit = begin * s->block; bit < bnn_min(end * s->block, s->n_bits); bit += s->block) {
        i64 n_bits = bnn_min(s->block, s->n_bits - bit);
        for (i64 term = 0; term < s->n_terms; term += s->chunk) {
            i64 n_terms = bnn_min(s->chunk, s->n_terms - term);
            for (i64 t = 0; t < n_terms; t += TERMS)
                bnn_transpose_words(p->bits + (term + t) * row_bytes + bit / 8, row_bytes,
                                    bnn_min(TERMS, n_terms - t), bnn_ceil_div(n_bits, 8),
                                    words + t / TERMS * s->block);
            for (i64 lane = 0; lane < s->n_lanes; lane += width)
                multiply_tile(p, term, n_terms, bit, n_bits, lane,
                              bnn_min(width, s->n_lanes - lane), words, memory);
        }
    }
}

static int multiply(const shape *s, const uint8_t *bits, const float *d, float *out,
                    uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    i64 share = bnn_round_up(words_bytes(s), 64) + bnn_round_up(tile_bytes(s), 64);
    if (!bnn_share(&scratch, share, per_thread)) return 0;
    product p = {*s, bnn_best_cores(), bits, d, out, per_thread};
    bnn_parallel(bnn_ceil_div(s->n_bits, s->block), 1, multiply_blocks, &p);
    return 1;
}

/* dw (M, K) = dy (N, M) transposed times x (N, K), x packed.
   Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_gemm_weight_grad_b1f32f32(const bnn_gemm *g, const uint8_t *x, const float *dy,
                                             float *dw, uint8_t *memory, i64 n_bytes) {
    shape s = {g->n, g->m, g->k, g->block, g->chunk, g->m, 1};
    return multiply(&s, x, dy, dw, memory, n_bytes);
}

/* dx (N, K) = dy (N, M) times w (M, K), w packed.
   Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_gemm_input_grad_f32b1f32(const bnn_gemm *g, const float *dy, const uint8_t *w,
                                            float *dx, uint8_t *memory, i64 n_bytes) {
    shape s = {g->m, g->n, g->k, g->block, g->chunk, 1, g->m};
    return multiply(&s, w, dy, dx, memory, n_bytes);
}
