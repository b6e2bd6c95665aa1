/* XNOR products by words of 64 bits, for processors that count the bits of all words of a vector at
   once: what the kernels by nibbles do where they can. */
#ifndef BNN_WORDS_H
#define BNN_WORDS_H

#include "bnn_products.h"

typedef struct {
    /* counts[i][lane] = number of bits where string i differs from the lane, over all steps s where
       bit `lane` of masks[s] is set. panel: (n_steps, 64) words; strings: (n_steps, 4). */
    void (*count)(const uint64_t *panel, const uint64_t *masks, const uint64_t *strings,
                  i64 n_steps, uint16_t counts[STRINGS][LANES]);
    /* columns[i] bit j = bit i of rows[j], i < n, in eights: up to 7 columns too many. */
    void (*turn)(const uint64_t rows[64], i64 n, uint64_t *columns);
} bnn_word_cores;

#if BNN_X86_64
extern const bnn_word_cores bnn_word_cores_avx512;
#endif

/* NULL where there are none. */
static inline const bnn_word_cores *bnn_best_word_cores(void) {
#if BNN_X86_64
    if (bnn_has_avx512_popcount()) return &bnn_word_cores_avx512;
#endif
    return NULL;
}

/* Whether so many bits fill their words well enough. */
static inline int bnn_fills_words(i64 n) { return 3 * n >= 2 * bnn_round_up(n, 64); }

#endif
