"""What `tunescope status` says: how a study stands, the time left, what to type next, and its red flags."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .console import clock, duration, progress, remaining_s

if TYPE_CHECKING:
    from tunescope.analysis.step_flags import Flag
    from tunescope.run.state import States, StepState

TIME = "time    "
"""How the line with the time left begins: it changes while nothing happens."""


def counts(states: Iterable[StepState]) -> str:
    """`12 done · 1 failed`."""
    from tunescope.run.state import STATUSES

    found = Counter(s.status for s in states)
    return " · ".join(f"{found[s]} {s}" for s in STATUSES if found[s]) or "no steps"


@dataclass(frozen=True)
class StatusText:
    """The words of a status beside the states themselves."""

    flags: Callable[[States], Iterable[Flag]]
    command: Callable[..., str]
    """(verb, option, …) -> the command line to type for this study."""
    report: Callable[[States], str | None] = lambda states: None
    """Path of the report, when it is current."""
    all_flags: bool = False

    def lines(self, states: States, ids: Collection[str]) -> list[str]:
        """The counts, the time left while steps run, these and what went wrong, what to do next, what is left, then the flags."""
        chosen = [s for i, s in states.items() if i in ids]
        flags = [flag for flag in self.flags(states) if flag[0] in ids]
        return [
            counts(chosen),
            *_time_left(states, ids),
            *_acute(chosen),
            *self._next(states, chosen),
            *_left(chosen),
            *self._flag_lines(flags),
        ]

    def _next(self, states: States, chosen: Sequence[StepState]) -> list[str]:
        """What to type now."""
        ends = [s for s in chosen if s.status in ("failed", "blocked")]
        found = []
        if ends:
            first = next((s for s in ends if s.status == "failed"), ends[0])
            found.append(f"{self.command('show', first.step.id)} says why; {self.command('run', '--retry-failed')} tries again")
        if any(s.status == "running" for s in chosen):
            found.append(f"{self.command('status', '--watch')} follows what runs")
        elif any(s.status in ("todo", "stale") for s in chosen):
            found.append(f"{self.command('run')} does what is left")
        if chosen and not found:
            report = self.report(states)
            found.append(f"read {report}" if report else f"{self.command('report')} writes the report")
        return [f"next    {line}" for line in found]

    def _flag_lines(self, flags: Sequence[Flag]) -> list[str]:
        """Every flag, or a line per code with the first of it."""
        from tunescope.analysis.flag_groups import grouped

        groups = grouped(flags)
        if self.all_flags:
            return [f"flag    {g.severity:<9}{g.code:<20}{step}  {text}" for g in groups for step, text in g.flags]
        if not groups:
            return []
        head = f"flags   {len(flags)}, the most severe first; {self.command('status', '--flags')} lists each with its step"
        return [head, *(f"        {g.severity:<9}{g.code:<20}{len(g.flags):>3}  {_first(g.flags)}" for g in groups)]


def _first(flags: Sequence[Flag]) -> str:
    step, text = flags[0]
    return f"{step}: {text}" if len(flags) == 1 else f"e.g. {step}: {text}"


def _time_left(states: States, ids: Collection[str]) -> list[str]:
    """How long what is left takes with as many steps at once as run now, whoever runs them; nothing while none does."""
    running = {i: lease.since for i in ids if (lease := states[i].lease)}
    if not running:
        return []
    left = remaining_s(states, running, ids, len(running), time.time())
    if left is None:
        return [f"{TIME}known after the first step of each kind"]
    many = "one step at a time" if len(running) == 1 else f"{len(running)} steps at once"
    return [f"{TIME}about {duration(max(left, 1))} with {many}, as now"]


def _acute(chosen: Iterable[StepState]) -> list[str]:
    """A line per step that runs, failed or is blocked."""
    rows = [s for s in chosen if s.status in ("running", "failed", "blocked")]
    rows.sort(key=lambda s: ("running", "failed", "blocked").index(s.status))
    return [f"{s.status:<8}{s.step.id}  {_status_detail(s)}".rstrip() for s in rows]


def _left(chosen: Iterable[StepState]) -> list[str]:
    """A line per stale step, and one per kind and task of those to do, apart for the ready and the waiting."""
    lines: list[str] = []
    groups: dict[tuple[str, bool], list[StepState]] = {}
    for state in chosen:
        if state.status == "stale" or (state.status == "todo" and state.why and state.ready):
            lines.append(f"{state.status:<8}{state.step.id}  {state.why}")
        elif state.status == "todo":
            groups.setdefault(("/".join(filter(None, [state.step.kind, state.step.task])), state.ready), []).append(state)
    for (group, _), members in groups.items():
        first = members[0]
        name = first.step.id if len(members) == 1 else f"{group}  {len(members)} steps, the first"
        why = first.why or ("ready" if len(members) == 1 else f"{first.step.id}, ready")
        lines.append(f"todo    {name}  {why}")
    return lines


def _status_detail(state: StepState) -> str:
    return f"{state.why}  {progress(state)}" if state.status == "running" else state.why


def watch_status(read: Callable[[], States], ids: Collection[str], text: StatusText, every_s: float = 2.0) -> None:
    """Show the status until nothing is left to do: redrawn in place on a terminal, elsewhere printed again when it changes."""
    screen = Console(highlight=False, soft_wrap=True)
    with Live(console=screen, auto_refresh=False) if screen.is_terminal else contextlib.nullcontext() as live:
        before: list[str] = []
        while True:
            states = read()
            lines = text.lines(states, ids)
            if live:
                shown = fitting(lines, screen.height)
                live.update(Text("\n".join(shown), no_wrap=True, overflow="ellipsis"), refresh=True)
            elif (news := [line for line in lines if not line.startswith(TIME)]) != before:
                print("\n".join([clock(), *lines]), flush=True)
                before = news
            if all(states[i].status in ("done", "failed", "blocked") for i in ids):
                return
            time.sleep(every_s)


def fitting(lines: list[str], height: int) -> list[str]:
    """The beginning of a status that fits a screen: the counts, then what runs or went wrong, come first anyway."""
    if len(lines) < height:
        return lines
    kept = lines[: max(1, height - 2)]
    return [*kept, f"… {len(lines) - len(kept)} more lines (`tunescope status` without --watch shows all)"]
