/* Dense product of +-1 matrices kept as bits: XNOR and popcount, by nibbles.

   64 filters stand side by side in a panel of nibbles; for four samples at a time the number of
   differing bits is looked up for all 64. For one or two samples a panel costs more than it
   saves, and bits are counted row by row. y = K - 2 * differing bits, exact.
   Where the processor counts the bits of words, they take the place of nibbles. */
#include "bnn_words.h"

enum { FEW = 2 }; /* samples that are counted row by row */

typedef struct {
    const bnn_gemm *g;
    const bnn_cores *cores;
    const bnn_word_cores *words; /* NULL: by nibbles */
    const uint8_t *x, *w;
    void *y;
    i64 y_type;
    uint8_t *indices; /* (block / 4, n_steps, 4): nibbles of the samples times 16, or words */
    bnn_scratch *per_thread;
    i64 sample, byte; /* where the present block begins */
    i64 n_samples, n_bytes, n_steps;
} product;

/* Words begin .. end - 1 of a row of bytes, the last filled up with zeros, `pitch` apart. */
static void place_words(const product *p, const uint8_t *row, i64 begin, i64 end, i64 pitch,
                        uint64_t *out) {
    for (i64 i = begin; i < end; i++) {
        uint64_t word = 0;
        memcpy(&word, row + 8 * i, (size_t)bnn_min(8, p->n_bytes - 8 * i));
        out[i * pitch] = word;
    }
}

static void index_samples(void *context, i64 begin, i64 end, int thread) {
    (void)thread;
    const product *p = context;
    i64 row_bytes = bnn_ceil_div(p->g->k, 8);
    for (i64 s = begin; s < end; s++) {
        if (p->words) {
            uint64_t *words = (uint64_t *)p->indices + s / STRINGS * STRINGS * p->n_steps;
            place_words(p, p->x + (p->sample + s) * row_bytes + p->byte, 0, p->n_steps, STRINGS,
                        words + s % STRINGS);
            continue;
        }
        const uint8_t *row = p->x + (p->sample + s) * row_bytes + p->byte;
        uint8_t *out = p->indices + s / STRINGS * STRINGS * 2 * p->n_bytes + s % STRINGS;
        for (i64 i = 0; i < p->n_bytes; i++, out += 2 * STRINGS) {
            out[0] = (uint8_t)(row[i] << 4);
            out[STRINGS] = row[i] & 0xF0;
        }
    }
}

typedef uint8_t v16 __attribute__((vector_size(16)));

/* Transpose 16 x 16 bytes: four perfect shuffles. */
static inline void transpose16(v16 a[16]) {
    for (int round = 0; round < 4; round++) {
        v16 b[16];
        for (int i = 0; i < 8; i++) {
            b[2 * i] = BNN_SHUFFLE(v16, a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                   6, 22, 7, 23);
            b[2 * i + 1] = BNN_SHUFFLE(v16, a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                       13, 29, 14, 30, 15, 31);
        }
        memcpy(a, b, sizeof b);
    }
}

/* Panel (2 * n_bytes, 64) of the filters from `first` on; filters that are not there stay 0. */
static void fill_panel(const product *p, i64 first, uint8_t *panel) {
    i64 row_bytes = bnn_ceil_div(p->g->k, 8), n = bnn_min(LANES, p->g->m - first);
    for (i64 lane = 0; lane < LANES; lane += 16) {
        for (i64 i = 0; i < p->n_bytes; i += 16) {
            v16 block[16] = {0};
            i64 wide = bnn_min(16, p->n_bytes - i);
            const uint8_t *w = p->w + (first + lane) * row_bytes + p->byte + i;
            for (i64 j = 0; j < bnn_min(16, n - lane); j++)
                memcpy(&block[j], w + j * row_bytes, (size_t)wide);
            transpose16(block);
            for (i64 k = 0; k < wide; k++) {
                uint8_t *to = panel + 2 * (i + k) * LANES + lane;
                v16 low = block[k] & 15, high = block[k] >> 4;
                memcpy(to, &low, 16);
                memcpy(to + LANES, &high, 16);
            }
        }
    }
}

/* Panel (n_steps, 64) of words, eight of each filter at a time. */
static void fill_words(const product *p, i64 first, uint64_t *panel) {
    i64 row_bytes = bnn_ceil_div(p->g->k, 8), n = bnn_min(LANES, p->g->m - first);
    for (i64 i = 0; i < p->n_steps; i += 8)
        for (i64 lane = 0; lane < n; lane++)
            place_words(p, p->w + (first + lane) * row_bytes + p->byte, i,
                        bnn_min(i + 8, p->n_steps), LANES, panel + lane);
}

/* Samples without a panel, for `n` filters from `first` on. */
static void multiply_rows(const product *p, i64 first, i64 n, const int32_t *valid) {
    const bnn_gemm *g = p->g;
    i64 row_bytes = bnn_ceil_div(g->k, 8);
    uint16_t counts[LANES];
    for (i64 s = p->sample; s < p->sample + p->n_samples; s++) {
        p->cores->differ(p->x + s * row_bytes + p->byte, p->w + first * row_bytes + p->byte,
                         row_bytes, n, p->n_bytes, counts);
        p->cores->emit(counts, valid, n, p->y, p->y_type, s * g->m + first, p->byte > 0);
    }
}

/* The samples against a panel of n filters from `first` on. */
static void multiply_panel(const product *p, i64 first, i64 n, const int32_t *valid,
                           bnn_scratch scratch) {
    uint16_t counts[STRINGS][LANES] __attribute__((aligned(64)));
    i64 size = p->words ? sizeof(uint64_t) : 1;
    uint8_t *panel = bnn_take(&scratch, p->n_steps * LANES * size);
    uint64_t *masks = p->words ? bnn_take(&scratch, p->n_steps * size) : NULL;
    if (p->words) {
        fill_words(p, first, (uint64_t *)panel);
        memset(masks, 255, (size_t)(p->n_steps * size));
    } else {
        fill_panel(p, first, panel);
    }
    for (i64 s = 0; s < p->n_samples; s += STRINGS) {
        const uint8_t *strings = p->indices + s * p->n_steps * size;
        if (p->words)
            p->words->count((const uint64_t *)panel, masks, (const uint64_t *)strings, p->n_steps,
                            counts);
        else
            p->cores->count(panel, strings, p->n_steps, counts);
        for (i64 i = 0; i < bnn_min(STRINGS, p->n_samples - s); i++)
            p->cores->emit(counts[i], valid, n, p->y, p->y_type,
                           (p->sample + s + i) * p->g->m + first, p->byte > 0);
    }
}

static void multiply_panels(void *context, i64 begin, i64 end, int thread) {
    const product *p = context;
    const bnn_gemm *g = p->g;
    int32_t valid[LANES];
    for (i64 i = 0; i < LANES; i++) valid[i] = (int32_t)bnn_min(8 * p->n_bytes, g->k - 8 * p->byte);
    for (i64 panel = begin; panel < end; panel++) {
        i64 first = panel * LANES, n = bnn_min(LANES, g->m - first);
        if (p->n_samples <= FEW)
            multiply_rows(p, first, n, valid);
        else
            multiply_panel(p, first, n, valid, p->per_thread[thread]);
    }
}

/* y (N, M) = x (N, K) times w (M, K) transposed, both packed; `block` samples and `chunk` elements
   (a multiple of 8) at a time. y is float32, int16 or float16, the last with one chunk.
   Returns 0, with nothing done, if the scratch is too small. */
BNN_EXPORT int bnn_gemm_b1b1(const bnn_gemm *g, const uint8_t *x, const uint8_t *w, void *y,
                             i64 y_type, uint8_t *memory, i64 n_bytes) {
    bnn_scratch scratch = {memory, memory + n_bytes}, per_thread[BNN_MAX_THREADS];
    product p = {.g = g, .cores = bnn_best_cores(), .x = x, .w = w, .y = y,
                 .y_type = y_type, .per_thread = per_thread,
                 .words = bnn_fills_words(g->chunk) ? bnn_best_word_cores() : NULL};
    i64 row_bytes = bnn_ceil_div(g->k, 8);
    i64 indices_bytes = bnn_round_up(g->block, STRINGS) * g->chunk / 4;
    p.indices = bnn_take(&scratch, indices_bytes);
    if (!bnn_share(&scratch, g->chunk / 4 * LANES, per_thread)) return 0;
    memset(p.indices, 0, (size_t)indices_bytes); /* samples that fill up the last four */
    for (p.byte = 0; p.byte < row_bytes; p.byte += g->chunk / 8) {
        p.n_bytes = bnn_min(g->chunk / 8, row_bytes - p.byte);
        p.n_steps = p.words ? bnn_ceil_div(p.n_bytes, 8) : 2 * p.n_bytes;
        for (p.sample = 0; p.sample < g->n; p.sample += g->block) {
            p.n_samples = bnn_min(g->block, g->n - p.sample);
            if (p.n_samples > FEW) bnn_parallel(p.n_samples, 16 * STRINGS, index_samples, &p);
            bnn_parallel(bnn_ceil_div(g->m, LANES), 1, multiply_panels, &p);
        }
    }
    return 1;
}
