"""C99 of a compiled folder: its training step and its network, without Python or an allocator.

The calls of a program are those that the native runtime would make: each kernel's Python adapter is
asked on the planned memory while C functions are only noted (`bnnopt.runtime.kernels.compiled.
functions.dry_run`), and what was noted is written down. There is no emitter for any operator.
"""

from bnnopt.emit.data import write_samples
from bnnopt.emit.emitting import Emitted, emit

__all__ = ["Emitted", "emit", "write_samples"]
