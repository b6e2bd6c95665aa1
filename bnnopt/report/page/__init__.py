"""A page of its own that shows where the memory of a training step goes.

`contents` says what is on it, `tables` is what can be read without the pictures, `charts.js` draws
these with D3, which is part of the file: nothing is fetched.
"""

from bnnopt.report.page.contents import Measured, Page, Version
from bnnopt.report.page.render import render_page

__all__ = ["Measured", "Page", "Version", "render_page"]
