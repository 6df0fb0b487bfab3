"""Descriptive and exploratory statistics: effect sizes, analysis of variance, correlation within tasks."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from .crossed import Array, Interval


def hedges_correction(df: float) -> float:
    """The exact small-sample factor J(df) = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)) (Hedges 1981); 0 at one degree of freedom."""
    return float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)) if df > 1 else 0.0


def cohens_dz(differences_n: Array, level: float = 0.95) -> tuple[float, Interval] | None:
    """Hedges-corrected d_z of paired differences, with limits of the true d_z; None below 3 values or without variation.

    The limits invert the noncentral t, which is exact for normal differences. Only the estimate is corrected: limits times the correction,
    as some packages print them, would cover a true d_z of 1 in 79 % of studies of 3 seeds instead of 95 %.
    """
    differences_n = np.asarray(differences_n, dtype=np.float64)
    n = len(differences_n)
    if n < 3 or np.ptp(differences_n) == 0:
        return None
    d, factor = float(differences_n.mean() / differences_n.std(ddof=1)), hedges_correction(n - 1)
    limits = [_noncentrality(d * math.sqrt(n), n - 1, share) for share in ((1 + level) / 2, (1 - level) / 2)]
    low, high = (None if x is None else x / math.sqrt(n) for x in limits)
    return factor * d, (low, high)


def _noncentrality(t: float, df: int, share: float) -> float | None:
    """The noncentrality at which P(T <= t) = share; bracketed from t outwards, because far from t scipy's distribution gives nan."""
    gap = lambda x: float(stats.nct.cdf(t, df, x)) - share  # noqa: E731
    step = math.copysign(max(1.0, abs(t)) / 4, gap(t))
    near, far = t, t + step
    while gap(far) * step > 0 and abs(far - t) < 10 + 3 * abs(t):
        near, far = far, far + step
    try:
        return float(optimize.brentq(gap, near, far))
    except (ValueError, RuntimeError):
        return None


def anova(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Two-way analysis of variance of `value` by `method` and `task` (type II), one row per effect; [] when it cannot be fitted."""
    if frame.method.nunique() < 2 or frame.task.nunique() < 2 or len(frame) <= frame.method.nunique() * frame.task.nunique():
        return []
    return _anova_rows(
        "value ~ C(method) * C(task)", frame, {"C(method)": "method", "C(task)": "task", "C(method):C(task)": "method x task"}
    )


def paired_anova(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One-way analysis of variance of paired relative differences `value` by `task`; [] when it cannot be fitted."""
    if frame.task.nunique() < 2 or len(frame) <= frame.task.nunique():
        return []
    return _anova_rows("value ~ C(task)", frame, {"C(task)": "task (paired relative differences)"})


def _anova_rows(formula: str, frame: pd.DataFrame, names: dict[str, str]) -> list[dict[str, Any]]:
    from statsmodels.formula.api import ols  # costs about a second to import
    from statsmodels.stats.anova import anova_lm

    table = anova_lm(ols(formula, data=frame).fit(), typ=2)
    error = table.loc["Residual", "sum_sq"] / table.loc["Residual", "df"]
    if not error > 1e-20:
        return []
    rows = []
    for key, name in names.items():
        df, squares, f, p = (float(table.loc[key, c]) for c in ("df", "sum_sq", "F", "PR(>F)"))
        sizes = {
            "partial_eta2": partial_eta2(squares, float(table.loc["Residual", "sum_sq"])),
            "partial_omega2": partial_omega2(squares, df, error, len(frame)),
        }
        rows.append({"effect": name, "df": df, "F": f, "p": p, **sizes})
    return rows


def partial_eta2(ss_effect: float, ss_error: float) -> float:
    """SS_effect / (SS_effect + SS_error); biased upwards in small samples, so partial omega2 stands beside it."""
    return ss_effect / (ss_effect + ss_error)


def partial_omega2(ss_effect: float, df_effect: float, ms_error: float, n: int) -> float:
    """(SS_effect - df MS_error) / (SS_effect + (n - df) MS_error); may be negative (Olejnik & Algina 2003)."""
    return (ss_effect - df_effect * ms_error) / (ss_effect + (n - df_effect) * ms_error)


def tukey(frame: pd.DataFrame, level: float = 0.95) -> list[dict[str, Any]]:
    """Tukey's pairwise comparisons of `value` between methods in the additive model method + task; [] below three methods.

    Tukey-Kramer: studentised range of the additive model's contrasts, with its residual degrees of freedom (tasks cost theirs too). Methods
    that no chain of shared tasks connects have no row: what is the tasks' and what the methods' cannot be told apart there.
    """
    names = sorted(frame.method.unique())
    if len(names) < 3 or frame.groupby("method").size().min() < 2:
        return []
    design = pd.get_dummies(frame.method)[names].to_numpy(np.float64)
    design = np.hstack([design, pd.get_dummies(frame.task).to_numpy(np.float64)[:, 1:]])
    values = frame.value.to_numpy(np.float64)
    inverse = np.linalg.pinv(design.T @ design)
    beta, estimable = inverse @ design.T @ values, inverse @ design.T @ design
    df = len(frame) - int(np.linalg.matrix_rank(design))
    error = float(((values - design @ beta) ** 2).sum()) / max(df, 1)
    if df < 1 or not error > 1e-20:
        return []
    quantile, rows = float(stats.studentized_range.ppf(level, len(names), df)), []
    for (i, a), (j, b) in combinations(enumerate(names), 2):
        contrast = np.zeros(design.shape[1])
        contrast[[i, j]] = 1, -1
        if not np.allclose(contrast @ estimable, contrast):
            continue
        difference, se = float(contrast @ beta), math.sqrt(error * float(contrast @ inverse @ contrast) / 2)
        p = float(stats.studentized_range.sf(abs(difference) / se, len(names), df))
        limits = {"low": difference - quantile * se, "high": difference + quantile * se}
        rows.append({"method": a, "against": b, "difference": difference, **limits, "p_adjusted": p})
    return rows


@dataclass(frozen=True)
class Correlation:
    """A correlation with its degrees of freedom, two-sided p and 95 % limits."""

    r: float
    df: int
    p: float
    interval: Interval
    n: int


def within_correlation(x: Array, y: Array, groups: list[str]) -> Correlation | None:
    """Repeated-measures correlation: common slope within groups, group means removed (Bland & Altman 1995); df = n - groups - 1."""
    frame = pd.DataFrame({"x": x, "y": y, "group": groups}).dropna()
    means = frame.groupby("group")[["x", "y"]].transform("mean")
    return _correlation(frame[["x", "y"]], means, len(frame) - frame.group.nunique() - 1)


def pooled_correlation(x: Array, y: Array) -> Correlation | None:
    """Pearson's r over all runs, groups ignored; mixes differences between tasks into it."""
    frame = pd.DataFrame({"x": x, "y": y}).dropna()
    return _correlation(frame, frame.mean(), len(frame) - 2)


def constant(values: pd.DataFrame, centred: pd.DataFrame) -> "pd.Series[bool]":
    """Columns that vary about their means by no more than rounding leaves of equal values."""
    return (centred**2).sum() <= 1e-24 * (values**2).sum()


def _correlation(frame: pd.DataFrame, means: pd.DataFrame | pd.Series, df: int) -> Correlation | None:
    """Of the columns x and y about their means; None where one does not vary."""
    centred = frame - means
    if df < 1 or constant(frame, centred).any():
        return None
    x, y = centred.x.to_numpy(), centred.y.to_numpy()
    r = float(np.clip((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))
    t = r * math.sqrt(df / max(1 - r**2, 1e-15))
    limits: Interval = (None, None)
    if df > 1 and abs(r) < 1:
        half = 1.959963984540054 / math.sqrt(df - 1)
        limits = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return Correlation(r, df, float(2 * stats.t.sf(abs(t), df)), limits, len(x))
