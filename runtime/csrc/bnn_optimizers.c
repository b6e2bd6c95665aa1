/* Optimiser steps, with the numpy kernels' operations in their order: equal to the last bit.

   A step works on blocks of float32. The gradient of a block is there, or is made of its sign bits
   and the weights: dw = +-scale, 0 where |w| > limit. Weights and state are float32, or float16 and
   widened and rounded block by block. The outputs may be the buffers of w, m and v. */
#include "bnn_rounding.h"

#include <math.h>

enum rule { SGD, MOMENTUM, ADAM, FIRST_MOMENT };
enum { BLOCK = 512 };

struct rates {
    float rate, keep1, take1, keep2, take2, correction2, epsilon, scale, limit;
};

struct step {
    enum rule rule;
    struct rates rates;
    const void *w, *m, *v; /* float, or bnn_half if `half` */
    const float *dw;
    const uint8_t *bits; /* instead of dw: rows of row_bytes, as bnn_pack.c lays them out */
    void *next_w, *next_m, *next_v;
    i64 row, row_bytes, piece, pieces; /* elements and bytes a row, elements and number of pieces */
    int half, stochastic;
    uint32_t stream; /* where the counter of the random bits begins */
};

BNN_INLINE void sgd_step(const struct rates *rates, const float *w, const float *dw, float *next_w,
                         i64 n) {
    const float rate = rates->rate;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) next_w[i] = w[i] - dw[i] * rate;
}

BNN_INLINE void momentum_step(const struct rates *rates, const float *w, const float *dw,
                              const float *m, float *next_w, float *next_m, i64 n) {
    const float rate = rates->rate, keep = rates->keep1;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], moment = m[i] * keep + dw[i];
        next_m[i] = moment;
        next_w[i] = weight - moment * rate;
    }
}

BNN_INLINE void first_moment_step(const struct rates *rates, const float *w, const float *dw,
                                  const float *m, float *next_w, float *next_m, i64 n) {
    const float rate = rates->rate, keep = rates->keep1, take = rates->take1;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], moment = m[i] * keep + dw[i] * take;
        next_m[i] = moment;
        next_w[i] = weight - moment * rate;
    }
}

BNN_INLINE void adam_step(const struct rates *rates, const float *w, const float *dw,
                          const float *m, const float *v, float *next_w, float *next_m,
                          float *next_v, i64 n) {
    const struct rates r = *rates;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], slope = dw[i];
        float first = m[i] * r.keep1 + slope * r.take1;
        float second = slope * slope * r.take2 + v[i] * r.keep2;
        float bottom = sqrtf(second / r.correction2) + r.epsilon;
        next_m[i] = first;
        next_v[i] = second;
        next_w[i] = weight - first * r.rate / bottom;
    }
}

/* dw of the weights w, from bit 0 of `bits` on. Times 0 or 1, as in the operator's body. */
BNN_INLINE void sign_grad(const struct rates *r, const uint8_t *bits, const float *w, float *dw,
                          i64 n) {
    const v8i places = {1, 2, 4, 8, 16, 32, 64, 128};
    const v8f zero = {0}, one = zero + 1.0f, scale = zero + r->scale, limit = zero + r->limit;
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
        float sign = (bits[i / 8] & (1 << i % 8)) ? r->scale : -r->scale;
        dw[i] = sign * (float)(fabsf(w[i]) <= r->limit);
    }
}

/* A block in float32: where its inputs are and its outputs go. */
struct block {
    const float *w, *dw, *m, *v;
    float *next_w, *next_m, *next_v;
};

BNN_INLINE void run_rule(const struct step *s, const struct block *b, i64 n) {
    const struct rates *r = &s->rates;
    if (s->rule == SGD) sgd_step(r, b->w, b->dw, b->next_w, n);
    if (s->rule == MOMENTUM) momentum_step(r, b->w, b->dw, b->m, b->next_w, b->next_m, n);
    if (s->rule == FIRST_MOMENT) first_moment_step(r, b->w, b->dw, b->m, b->next_w, b->next_m, n);
    if (s->rule == ADAM)
        adam_step(r, b->w, b->dw, b->m, b->v, b->next_w, b->next_m, b->next_v, n);
}

BNN_INLINE void block_step(const struct step *s, i64 at, const uint8_t *bits, i64 n) {
    float made[BLOCK];
    struct block b = {.w = (const float *)s->w + at, .dw = s->dw + at,
                      .m = (const float *)s->m + at, .v = (const float *)s->v + at,
                      .next_w = (float *)s->next_w + at, .next_m = (float *)s->next_m + at,
                      .next_v = (float *)s->next_v + at};
    if (bits) {
        sign_grad(&s->rates, bits, b.w, made, n);
        b.dw = made;
    }
    run_rule(s, &b, n);
}

BNN_INLINE void half_block_step(const struct step *s, i64 at, const uint8_t *bits, i64 n) {
    float w[BLOCK], m[BLOCK], v[BLOCK], made[BLOCK];
    struct block b = {w, bits ? made : s->dw + at, m, v, w, m, v};
    const uint32_t counter = s->stream + (uint32_t)at;
    bnn_decode_halves((const bnn_half *)s->w + at, w, n);
    if (s->m) bnn_decode_halves((const bnn_half *)s->m + at, m, n);
    if (s->v) bnn_decode_halves((const bnn_half *)s->v + at, v, n);
    for (i64 i = 0; s->m && i < n; i++) m[i] *= 1 / STATE_SCALE;
    for (i64 i = 0; s->v && i < n; i++) v[i] = v[i] * (1 / STATE_SCALE) * (v[i] * (1 / STATE_SCALE));
    if (bits) sign_grad(&s->rates, bits, w, made, n);
    run_rule(s, &b, n);
    for (i64 i = 0; s->m && i < n; i++) m[i] *= STATE_SCALE;
    for (i64 i = 0; s->v && i < n; i++) v[i] = sqrtf(v[i]) * STATE_SCALE;
    if (s->stochastic) store_by_chance(w, (bnn_half *)s->next_w + at, counter, n);
    else store_nearest(w, (bnn_half *)s->next_w + at, n);
    if (s->m) store_nearest(m, (bnn_half *)s->next_m + at, n);
    if (s->v) store_by_chance(v, (bnn_half *)s->next_v + at, counter, n);
}

BNN_INLINE void step_pieces(void *context, i64 begin, i64 end) {
    const struct step *s = context;
    for (i64 i = begin; i < end; i++) {
        i64 row = i / s->pieces, start = i % s->pieces * s->piece;
        i64 n = bnn_min(s->piece, s->row - start);
        for (i64 j = 0; j < n; j += BLOCK) {
            const uint8_t *bits = s->bits + row * s->row_bytes + (start + j) / 8;
            i64 at = row * s->row + start + j, length = bnn_min(BLOCK, n - j);
            if (s->half) half_block_step(s, at, s->bits ? bits : NULL, length);
            else block_step(s, at, s->bits ? bits : NULL, length);
        }
    }
}

BNN_BOTH(step_pieces)

/* w, m, v and the outputs: rows x row floats, or halves if `half`; m and v may be NULL where the rule
   has none. In half precision m is STATE_SCALE times the momentum, v STATE_SCALE times the root of
   the second moment. Either dw, rows x row floats, or bits: rows x ceil(row / 8) bytes. `numbers` are
   those of struct rates: rate, beta1, 1 - beta1, beta2, 1 - beta2, 1 - beta2^step, epsilon, scale,
   limit. The rate of Adam is lr / (1 - beta1^step); that of the first moment is that over
   (root + epsilon). */
BNN_EXPORT void bnn_optimizer_step(i64 rule, const void *w, const float *dw, const uint8_t *bits,
                                   const void *m, const void *v, void *next_w, void *next_m,
                                   void *next_v, i64 rows, i64 row, const float *numbers, i64 half,
                                   i64 stochastic, i64 stream) {
    struct step s = {.rule = (enum rule)rule, .w = w, .dw = dw, .m = m, .v = v, .bits = bits,
                     .next_w = next_w, .next_m = next_m, .next_v = next_v, .row = row,
                     .half = (int)half, .stochastic = (int)stochastic, .stream = (uint32_t)stream};
    memcpy(&s.rates, numbers, sizeof s.rates);
    if (!bits || row % 8 == 0) { /* no spare bits: one long row */
        s.row *= rows;
        rows = rows > 0;
    }
    s.row_bytes = bnn_ceil_div(s.row, 8);
    s.piece = BNN_GRAIN;
    s.pieces = bnn_ceil_div(s.row, s.piece);
    bnn_parallel(rows * s.pieces, bnn_grain_of(bnn_min(s.row, s.piece)), BNN_PICK(step_pieces), &s);
}
