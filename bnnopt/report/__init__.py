"""What ``optimize`` found and where the memory goes: computed here, and drawn in `text`, `html`."""

from bnnopt.report.profile import Profile, inspect_step
from bnnopt.report.report import Footprint, Report
from bnnopt.report.static_sum import StaticSum

__all__ = ["Footprint", "Profile", "Report", "StaticSum", "inspect_step"]
