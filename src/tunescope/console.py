"""What a user sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tunescope.analysis.step_flags import Flag
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
TIME = "time    "
"""How the line with the time left begins: it changes while nothing happens."""
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
        talk.print(f"{_clock()} started  {step.id}", markup=False)

    def finished(self, state: StepState, seconds: float) -> None:
        if state.status == "done":
            self._done += 1
        word = {"done": "done    ", "failed": "FAILED  ", "blocked": "BLOCKED "}[state.status]
        count = f"[{self._done}/{len(self._ids)}]"
        talk.print(f"{_clock()} {word} {state.step.id}  {duration(seconds)}  {count}{_reason(state)}", markup=False)

    def note(self, text: str) -> None:
        talk.print(f"{_clock()} note     {text}", markup=False)

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
                rows.add_row(f"  {slot}", step_id, place, duration(now - self._running[step_id]), _progress(state))
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


def _progress(state: StepState) -> str:
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


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _reason(state: StepState) -> str:
    return f"  {state.why}" if state.status != "done" and state.why else ""


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
    many = "one step at a time" if len(running) == 1 else f"{len(running)} steps at once"
    return [
        TIME + (f"about {duration(max(left, 1))} with {many}, as now" if left is not None else "known after the first step of each kind")
    ]


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


def _status_detail(state: StepState) -> str:
    return f"{state.why}  {_progress(state)}" if state.status == "running" else state.why


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
                print("\n".join([_clock(), *lines]), flush=True)
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


def tail(lines: Sequence[str], n: int) -> list[str]:
    """The last n lines, saying how many were left out."""
    return [f"… {len(lines) - n} lines before", *lines[-n:]] if len(lines) > n else list(lines)


def error_lines(text: str) -> None:
    """Print an error to stderr, one problem a line."""
    lines = text.splitlines() or [text]
    print(f"error: {lines[0]}", file=sys.stderr)
    for line in lines[1:]:
        print(f"       {line}", file=sys.stderr)
