"""Numbers as words: per cent, p-values, intervals, sizes. A missing number is an en dash; minus is a minus sign."""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tunescope.analysis.answer import margin_percent as plain_margin
from tunescope.analysis.findings import Claim
from tunescope.study.schema import TASK_NAMES

NONE = "–"
MINUS = "−"
SPACE = "\u00a0"
"""No-break space between a number and its unit."""
WORDS = {
    "f1": "F1", "has_ans_f1": "F1 (answerable)", "has_ans_exact": "exact match (answerable)", "no_ans_accuracy": "accuracy (unanswerable)",
    "wall_s": "wall time (s)", "d_z": "effect size d_z", "cka_debiased": "debiased CKA", "cka_plain": "plain CKA",
    "cka_drift_debiased": "drift (1 − debiased CKA)", "cka_drift_plain": "1 − plain CKA", "cka_standard_error": "standard error of CKA",
    "cka_chance_mean": "chance CKA, mean", "cka_chance_sd": "chance CKA, sd", "cka_chance_z": "plain CKA above chance (sds)",
    "next_token_kl": "KL of the next token",
}  # fmt: skip
"""Names of metrics, measures and scalars as people read them; the others only lose their underscores. CSV files keep the names."""


def task_name(task: str | None) -> str:
    """The name a task is known by; `all tasks` for None."""
    return "all tasks" if task is None else TASK_NAMES.get(task, task)


def metric_name(name: str) -> str:
    """A metric, measure or scalar of a run in words."""
    return WORDS.get(name, name.replace("_", " "))


def claim_name(claim: str) -> str:
    """The id of a claim in words: `quality, MRPC`."""
    dimension, _, task = claim.partition("/")
    return f"{dimension}, {task_name(None if task == 'all' else task)}" if task else dimension


def missing(value: Any) -> bool:
    """None, NaN or pandas' NA."""
    return value is None or value != value or str(value) == "<NA>"


def decimals(value: float | None, places: int = 3) -> str:
    """A fixed number of decimals."""
    if missing(value):
        return NONE
    assert value is not None
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits (whole numbers as they are), with thousands separators; powers of ten beyond 10^7 and below 10^-4."""
    if missing(value):
        return NONE
    assert value is not None
    if math.isinf(value) or value == 0:
        return decimals(value, 0)
    if value == int(value) and abs(value) < 10**7:
        return decimals(value, 0)
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 7:
        return decimals(value, max(0, digits - 1 - exponent))
    mantissa = f"{value / 10.0**exponent:.{digits - 1}f}".replace("-", MINUS)
    return f"{mantissa}{SPACE}×{SPACE}10{_superscript(exponent)}"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def percent(fraction: float | None, places: int | None = None, *, sign: bool = False) -> str:
    """A fraction as per cent: one decimal, or two significant digits below 1 %."""
    text = _percent_number(fraction, places)
    if text == NONE:
        return NONE
    plus = "+" if sign and fraction is not None and fraction > 0 and text.strip("0.") else ""
    return f"{plus}{text}{SPACE}%"


def _percent_number(fraction: float | None, places: int | None = None) -> str:
    if missing(fraction):
        return NONE
    assert fraction is not None
    value = fraction * 100
    if places is None:
        small = value != 0 and abs(value) < 0.95 and not math.isinf(value)
        places = min(4, 1 - math.floor(math.log10(abs(value)))) if small else 1
    return decimals(value, 0 if abs(value) >= 1000 else places)


def p_value(p: float | None) -> str:
    """Three significant digits; below 0.0001 only that."""
    if missing(p):
        return NONE
    assert p is not None
    if p < 1e-4:
        return f"<{SPACE}0.0001"
    return "1" if p >= 0.9995 else decimals(p, 2 - math.floor(math.log10(p)))


def p_phrase(p: float | None) -> str:
    """`p = 0.0123`, `p < 0.0001` or `no p-value`."""
    text = p_value(p)
    return "no p-value" if text == NONE else f"p{SPACE}{text}" if text.startswith("<") else f"p{SPACE}={SPACE}{text}"


def interval(limits: Any, form: Callable[[float | None], str] = number) -> str:
    """`[low, high]`; an open side is infinite."""
    if limits is None or all(missing(x) for x in limits):
        return NONE
    low, high = limits
    return f"[{f'{MINUS}∞' if missing(low) else form(low)}, {'∞' if missing(high) else form(high)}]"


def margin_percent(fraction: float | None) -> str:
    """A registered margin as per cent with all its digits, since it is what was tested: `97.5 %`."""
    return NONE if fraction is None or missing(fraction) else plain_margin(fraction).replace(" ", SPACE)


def percent_interval(limits: Any) -> str:
    """`[95.1, 99.8] %`."""
    text = interval(limits, lambda x: _percent_number(x, 1))
    return text if text == NONE else f"{text}{SPACE}%"


def plus_minus(mean: float | None, sd: float | None, places: int = 3) -> str:
    """`mean ± sd`."""
    if missing(mean):
        return NONE
    return decimals(mean, places) if missing(sd) else f"{decimals(mean, places)}{SPACE}±{SPACE}{decimals(sd, places)}"


def percent_plus_minus(mean: float | None, sd: float | None) -> str:
    """`86.2 ± 0.4 %` from fractions."""
    if missing(mean):
        return NONE
    assert mean is not None
    scaled = None if missing(sd) or sd is None else 100 * sd
    return f"{plus_minus(100 * mean, scaled, 1)}{SPACE}%"


def size(count: float | None) -> str:
    """Bytes in MiB or GiB."""
    if missing(count):
        return NONE
    assert count is not None
    return f"{number(count / 2**30)}{SPACE}GiB" if count >= 2**30 else f"{number(count / 2**20)}{SPACE}MiB"


def exact(value: float) -> str:
    """A chosen value (a learning rate, a seed) as it was written."""
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if missing(seconds):
        return NONE
    assert seconds is not None
    if seconds < 120:
        return f"{number(seconds)}{SPACE}s"
    return f"{number(seconds / 60)}{SPACE}min" if seconds < 7200 else f"{number(seconds / 3600)}{SPACE}h"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return decimals(value, 0)


def prose(text: str) -> str:
    """A sentence of the findings with the page's signs: a no-break space before per cent, real minus signs."""
    text = re.sub(r"(?<=\d)\s?%", f"{SPACE}%", text)
    text = re.sub(r"\bp ([=<]) (?=\d)", rf"p{SPACE}\1{SPACE}", text)
    return re.sub(r"(?<= )-(?= )|(?<![\w-])-(?=\d)", MINUS, text)


def moment(stamp: str) -> str:
    """An ISO 8601 time in UTC as people write it; anything else as it stands."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if when.tzinfo else stamp


def plural(n: int, one: str, many: str | None = None) -> str:
    """`1 step`, `2 steps`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def not_comparable(claim: Claim) -> str:
    """Why a claim shows no estimate."""
    return "gate failed" if claim.has("gate_failed") else "nothing learned"


def shorten(text: str, limit: int = 220) -> str:
    """Text cut to a length, with an ellipsis."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"
