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

/* The node that failed: its operands do not fit, such as a label that is no class, or weights would
   not be finite; NULL if none did. After such a step the state has to be loaded again. */
extern const char *bnn_error;

/* The state before the first step; where the initial weights are a file, all zeros: read the file. */
void bnn_reset(void);

/* One step; the loss before it, NAN if it failed. */
float bnn_train_step({{train_parameters}}float lr);

/* The network's output in the arena, valid until the next call, with running statistics; NULL if it
   failed. */
const {{output_type}} *bnn_predict({{predict_parameters}});

#ifdef __cplusplus
}
#endif
#endif
