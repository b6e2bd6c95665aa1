"""Tables for people: no frames, figures to the right, and never a name cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from bnnopt.units import size

GAP = 2  # columns of the terminal between two of a table


@dataclass(frozen=True)
class Column:
    """A column of a `Listing`.

    Attributes
    ----------
    title : str
        May have line breaks.
    is_figure : bool
        Flush right.
    wraps : bool
        Text that may be broken at spaces; other text is broken only where nothing else helps.
    optional : bool
        Left out where the table would be too wide; of several, the last one first.
    """

    title: str
    is_figure: bool = False
    wraps: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a `Listing`: one text a column; `quiet` for one of little interest."""

    cells: Sequence[str]
    quiet: bool = False
    rule_above: bool = False


@dataclass(frozen=True)
class Listing:
    """A table that leaves optional columns out where the terminal is narrow."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title and the widest table that fits."""
        listing = self
        while listing._least_width() > options.max_width and listing._can_shrink():
            listing = listing._without_last_optional()
        if self.title:
            yield Text(self.title, "bold")
        yield listing._table(may_fold=listing._least_width() > options.max_width)

    def _table(self, may_fold: bool = False) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0)
        )
        n_lines = max(column.title.count("\n") for column in self.columns)
        for column in self.columns:
            table.add_column(
                Text("\n" * (n_lines - column.title.count("\n")) + column.title),
                justify="right" if column.is_figure else "left",
                overflow="fold",
                no_wrap=not column.wraps and (column.is_figure or not may_fold),
            )
        for row in self.rows:
            if row.rule_above:
                table.add_section()
            table.add_row(*map(Text, row.cells), style="dim" if row.quiet else None)
        return table

    def _least_width(self) -> int:
        """Columns of the terminal that it takes with nothing broken inside of a word."""
        total = GAP * (len(self.columns) - 1)
        for i, column in enumerate(self.columns):
            cells = [*column.title.split("\n"), *(row.cells[i] for row in self.rows)]
            pieces = [word for cell in cells for word in cell.split()] if column.wraps else cells
            total += max(map(cell_len, pieces), default=0)
        return total

    def _can_shrink(self) -> bool:
        return any(column.optional for column in self.columns)

    def _without_last_optional(self) -> Listing:
        last = max(i for i, column in enumerate(self.columns) if column.optional)
        return replace(
            self,
            columns=[c for i, c in enumerate(self.columns) if i != last],
            rows=[
                replace(row, cells=[c for i, c in enumerate(row.cells) if i != last])
                for row in self.rows
            ],
        )


@dataclass(frozen=True)
class BeforeAfter:
    """A row of `before_after`: what it is, and its type and bytes before and after."""

    title: str
    type_before: str
    bytes_before: int
    type_after: str
    bytes_after: int


def before_after(
    title: str,
    rows: Sequence[BeforeAfter],
    totals: Sequence[BeforeAfter],
    names: tuple[str, str] = ("before", "after"),
) -> Listing:
    """A table in the form of Wang et al.: data types and bytes, before and after; then totals."""
    columns = [
        Column(""),
        Column("type", optional=True),
        Column(names[0], is_figure=True),
        Column("type", optional=True),
        Column(names[1], is_figure=True),
        Column("ratio", is_figure=True),
    ]
    cells = [_before_after_cells(row, with_ratio=False) for row in rows]
    cells += [_before_after_cells(row, with_ratio=True) for row in totals]
    return Listing(title, columns, [Row(c, rule_above=i == len(rows)) for i, c in enumerate(cells)])


def _before_after_cells(row: BeforeAfter, with_ratio: bool) -> list[str]:
    ratio = f"{row.bytes_before / row.bytes_after:.2f}x" if with_ratio and row.bytes_after else ""
    return [
        row.title,
        row.type_before,
        size(row.bytes_before),
        row.type_after,
        size(row.bytes_after),
        ratio,
    ]


def definitions(title: str, entries: Sequence[tuple[str, str]]) -> RenderableType:
    """Names, each with a text beside it, or below it where the name is long."""
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column(overflow="fold", max_width=32)
    table.add_column(overflow="fold")
    for name, text in entries:
        table.add_row(Text(f"  {name}"), Text(text))
    return table
