/* {{model}} at -{{level}}, batches of {{batch}}, {{optimizer}}, {{loss_name}}; made by bnnopt emit.

   Arrays hold whole batches, one sample behind the other: of BNN_BATCH_SIZE to train, and of
   BNN_PREDICT_SIZE to predict.
{{inputs}} */
#ifndef BNN_MODEL_H
#define BNN_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
{{sizes}}
};

#define BNN_LEARNING_RATE {{learning_rate}}f /* unless another one is given */
#define BNN_ALIGNED __attribute__((aligned(64)))

/* All values of a step live here. What a function takes may be written where it belongs in the
   arena, and that address be given to the function: then nothing is copied. */
extern unsigned char bnn_arena[BNN_ARENA_BYTES];
{{places}}
{{spill}}
/* What outlives a step, as one range of bytes: to save it, write it; to go on, read it.

         offset  what
{{layout}} */
extern unsigned char bnn_state[BNN_STATE_BYTES];

extern const size_t bnn_arena_bytes, bnn_state_bytes;

/* What failed in the last call: a node whose operands do not fit, such as the loss of a label that is
   no class, or that changes weights to what is not finite; NULL if nothing did. */
extern const char *bnn_error;

/* The state before the first step; where the initial weights are a file, all zeros: read the file. */
void bnn_reset(void);

/* A copy of the state is kept in every step, to be put back if it fails; with 0 there is none. */
#ifndef BNN_UNDO
#define BNN_UNDO 1
#endif

/* One step; the loss before it. NAN if it failed: then nothing has changed, and the next batch may be
   tried; but where BNN_UNDO is 0 bnn_state is half a step on: read one that was saved. */
float bnn_train_step({{train_parameters}}float lr);

/* The network's output in the arena, valid until the next call, with running statistics; NULL if it
   failed. */
const {{output_type}} *bnn_predict({{predict_parameters}});
{{further_outputs}}
#ifdef __cplusplus
}
#endif
#endif
