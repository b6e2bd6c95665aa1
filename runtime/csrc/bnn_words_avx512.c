/* Counts of differing bits by words, with AVX-512 and its count of bits. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bnn_words.h"

BNN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt")

enum { WORDS = 8, VECTORS = 4 }; /* lanes in a vector, vectors that are counted together */

static void count(const uint64_t *panel, const uint64_t *masks, const uint64_t *strings, i64 n_steps,
                  uint16_t counts[STRINGS][LANES]) {
    for (i64 lane = 0; lane < LANES; lane += VECTORS * WORDS) {
        __m512i sums[STRINGS][VECTORS] = {{_mm512_setzero_si512()}};
        for (i64 s = 0; s < n_steps; s++) {
            const uint64_t mask = masks[s] >> lane;
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                const __mmask8 here = (__mmask8)(mask >> v * WORDS);
                const __m512i x = _mm512_loadu_si512(panel + s * LANES + lane + v * WORDS);
#pragma GCC unroll 4
                for (int i = 0; i < STRINGS; i++) {
                    const __m512i w = _mm512_set1_epi64((long long)strings[s * STRINGS + i]);
                    const __m512i n = _mm512_popcnt_epi64(_mm512_xor_si512(x, w));
                    sums[i][v] = _mm512_mask_add_epi64(sums[i][v], here, sums[i][v], n);
                }
            }
        }
        for (int i = 0; i < STRINGS; i++)
            for (int v = 0; v < VECTORS; v++)
                _mm_storeu_si128((__m128i *)(counts[i] + lane + v * WORDS),
                                 _mm512_cvtepi64_epi16(sums[i][v]));
    }
}

/* Byte by byte: a bit of 64 bytes is a mask. */
static void turn(const uint64_t rows[64], i64 n, uint64_t *columns) {
    for (i64 byte = 0; 8 * byte < n; byte++) {
        uint8_t bytes[64];
        for (int v = 0; v < 64 / WORDS; v++) {
            __m512i words = _mm512_loadu_si512(rows + v * WORDS);
            words = _mm512_srl_epi64(words, _mm_cvtsi64_si128(8 * byte));
            _mm_storel_epi64((__m128i *)(bytes + v * WORDS), _mm512_cvtepi64_epi8(words));
        }
        const __m512i all = _mm512_loadu_si512(bytes);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            columns[8 * byte + i] = _mm512_test_epi8_mask(all, _mm512_set1_epi8((char)(1 << i)));
    }
}

const bnn_word_cores bnn_word_cores_avx512 = {count, turn};
BNN_TARGET_END
#endif
