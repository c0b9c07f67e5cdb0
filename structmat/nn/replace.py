"""Dense layers replaced by structured ones: what each lost, and how many numbers it holds now."""

import dataclasses

__all__ = ["Replaced", "Replacement"]


@dataclasses.dataclass(frozen=True)
class Replacement:
    """One layer: its name, its numbers before and after (bias included), and ``||W - A||_F / ||W||_F``."""

    name: str
    shown: str
    before: int
    after: int
    error: float


@dataclasses.dataclass(frozen=True)
class Replaced:
    """What ``nn.Linear.replace`` did, a row a layer; prints as a table."""

    rows: tuple[Replacement, ...]

    @property
    def before(self) -> int:
        """Numbers in the replaced layers."""
        return sum(row.before for row in self.rows)

    @property
    def after(self) -> int:
        """Numbers in the new ones."""
        return sum(row.after for row in self.rows)

    def __str__(self) -> str:
        cells = [("layer", "now", "numbers before", "after", "error")]
        cells += [(r.name, r.shown, f"{r.before:,}", f"{r.after:,}", f"{r.error:.2e}") for r in self.rows]
        cells.append(("all", "", f"{self.before:,}", f"{self.after:,}", ""))
        widths = [max(len(row[k]) for row in cells) for k in range(5)]
        sides = "<<>>>"
        return "\n".join(
            "  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip() for row in cells
        )
