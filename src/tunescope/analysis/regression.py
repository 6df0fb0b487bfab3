"""A straight line with limits that survive unequal spread: OLS with HC3, Theil-Sen, lack of fit, and where the line meets a limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .crossed import Array, fieller


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x with t limits, Theil-Sen beside it, and a test of lack of fit.

    From `fit_line`: OLS with HC3 covariance (n - 2 degrees of freedom), and an F test of lack of fit against the spread at equal x (None
    with fewer than three different x, or no repeats). From `fit_repeated_line`: see there.
    """

    intercept: float
    slope: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    intercept_interval: tuple[float, float]
    slope_interval: tuple[float, float]
    theil_sen_slope: float
    theil_sen_interval: tuple[float, float]
    lack_of_fit_p: float | None
    level: float
    df: int


def fit_line(x_n: Array, y_n: Array, level: float = 0.90) -> Line:
    """Fit a `Line`.

    In simulation the 90 % limits of the slope cover 89 to 90 % at x of 1, 2 and 4 with ten points each, and 86 to 88 % where the spread
    grows with x and one far x holds most of the leverage: HC3 then knows too little of the spread there.

    Raises:
        ValueError: fewer than three points, or fewer than two different x.

    Source: MacKinnon & White (1985) for HC3; Sen (1968) for the slope's limits.
    """
    from statsmodels.regression.linear_model import OLS  # a third of a second to import; statsmodels.api brings figures too
    from statsmodels.tools.tools import add_constant

    x, y = np.asarray(x_n, dtype=np.float64), np.asarray(y_n, dtype=np.float64)
    if len(x) < 3 or len(np.unique(x)) < 2:
        raise ValueError(f"a line with limits needs three points at two different x, got x = {x.tolist()}")
    fit = OLS(y, add_constant(x)).fit(cov_type="HC3", use_t=True)
    limits, sen, covariance = fit.conf_int(alpha=1 - level), stats.theilslopes(y, x, alpha=level), np.asarray(fit.cov_params())
    return Line(
        intercept=float(fit.params[0]), slope=float(fit.params[1]),
        covariance=tuple(tuple(float(v) for v in line) for line in covariance),  # type: ignore[arg-type]
        intercept_interval=(float(limits[0][0]), float(limits[0][1])), slope_interval=(float(limits[1][0]), float(limits[1][1])),
        theil_sen_slope=float(sen[0]), theil_sen_interval=(float(sen[2]), float(sen[3])),
        lack_of_fit_p=lack_of_fit(x, y, np.asarray(fit.fittedvalues)), level=level, df=int(fit.df_resid),
    )  # fmt: skip


@dataclass(frozen=True)
class RepeatedFit:
    """A linear model fitted to each of K repeats: mean coefficients (C,), their covariance (C, C) from the spread over repeats, df = K - 1.

    For repeats that each measure all P points: errors shared by the points of one repeat are in the covariance, whatever their shape.
    """

    coefficients_C: Array
    covariance_CC: Array
    df: int
    level: float
    residuals_KP: Array

    @property
    def reach(self) -> float:
        """The t quantile of the level."""
        return float(stats.t.ppf((1 + self.level) / 2, self.df))

    def estimate(self, weights_C: Array) -> tuple[float, float, float]:
        """(value, low, high) of a linear combination of the coefficients."""
        value = float(weights_C @ self.coefficients_C)
        half = self.reach * math.sqrt(max(float(weights_C @ self.covariance_CC @ weights_C), 0.0))
        return value, value - half, value + half

    @property
    def misfit_p(self) -> float | None:
        """Bonferroni's p over points of t tests that the mean residual is 0; None when nothing varies or no point is left to err."""
        k, p = self.residuals_KP.shape
        mean, se = self.residuals_KP.mean(axis=0), self.residuals_KP.std(axis=0, ddof=1) / math.sqrt(k)
        if p <= len(self.coefficients_C) or not (se > 1e-12).all():
            return None
        return float(min(1.0, p * (2 * stats.t.sf(np.abs(mean / se), k - 1)).min()))


def fit_repeats(design_PC: Array, y_KP: Array, level: float = 0.90) -> RepeatedFit:
    """Least squares in each repeat, then mean and t limits over repeats.

    Raises:
        ValueError: fewer than two repeats, or a design whose columns are not independent.

    Source: the summary-measures approach to repeated data, Matthews, Altman, Campbell & Royston (1990), BMJ 300.
    """
    design, y = np.asarray(design_PC, dtype=np.float64), np.asarray(y_KP, dtype=np.float64)
    if len(y) < 2 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"{len(y)} repeats of {design.shape[0]} points cannot fit {design.shape[1]} coefficients with limits")
    each_KC = y @ np.linalg.pinv(design).T
    covariance = np.atleast_2d(np.cov(each_KC, rowvar=False)) / len(y)
    return RepeatedFit(each_KC.mean(axis=0), covariance, len(y) - 1, level, y - each_KC @ design.T)


def fit_repeated_line(x_P: Array, y_KP: Array, level: float = 0.90) -> Line:
    """A `Line` from K repeats that each measured all P points, for instance overheads that share their launch's baseline.

    Limits come from the spread of the repeats' own lines (`fit_repeats`, K - 1 degrees of freedom), lack of fit from their residuals. With
    a shared error as large as the points' own, ten repeats at x of 1, 2 and 4 and nominal 90 %, `fit_line` covers a break-even in 81 %.

    Raises:
        ValueError: fewer than two repeats, or fewer than two different x.
    """
    x, y = np.asarray(x_P, dtype=np.float64), np.asarray(y_KP, dtype=np.float64)
    fit = fit_repeats(np.column_stack([np.ones_like(x), x]), y, level)
    (_, *intercept), (_, *slope) = fit.estimate(np.array([1.0, 0.0])), fit.estimate(np.array([0.0, 1.0]))
    sen = stats.theilslopes(y.ravel(), np.tile(x, len(y)), alpha=level)
    return Line(
        intercept=float(fit.coefficients_C[0]), slope=float(fit.coefficients_C[1]),
        covariance=tuple(tuple(float(v) for v in line) for line in fit.covariance_CC),  # type: ignore[arg-type]
        intercept_interval=(intercept[0], intercept[1]), slope_interval=(slope[0], slope[1]),
        theil_sen_slope=float(sen[0]), theil_sen_interval=(float(sen[2]), float(sen[3])),
        lack_of_fit_p=fit.misfit_p, level=level, df=fit.df,
    )  # fmt: skip


def lack_of_fit(x_n: Array, y_n: Array, fitted_n: Array) -> float | None:
    """p of the classical lack-of-fit F test of a straight line: between-group residuals against the spread within groups."""
    groups = [y_n[x_n == v] for v in np.unique(x_n)]
    pure = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
    df_lack, df_pure = len(groups) - 2, len(y_n) - len(groups)
    if df_lack < 1 or df_pure < 1 or pure == 0:
        return None
    lack = max(float(((y_n - fitted_n) ** 2).sum()) - pure, 0.0)
    return float(stats.f.sf(lack / df_lack / (pure / df_pure), df_lack, df_pure))


@dataclass(frozen=True)
class BreakEven:
    """The x at which a line meets a limit, with Fieller limits; `low` and `high` are None when the slope's interval covers 0."""

    at: float | None
    low: float | None
    high: float | None

    @property
    def bounded(self) -> bool:
        """Whether the slope is clear of 0, so that a break-even can be stated."""
        return self.low is not None


def break_even(line: Line, limit: float) -> BreakEven:
    """(limit - intercept) / slope with Fieller limits from the line's own covariance, at the line's level.

    Source: Fieller (1954), Some problems in interval estimation, J. R. Stat. Soc. B 16.
    """
    (v_a, cov), (_, v_b) = line.covariance
    quantile = float(stats.t.ppf((1 + line.level) / 2, line.df))
    low, high = fieller(limit - line.intercept, line.slope, v_a, -cov, v_b, quantile)
    return BreakEven((limit - line.intercept) / line.slope if low is not None else None, low, high)


@dataclass(frozen=True)
class Agreement:
    """Do estimates of several groups agree? Cochran's Q against chi-squared with k - 1 degrees of freedom, and I2."""

    mean: float
    """Mean weighted by 1 / se^2."""
    q: float
    df: int
    p: float
    i2: float
    """Share of the spread that is more than chance: max(0, 1 - df / Q)."""


def cochran_q(estimates_k: Sequence[float], errors_k: Sequence[float]) -> Agreement | None:
    """Heterogeneity of independent estimates with standard errors; None below two, or with an error of 0.

    With few seeds the errors are themselves rough, so p is a guide, not a test to decide by.

    Source: Cochran (1954); Higgins & Thompson (2002) for I2.
    """
    y, se = np.asarray(estimates_k, dtype=np.float64), np.asarray(errors_k, dtype=np.float64)
    if len(y) < 2 or not (se > 0).all():
        return None
    weight = 1 / se**2
    mean = float((weight * y).sum() / weight.sum())
    q, df = float((weight * (y - mean) ** 2).sum()), len(y) - 1
    return Agreement(mean, q, df, float(stats.chi2.sf(q, df)), max(0.0, 1 - df / q) if q > 0 else 0.0)
