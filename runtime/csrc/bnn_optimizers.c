/* Optimiser steps, with the numpy kernels' operations in their order: equal to the last bit.

   A step works on blocks of float32. The gradient of a block is there, or is made of its sign bits
   and the weights, or of what a product has just summed. Weights and state are float32, or float16
   and widened and rounded block by block.

   A momentum in int8 has a unit a row, which all blocks of the row must know before the first is
   rounded: it goes by the largest magnitude of the row after the step before, its peak. Peaks stand
   in columns by the number of their step, so that a step reads two of them, raises one and clears
   the next, and blocks of a row may come in any order and from any thread. */
#include "bnn_pack.h"
#include "bnn_products.h"
#include "bnn_rounding.h"
#include "bnn_update.h"

#include <math.h>

/* As in compiled/optimizers.py. */
enum bnn_rule { BNN_SGD, BNN_MOMENTUM, BNN_ADAM, BNN_FIRST_MOMENT, BNN_BOP, BNN_RMS_PROP };

/* How the rate follows from the session's and the number of the step, counted from 1: as it is;
   without the bias of both moments, that of the second one apart or in the rate; over a second
   moment that has always been `root`. As in compiled/optimizers.py. */
enum bnn_rate_rule { BNN_PLAIN, BNN_UNBIASED, BNN_UNBIASED_RATE, BNN_KNOWN_ROOT };

enum { BLOCK = 512, LINE = 64, PEAKS = 4 };

static const float LEAST_UNIT = 1e-30f;

/* The rules give the largest magnitude of all new weights and second moments, as bits: those of NaN and
   infinity are above LARGEST. */
enum { LARGEST = 0x7f7fffff };

BNN_INLINE int32_t magnitude(float x) { return (int32_t)(bnn_bits_of_float(x) & 0x7fffffff); }
BNN_INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

BNN_INLINE int32_t sgd_step(const bnn_update *u, const float *w, const float *dw, float *next_w,
                            i64 n) {
    const float rate = u->rate;
    int32_t largest = 0;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float next = w[i] - dw[i] * rate;
        next_w[i] = next;
        largest = larger(largest, magnitude(next));
    }
    return largest;
}

BNN_INLINE int32_t momentum_step(const bnn_update *u, const float *w, const float *dw,
                                 const float *m, float *next_w, float *next_m, i64 n) {
    const float rate = u->rate, keep = u->keep1;
    int32_t largest = 0;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], moment = m[i] * keep + dw[i];
        float next = weight - moment * rate;
        next_m[i] = moment;
        next_w[i] = next;
        largest = larger(largest, magnitude(next));
    }
    return largest;
}

BNN_INLINE int32_t rms_prop_step(const bnn_update *u, const float *w, const float *dw,
                                 const float *v, float *next_w, float *next_v, i64 n) {
    const bnn_update r = *u;
    int32_t largest = 0;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], slope = dw[i];
        float second = slope * slope * r.take2 + v[i] * r.keep2;
        float next = weight - slope * r.rate / (sqrtf(second) + r.epsilon);
        next_v[i] = second;
        next_w[i] = next;
        largest = larger(larger(largest, magnitude(next)), magnitude(second));
    }
    return largest;
}

BNN_INLINE int32_t first_moment_step(const bnn_update *u, const float *w, const float *dw,
                                     const float *m, float *next_w, float *next_m, i64 n) {
    const bnn_update r = *u;
    int32_t largest = 0;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], moment = m[i] * r.keep1 + dw[i] * r.take1;
        float next = (weight - moment * r.rate) * r.keep;
        next_m[i] = moment;
        next_w[i] = next;
        largest = larger(largest, magnitude(next));
    }
    return largest;
}

BNN_INLINE int32_t adam_step(const bnn_update *u, const float *w, const float *dw,
                             const float *m, const float *v, float *next_w, float *next_m,
                             float *next_v, i64 n) {
    const bnn_update r = *u;
    int32_t largest = 0;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], slope = dw[i];
        float first = m[i] * r.keep1 + slope * r.take1;
        float second = slope * slope * r.take2 + v[i] * r.keep2;
        float bottom = sqrtf(second / r.correction2) + r.epsilon;
        next_m[i] = first;
        next_v[i] = second;
        float next = (weight - first * r.rate / bottom) * r.keep;
        next_w[i] = next;
        largest = larger(larger(largest, magnitude(next)), magnitude(second));
    }
    return largest;
}

/* dw of the weights w, from bit 0 of `bits` on. Times 0 or 1, as in the operator's body. */
BNN_INLINE void sign_grad(const bnn_update *u, const uint8_t *bits, const float *w, float *dw,
                          i64 n) {
    const v8i places = {1, 2, 4, 8, 16, 32, 64, 128};
    const v8f zero = {0}, one = zero + 1.0f, scale = zero + u->scale, limit = zero + u->limit;
    i64 i = 0;
    for (; i + 8 <= n; i += 8) {
        v8f weight;
        memcpy(&weight, w + i, sizeof weight);
        v8i is_minus = ((places & bits[i / 8]) == 0) & INT32_MIN;
        v8i is_inside = ((v8f)((v8i)weight & INT32_MAX) <= limit) & (v8i)one;
        v8f slope = (v8f)((v8i)scale ^ is_minus) * (v8f)is_inside;
        memcpy(dw + i, &slope, sizeof slope);
    }
    for (; i < n; i++) {
        float sign = (bits[i / 8] & (1 << i % 8)) ? u->scale : -u->scale;
        dw[i] = sign * (float)(fabsf(w[i]) <= u->limit);
    }
}

/* dw of the weights w, from what a product has summed: as ClipGrad and a product with a number. */
BNN_INLINE void masked_grad(const bnn_update *u, const float *raw, const float *w, float *dw, i64 n) {
    const float scale = u->scale, limit = u->limit;
    if (limit < 0)
        for (i64 i = 0; i < n; i++) dw[i] = raw[i] * scale;
    else
        for (i64 i = 0; i < n; i++) dw[i] = raw[i] * (float)(fabsf(w[i]) <= limit) * scale;
}

/* What the gradient of a block is made of: one of them is there. */
struct slope {
    const float *dw;
    const uint8_t *bits;
    const float *raw; /* of a product */
};

/* The gradient of the weights w, the first of which is weight `at`. */
BNN_INLINE const float *gradient_of(const bnn_update *u, struct slope s, i64 at, const float *w,
                                    float *made, i64 n) {
    uint8_t bits[BLOCK / 8];
    if (s.dw) return s.dw;
    if (s.raw && u->of_signs) bnn_pack_floats(s.raw, bits, n, BNN_NOT_LESS, 0, 0);
    if (s.raw && !u->of_signs) masked_grad(u, s.raw, w, made, n);
    else sign_grad(u, s.bits ? s.bits : bits, w, made, n);
    if (u->dw) memcpy(u->dw + at, made, (size_t)n * sizeof *made);
    return made;
}

/* A block in float32: where its inputs are and its outputs go. */
struct block {
    const float *w, *dw, *m, *v;
    float *next_w, *next_m, *next_v;
};

BNN_INLINE int32_t run_rule(const bnn_update *u, const struct block *b, i64 n) {
    if (u->rule == BNN_SGD) return sgd_step(u, b->w, b->dw, b->next_w, n);
    if (u->rule == BNN_MOMENTUM)
        return momentum_step(u, b->w, b->dw, b->m, b->next_w, b->next_m, n);
    if (u->rule == BNN_RMS_PROP)
        return rms_prop_step(u, b->w, b->dw, b->v, b->next_w, b->next_v, n);
    if (u->rule == BNN_FIRST_MOMENT)
        return first_moment_step(u, b->w, b->dw, b->m, b->next_w, b->next_m, n);
    return adam_step(u, b->w, b->dw, b->m, b->v, b->next_w, b->next_m, b->next_v, n);
}

/* Note it where new weights or state are NaN or infinite. The rules don't look at the momentum, as
   weights do not stay finite where it does not. */
BNN_INLINE void note_divergence(const bnn_update *u, int32_t largest) {
    if (u->diverged && largest > LARGEST) __atomic_store_n(u->diverged, 1, __ATOMIC_RELAXED);
}

/* The column of the step `age` steps ago. */
BNN_INLINE int32_t *peak_of(const bnn_update *u, i64 row, i64 age) {
    return (int32_t *)u->peaks + row * PEAKS + ((u->number - age) & (PEAKS - 1));
}

/* The unit of a row `age` steps ago. */
BNN_INLINE float unit_of(const bnn_update *u, i64 row, i64 age) {
    const int32_t peak = __atomic_load_n(peak_of(u, row, age + 1), __ATOMIC_RELAXED);
    const float unit = bnn_float_of_bits((uint32_t)peak) * u->unit;
    return unit >= LEAST_UNIT ? unit : 0;
}

/* Raise the peak of a row to what is in m, and clear that of the next step. */
BNN_INLINE void note_peak(const bnn_update *u, i64 row, const float *m, i64 n) {
    int32_t largest = 0, *peak = peak_of(u, row, 0);
    for (i64 i = 0; i < n; i++) largest = larger(largest, magnitude(m[i]));
    int32_t known = __atomic_load_n(peak, __ATOMIC_RELAXED);
    while (known < largest && !__atomic_compare_exchange_n(peak, &known, largest, 0, __ATOMIC_RELAXED,
                                                           __ATOMIC_RELAXED)) {
    }
    __atomic_store_n(peak_of(u, row, -1), 0, __ATOMIC_RELAXED);
}

/* The momentum of a block in float32, however it is kept. */
BNN_INLINE void load_momentum(const bnn_update *u, i64 row, i64 at, float *m, i64 n) {
    if (u->peaks) {
        const int8_t *q = (const int8_t *)u->m + at;
        const float unit = unit_of(u, row, 1);
        for (i64 i = 0; i < n; i++) m[i] = (float)q[i] * unit;
    } else if (u->half) {
        bnn_decode_halves((const bnn_half *)u->m + at, m, n);
        for (i64 i = 0; i < n; i++) m[i] *= 1 / STATE_SCALE;
    } else {
        memcpy(m, (const float *)u->m + at, (size_t)n * sizeof *m);
    }
}

/* Keep it; of halves to nearest or by chance. m is not what it was. */
BNN_INLINE void store_momentum(const bnn_update *u, i64 row, i64 at, float *m, int by_chance, i64 n) {
    const uint32_t counter = (uint32_t)(u->stream + at);
    if (u->peaks) {
        note_peak(u, row, m, n);
        store_bytes(m, (int8_t *)u->next_m + at, unit_of(u, row, 0), counter, n);
    } else if (u->half) {
        for (i64 i = 0; i < n; i++) m[i] *= STATE_SCALE;
        if (by_chance) store_by_chance(m, (bnn_half *)u->next_m + at, counter, n);
        else store_nearest(m, (bnn_half *)u->next_m + at, n);
    } else {
        memcpy((float *)u->next_m + at, m, (size_t)n * sizeof *m);
    }
}

BNN_INLINE void float_block(const bnn_update *u, i64 at, struct slope s, i64 n) {
    float made[BLOCK];
    struct block b = {.w = (const float *)u->w + at, .m = (const float *)u->m + at,
                      .v = (const float *)u->v + at, .next_w = (float *)u->next_w + at,
                      .next_m = (float *)u->next_m + at, .next_v = (float *)u->next_v + at};
    b.dw = gradient_of(u, s, at, b.w, made, n);
    note_divergence(u, run_rule(u, &b, n));
}

BNN_INLINE void half_block(const bnn_update *u, i64 row, i64 at, struct slope s, i64 n) {
    float w[BLOCK], m[BLOCK], v[BLOCK], made[BLOCK];
    const uint32_t counter = (uint32_t)(u->stream + at);
    if (u->latent_unit > 0) load_latents((const int8_t *)u->w + at, w, u->latent_unit, n);
    else bnn_decode_halves((const bnn_half *)u->w + at, w, n);
    if (u->m) load_momentum(u, row, at, m, n);
    if (u->v) bnn_decode_halves((const bnn_half *)u->v + at, v, n);
    for (i64 i = 0; u->v && i < n; i++) v[i] = v[i] * (1 / STATE_SCALE) * (v[i] * (1 / STATE_SCALE));
    struct block b = {w, gradient_of(u, s, at, w, made, n), m, v, w, m, v};
    note_divergence(u, run_rule(u, &b, n));
    for (i64 i = 0; u->v && i < n; i++) v[i] = sqrtf(v[i]) * STATE_SCALE;
    if (u->latent_unit > 0) store_latents(w, (int8_t *)u->next_w + at, u->latent_unit, counter, n);
    else if (u->stochastic) store_by_chance(w, (bnn_half *)u->next_w + at, counter, n);
    else store_nearest(w, (bnn_half *)u->next_w + at, n);
    if (u->m) store_momentum(u, row, at, m, 0, n);
    if (u->v) store_by_chance(v, (bnn_half *)u->next_v + at, counter, n);
}

/* Eight binary weights or fewer: the bits that turn. */
BNN_INLINE unsigned turning(const float *m, unsigned signs, float threshold, i64 n) {
    unsigned turns = 0;
    for (i64 i = 0; i < n; i++) {
        unsigned pushes_plus = m[i] > 0, is_plus = signs >> i & 1;
        turns |= (unsigned)(fabsf(m[i]) > threshold && pushes_plus == is_plus) << i;
    }
    return turns;
}

/* Bop: binary weights without latent ones, arXiv:1906.02107. */
BNN_INLINE void bop_block(const bnn_update *u, i64 row, i64 at, i64 byte, struct slope s, i64 n) {
    float m[BLOCK], made[BLOCK];
    const uint8_t *w = (const uint8_t *)u->w + byte;
    uint8_t *next_w = (uint8_t *)u->next_w + byte;
    const float *dw = gradient_of(u, s, at, NULL, made, n);
    load_momentum(u, row, at, m, n);
    const float keep = u->keep1, take = u->take1;
    int32_t largest = 0;
    for (i64 i = 0; i < n; i++) {
        m[i] = m[i] * keep + dw[i] * take;
        largest = larger(largest, magnitude(m[i]));
    }
    note_divergence(u, largest);
    for (i64 i = 0; i < n; i += 8) {
        unsigned signs = w[i / 8], used = (1u << bnn_min(8, n - i)) - 1;
        unsigned turns = turning(m + i, signs, u->threshold, bnn_min(8, n - i));
        next_w[i / 8] = (uint8_t)((signs ^ turns) & used);
    }
    store_momentum(u, row, at, m, 1, n);
}

BNN_INLINE void update_block(const bnn_update *u, i64 row, i64 start, struct slope s, i64 n) {
    i64 at = row * u->row + start;
    if (u->rule == BNN_BOP) bop_block(u, row, at, row * bnn_ceil_div(u->row, 8) + start / 8, s, n);
    else if (u->half) half_block(u, row, at, s, n);
    else float_block(u, at, s, n);
}

struct stretch {
    const bnn_update *update;
    i64 row, start;
    const float *raw;
};

/* Fetch the weights and the state below those of a stretch: a tile goes on there, and a processor
   that sees rows of a tile far apart does not guess it. */
BNN_INLINE void fetch_next_row(const bnn_update *u, i64 row, i64 start, i64 n) {
    const void *const arrays[] = {u->rule == BNN_BOP ? NULL : u->w, u->m, u->v};
    const i64 kept = u->half ? sizeof(bnn_half) : sizeof(float);
    if (row + 1 >= u->rows) return;
    for (int a = 0; a < 3; a++) {
        const int is_byte = a == 0 ? u->latent_unit > 0 : a == 1 && u->peaks;
        const i64 size = is_byte ? 1 : kept;
        const uint8_t *next = (const uint8_t *)arrays[a] + ((row + 1) * u->row + start) * size;
        for (i64 i = 0; arrays[a] && i < n * size; i += LINE) __builtin_prefetch(next + i, 1);
    }
}

BNN_INLINE void update_stretch(void *context, i64 begin, i64 end) {
    const struct stretch *s = context;
    fetch_next_row(s->update, s->row, s->start, end);
    for (i64 i = begin; i < end; i += BLOCK)
        update_block(s->update, s->row, s->start + i, (struct slope){.raw = s->raw + i},
                     bnn_min(BLOCK, end - i));
}

BNN_ALL(update_stretch)

void bnn_update_row(const void *context, i64 row, i64 start, const float *dw, i64 n) {
    struct stretch s = {context, row, start, dw};
    BNN_PICK_ALL(update_stretch)(&s, 0, n, 0);
}

/* The numbers of a step, before its first block: `lr` and `step` may be NULL where the rule has none.
   In float64 up to the rate, as the numpy kernels have it. */
BNN_EXPORT void bnn_begin_update(bnn_update *u, const float *lr, const i64 *step) {
    const double number = step ? (double)*step : 0;
    const double first = 1 - pow(u->beta1, number), second = 1 - pow(u->beta2, number);
    u->rate = lr ? *lr : 0;
    u->keep = 1 - u->rate * u->decay;
    u->correction2 = u->rate_rule == BNN_UNBIASED ? (float)second : 1;
    if (u->rate_rule == BNN_UNBIASED) u->rate /= (float)first;
    if (u->rate_rule == BNN_UNBIASED_RATE) u->rate *= (float)(sqrt(second) / first);
    if (u->rate_rule == BNN_KNOWN_ROOT)
        u->rate = u->rate / (float)first / (float)(u->root + u->bottom / sqrt(second));
    u->stream = stream_start(step ? *step : 0, u->seed) + u->first;
    u->number = step ? *step : 0;
}

struct step {
    const bnn_update *update;
    const float *dw, *raw;
    const uint8_t *bits;
    i64 row_bytes, piece, pieces; /* elements and number of pieces of a row */
};

BNN_INLINE void step_pieces(void *context, i64 begin, i64 end) {
    const struct step *s = context;
    i64 row_length = s->update->row;
    for (i64 i = begin; i < end; i++) {
        i64 row = i / s->pieces, start = i % s->pieces * s->piece;
        i64 stop = bnn_min(start + s->piece, row_length);
        for (i64 j = start; j < stop; j += BLOCK) {
            i64 at = row * row_length + j;
            struct slope slope = {.dw = s->dw ? s->dw + at : NULL,
                                  .raw = s->raw ? s->raw + at : NULL,
                                  .bits = s->bits ? s->bits + row * s->row_bytes + j / 8 : NULL};
            update_block(s->update, row, j, slope, bnn_min(BLOCK, stop - j));
        }
    }
}

BNN_ALL(step_pieces)

/* One step of all weights, by one of: dw, as many floats; raw, what a product has summed; bits, the
   signs of dw in rows of whole bytes. The others are NULL. */
BNN_EXPORT void bnn_optimizer_step(const bnn_update *update, const float *dw, const float *raw,
                                   const uint8_t *bits) {
    bnn_update u = *update;
    const int has_spare_bits = (bits || u.rule == BNN_BOP) && u.row % 8;
    if (!has_spare_bits && !u.peaks) { /* one long row */
        u.row *= u.rows;
        u.rows = u.rows > 0;
    }
    struct step s = {.update = &u, .dw = dw, .raw = raw, .bits = bits, .row_bytes = bnn_ceil_div(u.row, 8),
                     .piece = BNN_GRAIN, .pieces = bnn_ceil_div(u.row, BNN_GRAIN)};
    i64 grain = bnn_grain_of(bnn_min(u.row, s.piece));
    bnn_parallel(u.rows * s.pieces, grain, BNN_PICK_ALL(step_pieces), &s);
}
