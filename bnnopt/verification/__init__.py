"""Rewritten step against reference: run both, compare, and say what should not be."""

from bnnopt.verification.outcome import Difference, Verification
from bnnopt.verification.verify import verify_folder

__all__ = ["Difference", "Verification", "verify_folder"]
