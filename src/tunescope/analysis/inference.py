"""Every procedure of the analysis in one place, on plain numpy arrays. docs/statistics.md says what each assumes and what checks it."""

from tunescope.study.power import Components, power, t_power

from .crossed import (
    Alternative,
    Array,
    Interval,
    RatioTest,
    TTest,
    cluster_totals,
    crossed_t,
    f1_from_counts,
    f1_pseudo_values,
    fieller,
    relative_noninferiority,
    relative_test,
    seed_test,
    t_test,
)
from .effects import (
    Correlation,
    anova,
    cohens_dz,
    hedges_correction,
    paired_anova,
    partial_eta2,
    partial_omega2,
    pooled_correlation,
    tukey,
    within_correlation,
)
from .families import any_of, bonferroni, composite, composite_opposite, holm, intersection_union
from .paired import McNemar, Tango, Tost, mcnemar, tango, tost_paired
from .power import components, detectable_margin, detectable_shift, examples_needed, seeds_needed, units_needed
from .regression import Agreement, BreakEven, Line, break_even, cochran_q, fit_line, fit_repeated_line, lack_of_fit
from .resampling import PermutationTest, approximate_randomisation, bca_interval, clopper_pearson, multi_bootstrap, sign_flip

__all__ = [
    "Agreement", "Alternative", "Array", "BreakEven", "Components", "Correlation", "Interval", "Line", "McNemar", "PermutationTest",
    "RatioTest", "TTest", "Tango", "Tost", "anova", "any_of", "approximate_randomisation", "bca_interval", "bonferroni", "break_even",
    "clopper_pearson", "cluster_totals", "cochran_q", "cohens_dz", "components", "composite", "composite_opposite", "crossed_t",
    "detectable_margin", "detectable_shift", "examples_needed", "f1_from_counts", "f1_pseudo_values", "fieller", "fit_line",
    "fit_repeated_line",
    "hedges_correction", "holm", "intersection_union", "lack_of_fit", "mcnemar", "multi_bootstrap", "paired_anova", "partial_eta2",
    "partial_omega2", "pooled_correlation", "power", "relative_noninferiority", "relative_test", "seed_test", "seeds_needed",
    "sign_flip", "t_power", "t_test", "tango", "tost_paired", "tukey", "units_needed", "within_correlation",
]  # fmt: skip
