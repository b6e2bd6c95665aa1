/* Bit strings, scratch and tiles of the binary products. */
#include "bnn_pack.h"
#include "bnn_words.h"

#define BIT(b, i) ((uint64_t)((b) >> (i) & 1) << 8 * (i))
#define SPREAD1(b)                                                                                 \
    BIT(b, 0) | BIT(b, 1) | BIT(b, 2) | BIT(b, 3) | BIT(b, 4) | BIT(b, 5) | BIT(b, 6) | BIT(b, 7)
#define SPREAD4(b) SPREAD1(b), SPREAD1((b) + 1), SPREAD1((b) + 2), SPREAD1((b) + 3)
#define SPREAD16(b) SPREAD4(b), SPREAD4((b) + 4), SPREAD4((b) + 8), SPREAD4((b) + 12)
#define SPREAD64(b) SPREAD16(b), SPREAD16((b) + 16), SPREAD16((b) + 32), SPREAD16((b) + 48)

/* Each bit of a byte in a byte of its own. */
static const uint64_t spread[256] = {SPREAD64(0), SPREAD64(64), SPREAD64(128), SPREAD64(192)};

#define DIFFER4(a, b)                                                                              \
    __builtin_popcount((a) ^ (b)), __builtin_popcount((a) ^ ((b) + 1)),                            \
        __builtin_popcount((a) ^ ((b) + 2)), __builtin_popcount((a) ^ ((b) + 3))
#define DIFFER16(a) DIFFER4(a, 0), DIFFER4(a, 4), DIFFER4(a, 8), DIFFER4(a, 12)
#define DIFFER64(a) DIFFER16(a), DIFFER16((a) + 1), DIFFER16((a) + 2), DIFFER16((a) + 3)

const uint8_t bnn_differing[256] __attribute__((aligned(64))) = {DIFFER64(0), DIFFER64(4),
                                                                 DIFFER64(8), DIFFER64(12)};

void bnn_nibbles(const uint8_t *bits, const uint8_t *end, i64 first, i64 pitch, i64 n_strings,
                 i64 n, uint8_t *out) {
    for (i64 i = 0; i < n; i += 56) {
        uint64_t s[4] = {0};
        if (n_strings * pitch <= 57) { /* all in one word */
            s[0] = bnn_bits_at(bits, end, first + i); /* 57 positions take a second round */
            for (i64 j = 1; j < n_strings; j++) s[j] = s[0] >> j * pitch;
        } else {
            for (i64 j = 0; j < n_strings; j++)
                s[j] = bnn_bits_at(bits, end, first + j * pitch + i);
        }
        for (i64 k = i; k < bnn_min(n, i + 56); k += 8) {
            uint64_t eight = spread[s[0] & 255] | spread[s[1] & 255] << 1 |
                             spread[s[2] & 255] << 2 | spread[s[3] & 255] << 3;
            memcpy(out + k, &eight, 8);
            for (int j = 0; j < 4; j++) s[j] >>= 8;
        }
    }
}

/* Transpose 8 x 8 bits, one row a byte. Source: Warren, Hacker's Delight, 7-3. */
static inline uint64_t transpose8(uint64_t x) {
    uint64_t t = (x ^ x >> 7) & 0x00AA00AA00AA00AAull;
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & 0x0000CCCC0000CCCCull;
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & 0x00000000F0F0F0F0ull;
    return x ^ t ^ t << 28;
}

/* As bnn_transpose_words, 64 columns at a time. */
static void transpose_by_words(const bnn_word_cores *cores, const uint8_t *rows, i64 row_bytes,
                               i64 n_rows, i64 n_bytes, uint64_t *words) {
    uint64_t strings[64] = {0};
    for (i64 i = 0; i < n_bytes; i += 8) {
        i64 n = bnn_min(8, n_bytes - i);
        for (i64 j = 0; j < n_rows; j++) {
            const uint8_t *row = rows + j * row_bytes + i;
            if (n == 8)
                memcpy(strings + j, row, 8);
            else
                memcpy(strings + j, row, (size_t)n);
        }
        cores->turn(strings, 8 * n, words + 8 * i);
    }
}

void bnn_transpose_words(const uint8_t *rows, i64 row_bytes, i64 n_rows, i64 n_bytes,
                         uint64_t *words) {
    const bnn_word_cores *cores = bnn_best_word_cores();
    if (cores) {
        transpose_by_words(cores, rows, row_bytes, n_rows, n_bytes, words);
        return;
    }
    for (i64 i = 0; i < n_bytes; i++) {
        uint64_t columns[TERMS / 8] = {0};
        for (i64 j = 0; j < n_rows; j++)
            columns[j >> 3] |= (uint64_t)rows[j * row_bytes + i] << 8 * (j & 7);
        for (int b = 0; b < TERMS / 8; b++) columns[b] = transpose8(columns[b]);
        for (int k = 0; k < 8; k++) {
            uint64_t word = 0;
            for (int b = 0; b < TERMS / 8; b++) word |= (columns[b] >> 8 * k & 255) << 8 * b;
            words[8 * i + k] = word;
        }
    }
}

void bnn_sign_row(const void *context, i64 row, i64 start, const float *dw, i64 n) {
    const bnn_sign_rows *signs = context;
    bnn_pack_floats(dw, signs->bits + row * signs->row_bytes + start / 8, n, BNN_NOT_LESS, 0, 0);
}

void *bnn_take(bnn_scratch *scratch, i64 n_bytes) {
    i64 size = bnn_round_up(n_bytes, 64);
    if (!scratch->next || scratch->end - scratch->next < size) {
        scratch->next = NULL;
        return NULL;
    }
    void *piece = scratch->next;
    scratch->next += size;
    return piece;
}

int bnn_share(bnn_scratch *scratch, i64 n_bytes, bnn_scratch per_thread[BNN_MAX_THREADS]) {
    return bnn_share_among(scratch, n_bytes, bnn_threads(), per_thread);
}

int bnn_share_among(bnn_scratch *scratch, i64 n_bytes, i64 n_threads,
                    bnn_scratch per_thread[BNN_MAX_THREADS]) {
    int enough = 1;
    for (i64 i = 0; i < n_threads; i++) {
        uint8_t *piece = bnn_take(scratch, n_bytes);
        enough = piece != NULL;
        per_thread[i] = (bnn_scratch){piece, enough ? piece + bnn_round_up(n_bytes, 64) : NULL};
    }
    return enough;
}

i64 bnn_n_bands(const bnn_conv *g) {
    return bnn_ceil_div(g->n, g->samples) * bnn_ceil_div(g->ho, g->rows) *
           bnn_ceil_div(g->wo, g->cols);
}

bnn_band bnn_band_at(const bnn_conv *g, i64 number) {
    i64 n_cols = bnn_ceil_div(g->wo, g->cols), n_rows = bnn_ceil_div(g->ho, g->rows);
    bnn_band b = {.sample = number / (n_cols * n_rows) * g->samples,
                  .row = number / n_cols % n_rows * g->rows,
                  .col = number % n_cols * g->cols};
    b.samples = bnn_min(g->samples, g->n - b.sample);
    b.rows = bnn_min(g->rows, g->ho - b.row);
    b.cols = bnn_min(g->cols, g->wo - b.col);
    return b;
}

i64 bnn_runs(i64 begin, i64 end, i64 rows, i64 cols, bnn_run runs[LANES]) {
    i64 count = 0;
    for (i64 at = begin; at < end; count++) {
        i64 row = at / cols, col = at % cols, n = bnn_min(cols - col, end - at);
        runs[count] = (bnn_run){at - begin, n, row / rows, row % rows, col};
        at += n;
    }
    return count;
}

/* As bnn_to_floats, for rows of `wide` that lie `pitch` apart. Fetches what is wanted next. */
static void decode_lanes(const bnn_map *d, i64 first, i64 pitch, i64 n_rows, i64 n_lanes,
                         float *wide) {
    const i64 row_bytes = bnn_pow2_row_bytes(d->row);
    const uint8_t *row = (const uint8_t *)d->data + first / d->row * row_bytes;
    for (i64 l = 0, at = first % d->row; l < n_lanes; l++, at += pitch, wide += TERMS) {
        for (; at >= d->row; at -= d->row) row += row_bytes;
        bnn_decode_pow2(row, d->row, at, d->unit, wide, n_rows);
        __builtin_prefetch(row + (at + n_rows) / 2);
        __builtin_prefetch(row + bnn_pow2_exponent_bytes(d->row) + (at + n_rows) / 8);
    }
}

/* What is wanted next, most likely; the stride is too long for the processor to guess. */
static void fetch(const bnn_map *d, i64 first, i64 pitch, i64 n_rows, i64 n_lanes) {
    const i64 size = bnn_size_of(d->type);
    const uint8_t *from = (const uint8_t *)d->data + first * size;
    for (i64 l = 0; l < n_lanes; l++)
        for (i64 i = 0; i < n_rows * size; i += 64)
            __builtin_prefetch(from + (l * pitch + n_rows) * size + i);
}

void bnn_turn_int8(const bnn_cores *cores, const bnn_map *d, i64 first, i64 pitch, i64 n_rows,
                   i64 n_lanes, int8_t *rows) {
    if (d->type == BNN_I4) {
        int8_t whole[LANES * TERMS];
        for (i64 l = 0; l < n_lanes; l++)
            bnn_to_integers(d, first + l * pitch, whole + l * TERMS, n_rows);
        cores->int8.turn(whole, TERMS, n_rows, n_lanes, rows);
        return;
    }
    cores->int8.turn((const int8_t *)d->data + first, pitch, n_rows, n_lanes, rows);
    fetch(d, first, pitch, n_rows, n_lanes);
}

void bnn_turn(const bnn_cores *cores, const bnn_map *d, i64 first, i64 pitch, i64 n_rows,
              i64 n_lanes, float *rows) {
    float wide[LANES * TERMS];
    if (d->type == BNN_U8) {
        decode_lanes(d, first, pitch, n_rows, n_lanes, wide);
        cores->turn(wide, TERMS, n_rows, n_lanes, rows);
        return;
    }
    if (d->type == BNN_F32) {
        cores->turn((const float *)d->data + first, pitch, n_rows, n_lanes, rows);
    } else {
        for (i64 l = 0; l < n_lanes; l++)
            bnn_to_floats(d, first + l * pitch, wide + l * TERMS, n_rows);
        cores->turn(wide, TERMS, n_rows, n_lanes, rows);
    }
    fetch(d, first, pitch, n_rows, n_lanes);
}
