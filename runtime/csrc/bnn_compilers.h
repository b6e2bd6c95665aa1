/* What GCC and Clang call differently. */
#ifndef BNN_COMPILERS_H
#define BNN_COMPILERS_H

/* Elements of the vectors a and b, those of b numbered behind those of a; `places` is a vector type of
   integers as wide as the elements, for GCC before 12. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define BNN_SHUFFLE(places, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef BNN_SHUFFLE
#define BNN_SHUFFLE(places, a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

/* BNN_SAME_OR_APART: a loop's output may be the very buffer of an input. Without this compilers test
   for overlap at run time and take their scalar loop; element i is read before it is written, so the
   vector loop is right.
   BNN_TARGET .. BNN_TARGET_END: functions between them are compiled for these instructions. */
#define BNN_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* loops that call libm stay scalar */
#define BNN_SAME_OR_APART _Pragma("clang loop vectorize(assume_safety)")
#define BNN_TARGET(instructions) \
    BNN_PRAGMA(clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define BNN_TARGET_END _Pragma("clang attribute pop")
#else
#define BNN_SAME_OR_APART _Pragma("GCC ivdep")
#define BNN_TARGET(instructions) BNN_PRAGMA(GCC target(instructions))
#define BNN_TARGET_END
#endif

#endif
