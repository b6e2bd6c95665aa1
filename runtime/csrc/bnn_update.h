/* What an optimiser does with a weight gradient: in a step of its own, or stretch by stretch, as a
   product finishes them. */
#ifndef BNN_UPDATE_H
#define BNN_UPDATE_H

#include "bnn.h"

/* A step of rows x row weights; compiled/optimizers.py fills it in, in this order. w, m, v and what
   replaces them: floats, or halves if `half`; m and v may be NULL where the rule has none. In half
   precision m is STATE_SCALE times the momentum, v STATE_SCALE times the root of the second moment.
   Where there are `peaks` m is int8, and with a `latent_unit` w is: q stands for (q + 1/2) units. The weights of Bop are sign bits, rows of whole bytes. The
   outputs may be the buffers of w, m, v. */
typedef struct {
    i64 rule, rows, row; /* enum bnn_rule in bnn_optimizers.c */
    i64 rate_rule;                /* enum bnn_rate_rule there */
    i64 half, stochastic, seed;
    i64 first;                    /* weights of the layer that stand before these */
    i64 of_signs;                 /* whether only the sign of a gradient is used */
    const void *w, *m, *v;
    void *next_w, *next_m, *next_v;
    float *peaks; /* (rows, PEAKS): of a momentum in int8, see bnn_optimizers.c; or NULL */
    float *dw; /* of a product: where else its gradient goes, as it is used; or NULL */
    int *diverged; /* set to 1 where weights or state become NaN or infinite; or NULL */
    double beta1, beta2, root, bottom; /* what the rate of a step follows from; bottom: epsilon */
    float decay;                       /* AdamW's */
    float keep1, take1, keep2, take2, epsilon;
    float threshold;    /* of Bop */
    float unit;         /* of a momentum in int8, for a peak of 1 */
    float latent_unit;  /* of weights in int8; 0 of halves */
    float scale, limit; /* dw = +-scale of signs, else scale dw; 0 where |w| > limit, if that is >= 0 */
    float rate, correction2, keep; /* of the present step, as `stream`: bnn_begin_update sets them */
    i64 stream;                    /* where the counter of the random bits begins */
    i64 number;                    /* of the step, from 1 on */
} bnn_update;

/* Where finished elements of a weight gradient go: those of a row from `start` on. */
typedef struct {
    void (*take)(const void *context, i64 row, i64 start, const float *dw, i64 n);
    const void *context;
} bnn_sink;

/* Steps these weights; `context` is a bnn_update. Of Bop, whole bytes. */
void bnn_update_row(const void *context, i64 row, i64 start, const float *dw, i64 n);

#endif
