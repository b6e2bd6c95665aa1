/* Sparse floats as a bitmap and the values that are not zero: bit j of byte b of a row says whether
   element 8 b + j of the row has other bits than +0.0 (so that -0.0 and NaN come back as they were);
   values[0] is 0, values[1 ..] are the others in scan order.

   A row is cut into blocks. Encoding counts the values of every block, adds the counts up, and then
   moves the values of all blocks at once; decoding counts the bits again. Every thread writes the
   values of its own blocks and nothing beyond them. */
#include "bnn_bitmap.h"

#include "bnn_variants.h"

#if BNN_X86_64
#include <immintrin.h>
#endif

enum {
    BLOCK = 4096,
    SHORT_BLOCK = 512, /* where decoding begins anywhere: as many bits are counted up to there */
};

struct block {
    i64 start, bytes, n; /* first element, first byte of bits, elements */
};

BNN_INLINE struct block block_of(const bnn_bitmap *b, i64 i) {
    i64 row = i / b->blocks, first = i % b->blocks * b->block;
    return (struct block){row * b->row + first, row * b->row_bytes + first / 8,
                          bnn_min(b->block, b->row - first)};
}

BNN_INLINE uint32_t raw(const float *x) {
    uint32_t u;
    memcpy(&u, x, sizeof u);
    return u;
}

/* Each of the loops below handles one block; they come portable and for AVX2 (AVX-512 was no
   faster: its unaligned loads of the values cross a cache line every time). */

/* Magnitudes compare as their bits do. */
enum { MAGNITUDE = 0x7fffffff };

BNN_INLINE i64 mark_any(const float *x, uint8_t *bits, i64 n, uint32_t floor) {
    i64 count = 0;
    for (i64 i = 0; i < n; i += 8) {
        unsigned byte = 0;
        i64 m = bnn_min(8, n - i);
        for (i64 j = 0; j < m; j++) {
            const uint32_t u = raw(x + i + j);
            byte |= (unsigned)(u != 0 && (u & MAGNITUDE) >= floor) << j;
        }
        bits[i / 8] = (uint8_t)byte;
        count += __builtin_popcount(byte);
    }
    return count;
}

BNN_INLINE i64 count_any(const uint8_t *bits, i64 n) {
    i64 count = 0, i = 0, bytes = n / 8;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t word;
        memcpy(&word, bits + i, sizeof word);
        count += __builtin_popcountll(word);
    }
    for (; i < bytes; i++) count += __builtin_popcount(bits[i]);
    if (n % 8) count += __builtin_popcount(bits[i] & ((1u << n % 8) - 1));
    return count;
}

/* Stops at the last value: what comes after `out + count` is another block's. */
BNN_INLINE void gather_any(const float *x, const uint8_t *bits, float *out, i64 n, i64 count) {
    (void)n;
    for (i64 i = 0, k = 0; k < count; i++) {
        memcpy(out + k, x + i, sizeof *x);
        k += bits[i / 8] >> i % 8 & 1;
    }
}

/* `v` points at the value before the block's first: v[0] is there, v[1 .. count] are read. Returns
   how many there were. */
BNN_INLINE i64 scatter_any(const uint8_t *bits, const float *v, float *y, i64 n) {
    i64 k = 0;
    for (i64 i = 0; i < n; i++) {
        uint32_t bit = bits[i / 8] >> i % 8 & 1, u;
        k += bit;
        u = raw(v + k) & -bit;
        memcpy(y + i, &u, sizeof u);
    }
    return k;
}

BNN_INLINE void mask_any(const float *dy, const uint8_t *bits, const float *v, float *dx, i64 n) {
    for (i64 i = 0, k = 0; i < n; i++) {
        unsigned bit = bits[i / 8] >> i % 8 & 1;
        k += bit;
        dx[i] = dy[i] * (float)(bit & (unsigned)(v[k] > 0));
    }
}

#if BNN_X86_64
/* For every byte of bits: which lanes hold its values, in order; and for each lane, which of the
   values (1 is the first) it takes. */
static uint8_t lanes[256][8], places[256][8];

__attribute__((constructor)) static void fill_tables(void) {
    for (int byte = 0; byte < 256; byte++) {
        int k = 0;
        for (int lane = 0; lane < 8; lane++) {
            if (byte >> lane & 1) lanes[byte][k++] = (uint8_t)lane;
            places[byte][lane] = (uint8_t)bnn_max(k - 1, 0);
        }
    }
}

BNN_INLINE BNN_AVX2 __m256i table_avx2(const uint8_t *entry) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)entry));
}

/* All ones in the lanes whose bit is set. */
BNN_INLINE BNN_AVX2 __m256i spread_avx2(unsigned byte) {
    const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)byte), place), place);
}

BNN_INLINE BNN_AVX2 i64 mark_avx2(const float *x, uint8_t *bits, i64 n, uint32_t floor) {
    const __m256i nil = _mm256_setzero_si256(), magnitude = _mm256_set1_epi32(MAGNITUDE);
    const __m256i least = _mm256_set1_epi32((int)floor);
    i64 i = 0, count = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i v = _mm256_loadu_si256((const void *)(x + i));
        __m256i small = _mm256_cmpgt_epi32(least, _mm256_and_si256(v, magnitude));
        __m256i left_out = _mm256_or_si256(_mm256_cmpeq_epi32(v, nil), small);
        unsigned byte = ~(unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(left_out)) & 255;
        bits[i / 8] = (uint8_t)byte;
        count += __builtin_popcount(byte);
    }
    return count + mark_any(x + i, bits + i / 8, n - i, floor);
}

/* All ones in the first `n` lanes. */
BNN_INLINE BNN_AVX2 __m256i first_avx2(i64 n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

BNN_INLINE BNN_AVX2 void gather_avx2(const float *x, const uint8_t *bits, float *out, i64 n,
                                     i64 count) {
    i64 i = 0, k = 0;
    for (; i + 8 <= n; i += 8) {
        unsigned byte = bits[i / 8];
        __m256 v = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + i), table_avx2(lanes[byte]));
        if (k + 8 <= count) _mm256_storeu_ps(out + k, v);
        else _mm256_maskstore_ps(out + k, first_avx2(count - k), v);
        k += __builtin_popcount(byte);
    }
    gather_any(x + i, bits + i / 8, out + k, n - i, count - k);
}

/* Eight elements from the values behind v[0], of which `left` may be read. */
BNN_INLINE BNN_AVX2 __m256 take_avx2(unsigned byte, const float *v, i64 left) {
    __m256 next = left >= 8 ? _mm256_loadu_ps(v + 1) : _mm256_maskload_ps(v + 1, first_avx2(left));
    __m256 found = _mm256_permutevar8x32_ps(next, table_avx2(places[byte]));
    return _mm256_and_ps(found, _mm256_castsi256_ps(spread_avx2(byte)));
}

BNN_INLINE BNN_AVX2 i64 scatter_avx2(const uint8_t *bits, const float *v, float *y, i64 n,
                                     i64 count) {
    i64 i = 0, k = 0;
    for (; i + 8 <= n; i += 8) {
        unsigned byte = bits[i / 8];
        _mm256_storeu_ps(y + i, take_avx2(byte, v + k, count - k));
        k += __builtin_popcount(byte);
    }
    return k + scatter_any(bits + i / 8, v + k, y + i, n - i);
}

BNN_INLINE BNN_AVX2 void mask_avx2(const float *dy, const uint8_t *bits, const float *v, float *dx,
                                   i64 n, i64 count) {
    const __m256 nil = _mm256_setzero_ps(), one = _mm256_set1_ps(1);
    i64 i = 0, k = 0;
    for (; i + 8 <= n; i += 8) {
        unsigned byte = bits[i / 8];
        __m256 positive = _mm256_cmp_ps(take_avx2(byte, v + k, count - k), nil, _CMP_GT_OQ);
        __m256 factor = _mm256_and_ps(positive, one);
        _mm256_storeu_ps(dx + i, _mm256_mul_ps(_mm256_loadu_ps(dy + i), factor));
        k += __builtin_popcount(byte);
    }
    mask_any(dy + i, bits + i / 8, v + k, dx + i, n - i);
}

/* Sixteen elements, or their first n. */
BNN_INLINE BNN_AVX512 i64 expand_avx512(unsigned word, const float *v, i64 left, float *y, i64 n) {
    const unsigned whole = 0xffff;
    __mmask16 there = (__mmask16)(left >= 16 ? whole : (1u << left) - 1);
    __mmask16 wanted = (__mmask16)(n >= 16 ? whole : (1u << n) - 1);
    __m512 next = _mm512_maskz_loadu_ps(there, v + 1);
    _mm512_mask_storeu_ps(y, wanted, _mm512_maskz_expand_ps((__mmask16)word, next));
    return __builtin_popcount(word);
}

BNN_INLINE BNN_AVX512 i64 scatter_avx512(const uint8_t *bits, const float *v, float *y, i64 n,
                                         i64 left) {
    i64 i = 0, k = 0;
    for (; i + 16 <= n; i += 16) {
        uint16_t word;
        memcpy(&word, bits + i / 8, sizeof word);
        k += expand_avx512(word, v + k, left - k, y + i, 16);
    }
    if (i < n) {
        unsigned word = bits[i / 8] | (i + 8 < n ? bits[i / 8 + 1] << 8 : 0);
        k += expand_avx512(word, v + k, left - k, y + i, n - i);
    }
    return k;
}

#endif

/* The loops over blocks. */
#define MARK(F)                                                                        \
    bnn_bitmap *b = context;                                                        \
    (void)thread;                                                                      \
    for (i64 i = begin; i < end; i++) {                                                \
        struct block k = block_of(b, i);                                               \
        const uint32_t floor = b->floors ? b->floors[i / b->blocks] : 0;               \
        b->offsets[i] = F(b->x + k.start, b->bits + k.bytes, k.n, floor);              \
    }
#define BLOCKS(CALL)                                                                   \
    bnn_bitmap *b = context;                                                        \
    (void)thread;                                                                      \
    for (i64 i = begin; i < end; i++) {                                                \
        struct block k = block_of(b, i);                                               \
        i64 before = b->offsets[i], count = b->offsets[i + 1] - before;                \
        (void)count;                                                                   \
        CALL;                                                                          \
    }
#define GATHER(F) BLOCKS(F(b->x + k.start, b->bits + k.bytes, b->values + 1 + before, k.n, count))
#define SCATTER(F, ...) \
    BLOCKS(F(b->bits + k.bytes, b->values + before, b->y + k.start, k.n __VA_ARGS__))
#define MASK(F, ...)                                                                   \
    BLOCKS(F(b->x + k.start, b->bits + k.bytes, b->values + before, b->y + k.start,    \
             k.n __VA_ARGS__))
#define COUNT                                                                          \
    bnn_bitmap *b = context;                                                           \
    (void)thread;                                                                      \
    for (i64 i = begin; i < end; i++) {                                                \
        struct block k = block_of(b, i);                                               \
        b->offsets[i] = count_any(b->bits + k.bytes, k.n);                             \
    }
#define BODY(NAME, ISA) static void NAME##_body_##ISA(void *context, i64 begin, i64 end, int thread)

BODY(count, any) { COUNT }
BODY(mark, any) { MARK(mark_any) }
BODY(gather, any) { GATHER(gather_any) }
BODY(scatter, any) { SCATTER(scatter_any) }
BODY(mask, any) { MASK(mask_any) }

#if BNN_X86_64
BNN_AVX2 BODY(count, avx2) { COUNT }
BNN_AVX2 BODY(mark, avx2) { MARK(mark_avx2) }
BNN_AVX2 BODY(gather, avx2) { GATHER(gather_avx2) }
BNN_AVX2 BODY(scatter, avx2) { SCATTER(scatter_avx2, , count) }
BNN_AVX2 BODY(mask, avx2) { MASK(mask_avx2, , count) }
#endif

static void cut(bnn_bitmap *b, i64 rows, i64 row, i64 block) {
    if (row % 8 == 0 && !b->floors) { /* no spare bits: one long row */
        row *= rows;
        rows = rows > 0;
    }
    b->row = row;
    b->row_bytes = bnn_ceil_div(row, 8);
    b->block = block;
    b->blocks = bnn_ceil_div(row, block);
    b->n_blocks = rows * b->blocks;
}

/* From counts to offsets: each block's becomes the sum of those before it. */
static void add_up(i64 *offsets, i64 n) {
    i64 total = 0;
    for (i64 i = 0; i <= n; i++) {
        i64 count = i < n ? offsets[i] : 0;
        offsets[i] = total;
        total += count;
    }
}

static i64 grain(const bnn_bitmap *b) { return BNN_GRAIN / b->block; }

bnn_bitmap bnn_bitmap_of(const uint8_t *bits, const float *values, i64 n_values, i64 rows,
                         i64 row) {
    bnn_bitmap b = {.bits = (uint8_t *)bits, .values = (float *)values, .n_values = n_values};
    cut(&b, rows, row, SHORT_BLOCK);
    return b;
}

i64 bnn_bitmap_offset_bytes(const bnn_bitmap *b) {
    return (b->n_blocks + 1) * (i64)sizeof *b->offsets;
}

int bnn_bitmap_count(bnn_bitmap *b) {
    bnn_parallel(b->n_blocks, grain(b), BNN_PICK(count_body), b);
    add_up(b->offsets, b->n_blocks);
    return b->offsets[b->n_blocks] < b->n_values;
}

/* The whole bytes that hold a stretch, and the values from the one before its first. */
struct stretch {
    const uint8_t *bits;
    const float *values;
    i64 spare, n, left; /* elements before it in its first byte; with those; values to the end */
};

BNN_INLINE struct stretch stretch_at(const bnn_bitmap *b, i64 first, i64 n) {
    i64 row = first < b->row ? 0 : first / b->row, at = first - row * b->row;
    i64 block = at / SHORT_BLOCK, spare = at % 8;
    const uint8_t *bits = b->bits + row * b->row_bytes;
    i64 before = b->offsets[row * b->blocks + block] +
                 count_any(bits + block * (SHORT_BLOCK / 8), at % SHORT_BLOCK - spare);
    return (struct stretch){bits + at / 8, b->values + before, spare, n + spare,
                            b->offsets[b->n_blocks] - before};
}

enum { LINE = 64 }; /* bytes of a cache line */

/* Asks for as much again behind a stretch of `count` values: there the next one is likely to be. */
BNN_INLINE const float *taken(struct stretch s, i64 count, const float *room) {
    for (i64 i = 0; i < count; i += LINE / 4) __builtin_prefetch(s.values + 1 + count + i);
    for (i64 i = 0; i < s.n / 8; i += LINE) __builtin_prefetch(s.bits + s.n / 8 + i);
    return room + s.spare;
}

static const float *stretch_any(const bnn_bitmap *b, i64 first, i64 n, float *room) {
    struct stretch s = stretch_at(b, first, n);
    return taken(s, scatter_any(s.bits, s.values, room, s.n), room);
}

#if BNN_X86_64
BNN_AVX2 static const float *stretch_avx2(const bnn_bitmap *b, i64 first, i64 n, float *room) {
    struct stretch s = stretch_at(b, first, n);
    return taken(s, scatter_avx2(s.bits, s.values, room, s.n, s.left), room);
}

BNN_AVX512 static const float *stretch_avx512(const bnn_bitmap *b, i64 first, i64 n,
                                              float *room) {
    struct stretch s = stretch_at(b, first, n);
    return taken(s, scatter_avx512(s.bits, s.values, room, s.n, s.left), room);
}
#endif

const float *bnn_bitmap_take(const bnn_bitmap *b, i64 first, i64 n, float *room) {
#if BNN_X86_64
    if (bnn_has_avx512()) return stretch_avx512(b, first, n, room);
    if (bnn_has_avx2()) return stretch_avx2(b, first, n, room);
#endif
    return stretch_any(b, first, n, room);
}

/* bits: rows x ceil(row / 8) bytes of x's elements that are not +0.0; the last of `offsets`,
   blocks + 1 of them, is how many there are. */
BNN_EXPORT void bnn_bitmap_mark_f32(const float *x, uint8_t *bits, i64 *offsets, i64 rows,
                                    i64 row) {
    bnn_bitmap b = {.x = x, .bits = bits, .offsets = offsets};
    cut(&b, rows, row, BLOCK);
    bnn_parallel(b.n_blocks, grain(&b), BNN_PICK(mark_body), &b);
    add_up(offsets, b.n_blocks);
}

/* The same of the elements whose magnitude is at least that of their row. */
BNN_EXPORT void bnn_bitmap_mark_largest_f32(const float *x, const uint32_t *floors, uint8_t *bits,
                                            i64 *offsets, i64 rows, i64 row) {
    bnn_bitmap b = {.x = x, .floors = floors, .bits = bits, .offsets = offsets};
    cut(&b, rows, row, BLOCK);
    bnn_parallel(b.n_blocks, grain(&b), BNN_PICK(mark_body), &b);
    add_up(offsets, b.n_blocks);
}

/* values: the 0 in front, then the marked elements; `offsets` as the marking left them, `by_row` as
   it was with floors. */
BNN_EXPORT void bnn_bitmap_gather_f32(const float *x, uint8_t *bits, float *values, i64 *offsets,
                                      i64 rows, i64 row, i64 by_row) {
    const uint32_t unread = 0;
    bnn_bitmap b = {.x = x, .bits = bits, .values = values, .offsets = offsets,
                       .floors = by_row ? &unread : NULL};
    cut(&b, rows, row, BLOCK);
    values[0] = 0;
    bnn_parallel(b.n_blocks, grain(&b), BNN_PICK(gather_body), &b);
}

/* The same where no more than `n_values` can be kept, the rest of which become 0: 0, with nothing
   written, if there are more. */
BNN_EXPORT int bnn_bitmap_fill_f32(const float *x, uint8_t *bits, float *values, i64 n_values,
                                   i64 *offsets, i64 rows, i64 row, i64 by_row) {
    bnn_bitmap b = {.floors = by_row ? (const uint32_t *)values : NULL};
    cut(&b, rows, row, BLOCK);
    const i64 used = offsets[b.n_blocks] + 1;
    if (used > n_values) return 0;
    bnn_bitmap_gather_f32(x, bits, values, offsets, rows, row, by_row);
    memset(values + used, 0, (size_t)(n_values - used) * sizeof *values);
    return 1;
}

/* y: rows x row floats again. 0, with nothing written, if there are fewer values than bits. */
BNN_EXPORT int bnn_bitmap_scatter_f32(uint8_t *bits, float *values, i64 n_values, float *y,
                                      i64 *offsets, i64 rows, i64 row) {
    bnn_bitmap b = {.bits = bits, .values = values, .n_values = n_values, .y = y,
                    .offsets = offsets};
    cut(&b, rows, row, BLOCK);
    if (!bnn_bitmap_count(&b)) return 0;
    bnn_parallel(b.n_blocks, grain(&b), BNN_PICK(scatter_body), &b);
    return 1;
}

/* dx = dy where the element is above 0, else 0 dy; dx may be dy. 0 as above. */
BNN_EXPORT int bnn_bitmap_relu_grad_f32(const float *dy, uint8_t *bits, float *values,
                                        i64 n_values, float *dx, i64 *offsets, i64 rows, i64 row) {
    bnn_bitmap b = {.x = dy, .bits = bits, .values = values, .n_values = n_values, .y = dx,
                    .offsets = offsets};
    cut(&b, rows, row, BLOCK);
    if (!bnn_bitmap_count(&b)) return 0;
    bnn_parallel(b.n_blocks, grain(&b), BNN_PICK(mask_body), &b);
    return 1;
}
