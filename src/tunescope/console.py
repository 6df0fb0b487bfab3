"""What a user sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tunescope.checks.outcome import Check
    from tunescope.run.selection import Chosen
    from tunescope.run.state import States, StepState
    from tunescope.run.validate import Check as Validation
    from tunescope.run.validate import Tier
    from tunescope.study.plan import Step

Mode = Literal["auto", "live", "plain", "none"]
talk = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress, notes and errors. Data go to stdout by `print`."""
MARK = {"done": "✓", "failed": "✗", "blocked": "–"}
COLOUR = {"done": "green", "running": "cyan", "stale": "yellow", "todo": "white", "failed": "red", "blocked": "magenta"}


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def remaining_s(states: States, running: Mapping[str, float], ids: Iterable[str], slots: int, now: float) -> float | None:
    """Seconds to the end, from medians of finished steps of the same kind, task and role; None while a kind has no finished step.

    Steps share the slots, serving has them to itself. Never less than the longest step that is left.
    """
    shared, alone, longest = 0.0, 0.0, 0.0
    for step_id in ids:
        state = states[step_id]
        if state.status in ("done", "failed", "blocked"):
            continue
        median = _median(states, state.step)
        if median is None:
            return None
        left = max(0.0, median - (now - running[step_id] if step_id in running else 0.0))
        longest = max(longest, left)
        if state.step.kind == "serve":
            alone += left
        else:
            shared += left
    return max(longest, shared / slots + alone)


def _median(states: States, step: Step) -> float | None:
    """Median seconds of the most similar finished steps."""
    times = [(s.step, s.finished.result["wall_s"]) for s in states.values() if s.finished and s.step.kind == step.kind]
    alike = [t for other, t in times if (other.task, other.role) == (step.task, step.role)] or [t for _, t in times]
    return statistics.median(alike) if alike else None


class PlainDisplay:
    """One line per started and finished step; good for logs."""

    def __init__(self, chosen: Chosen, states: States):
        self._ids = chosen.run
        self._done = sum(states[i].status == "done" for i in chosen.run)

    def started(self, step: Step) -> None:
        talk.print(f"{clock()} started  {step.id}", markup=False)

    def finished(self, state: StepState, seconds: float) -> None:
        if state.status == "done":
            self._done += 1
        word = {"done": "done    ", "failed": "FAILED  ", "blocked": "BLOCKED "}[state.status]
        count = f"[{self._done}/{len(self._ids)}]"
        talk.print(f"{clock()} {word} {state.step.id}  {duration(seconds)}  {count}{_reason(state)}", markup=False)

    def note(self, text: str) -> None:
        talk.print(f"{clock()} note     {text}", markup=False)

    def update(self, states: States, running: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class NoDisplay(PlainDisplay):
    """Silent but for failures and notes."""

    def started(self, step: Step) -> None:
        pass

    def finished(self, state: StepState, seconds: float) -> None:
        if state.status != "done":
            super().finished(state, seconds)


class LiveDisplay(PlainDisplay):
    """A bar over all steps and a line per running one, redrawn in place; failures and notes scroll above it."""

    def __init__(self, chosen: Chosen, states: States, slots: int):
        super().__init__(chosen, states)
        self._slots, self._states, self._running = slots, states, dict[str, float]()
        self._rows: list[str | None] = []
        """What runs in each slot: a step keeps its row while it runs."""
        self._live = Live(self._picture(), console=talk, refresh_per_second=4, transient=True)
        self._live.start()

    def started(self, step: Step) -> None:
        pass

    def finished(self, state: StepState, seconds: float) -> None:
        mark = MARK[state.status]
        style = COLOUR[state.status]
        talk.print(Text(f"{mark} {state.step.id}  {duration(seconds)}{_reason(state)}", style=style))

    def note(self, text: str) -> None:
        talk.print(Text(f"· {text}", style="dim"))

    def update(self, states: States, running: dict[str, float]) -> None:
        self._states, self._running = states, running
        self._rows = slot_rows(self._rows, running)
        self._live.update(self._picture())

    def close(self) -> None:
        self._live.stop()

    def _picture(self) -> Group:
        done = sum(self._states[i].status in ("done", "failed", "blocked") for i in self._ids)
        left = remaining_s(self._states, self._running, self._ids, self._slots, time.monotonic())
        head = Table.grid(padding=(0, 1))
        eta = f"about {duration(max(left, 1))} left" if left is not None else "time left: known after the first step of each kind"
        head.add_row(ProgressBar(total=max(1, len(self._ids)), completed=done, width=30), f"{done}/{len(self._ids)} steps", eta)
        rows = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for slot, step_id in enumerate(self._rows, 1):
            if step_id is None:
                rows.add_row(f"  {slot}", "idle", style="dim")
            else:
                state = self._states[step_id]
                place = state.lease.place if state.lease else ""
                rows.add_row(f"  {slot}", step_id, place, duration(now - self._running[step_id]), progress(state))
        return Group(head, rows)


def slot_rows(before: Sequence[str | None], running: Iterable[str]) -> list[str | None]:
    """Steps by slot: those that go on keep theirs, new ones take the first free."""
    now = list(running)
    rows = [step_id if step_id in now else None for step_id in before]
    for step_id in now:
        if step_id not in rows:
            if None in rows:
                rows[rows.index(None)] = step_id
            else:
                rows.append(step_id)
    return rows


def progress(state: StepState) -> str:
    lease = state.lease
    if lease is None:
        return "starting"
    share = f"{lease.done}/{lease.total} " if lease.total else ""
    return share + lease.text


def open_display(mode: Mode, chosen: Chosen, states: States, slots: int) -> PlainDisplay:
    """The display of a run; `auto` is live on a terminal and plain elsewhere."""
    if mode == "none":
        return NoDisplay(chosen, states)
    if mode == "live" or (mode == "auto" and talk.is_terminal):
        return LiveDisplay(chosen, states, slots)
    return PlainDisplay(chosen, states)


def clock() -> str:
    return time.strftime("%H:%M:%S")


def _reason(state: StepState) -> str:
    return f"  {state.why}" if state.status != "done" and state.why else ""


def check_lines(check: Check) -> list[str]:
    """One check of `tunescope check`: how it ended, what was measured, how long it took; details indented."""
    took = f"  ({duration(check.seconds)})" if check.seconds >= 0.05 else ""
    return [f"{check.status}  {check.name}: {check.found}{took}", *(f"      {line}" for line in check.details)]


def tier_lines(checks: Sequence[Validation], claims: Mapping[Tier, str]) -> list[str]:
    """Lines of `tunescope validate` under the tier each belongs to, with the claim that it supports; then how many passed."""
    lines = []
    for tier, claim in claims.items():
        mine = [f"{c.status}  {c.name}: {c.found}" for c in checks if c.tier == tier]
        lines += [f"{tier}: {claim}", *mine] if mine else []
    ends = Counter(c.status for c in checks)
    return [*lines, " · ".join(f"{ends[word]} {word}" for word in ("PASS", "FAIL", "SKIP") if ends[word])]


def tail(lines: Sequence[str], n: int) -> list[str]:
    """The last n lines, saying how many were left out."""
    return [f"… {len(lines) - n} lines before", *lines[-n:]] if len(lines) > n else list(lines)


def error_lines(text: str) -> None:
    """Print an error to stderr, one problem a line."""
    lines = text.splitlines() or [text]
    print(f"error: {lines[0]}", file=sys.stderr)
    for line in lines[1:]:
        print(f"       {line}", file=sys.stderr)
