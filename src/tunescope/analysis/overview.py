"""What a notebook or a Python prompt shows of a study's tables: a few lines, whatever the study's size."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frames import Frames


def overview(frames: "Frames") -> str:
    """Study, steps, verdicts where a report was read, and the tables with their sizes."""
    done, planned = len(frames.steps), len(frames.planned)
    gaps = f", {len(frames.problems)} files unreadable" if frames.problems else ""
    tables = ", ".join(f"{name} {len(frame):,}" for name, frame in frames.tables().items())
    return "\n".join(
        [
            *(frames.headline or ("tunescope tables",)),
            f"steps: {done} of {planned} finished{gaps}",
            f"tables (rows): {tables}",
            "read on: .metrics and the other tables are pandas frames, .tables() has all by name, .outputs(STEP) what a step found",
        ]
    )


def headline(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Name and verdicts from final_analysis_report.json; () when there is none."""
    if "claims" not in report:
        return ()
    whole = [claim for claim in report["claims"] if "task" in claim and claim["task"] is None]
    verdicts = ", ".join(f"{claim['id']} {claim['verdict']}" for claim in whole)
    return f"tunescope results of '{report['study']}' ({report['generated']})", f"verdicts: {verdicts or 'none'}"
