
/* Beside the arena: for activations of which fewer elements are zero than planned. These are enough for
   any batch; with fewer, or 0, a step fails that needs more. */
#ifndef BNN_SPILL_BYTES
#define BNN_SPILL_BYTES {{bytes}}
#endif
