"""All kernels: operator name to function."""

from bnnopt.runtime.kernels import Kernel
from bnnopt.runtime.kernels.reference.domain import DOMAIN_KERNELS
from bnnopt.runtime.kernels.reference.standard import STANDARD_KERNELS

KERNELS: dict[str, Kernel] = {**STANDARD_KERNELS, **DOMAIN_KERNELS}
assert len(KERNELS) == len(STANDARD_KERNELS) + len(DOMAIN_KERNELS)
