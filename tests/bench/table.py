"""Tables in Markdown, as the pages of docs have them, printed row by row."""

FIRST = 24  # the width of the first column, which has names; the others are as wide as their headings


class Table:
    """Its heading is printed at once."""

    def __init__(self, *heading: str) -> None:
        self._widths = [len(each) for each in heading[1:]]
        self.row(*heading)
        print(f"|---|{'---:|' * len(self._widths)}", flush=True)

    def row(self, *cells: object) -> None:
        """Print a row; None is a cell about which nothing can be said."""
        first, *others = ("-" if cell is None else str(cell).replace("|", r"\|") for cell in cells)
        aligned = (f"{cell:>{width}}" for cell, width in zip(others, self._widths, strict=True))
        print(f"| {first:<{FIRST}} | {' | '.join(aligned)} |", flush=True)
