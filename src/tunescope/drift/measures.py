"""What each drift measure is: estimator, direction, range and invariances, as data."""

from dataclasses import dataclass
from typing import Literal

Invariance = Literal["rotation", "isotropic scale", "translation", "joint row order", "unequal widths"]
KERNEL: tuple[Invariance, ...] = ("rotation", "isotropic scale", "translation", "joint row order", "unequal widths")
ROWS: tuple[Invariance, ...] = ("joint row order",)


@dataclass(frozen=True)
class Measure:
    """One column of the drift table. `grows_with_drift` is None for reference values (chance, error)."""

    name: str
    estimator: str
    low: float
    high: float
    grows_with_drift: bool | None
    invariances: tuple[Invariance, ...]
    unit: str = "1"


INF = float("inf")
MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        Measure("cka_debiased", "linear CKA of U-centred Grams (unbiased HSIC)", -1, 1, False, KERNEL),
        Measure("cka_plain", "linear CKA of centred Grams (biased)", 0, 1, False, KERNEL),
        Measure("cka_drift_debiased", "1 - cka_debiased, as half the squared distance of unit Grams", 0, 2, True, KERNEL),
        Measure("cka_drift_plain", "1 - cka_plain, as half the squared distance of unit Grams", 0, 1, True, KERNEL),
        Measure("cka_chance_mean", "exact mean of cka_plain over row permutations", 0, 1, None, KERNEL),
        Measure("cka_chance_sd", "exact sd of cka_plain over row permutations", 0, 1, None, KERNEL),
        Measure("cka_standard_error", "closed-form jackknife error of cka_debiased over examples", 0, INF, None, KERNEL),
        Measure(
            "cosine_raw",
            "mean over examples of the cosine of state and base state",
            -1,
            1,
            False,
            (*ROWS, "isotropic scale", "rotation"),
        ),
        Measure("cosine_centred", "the same after subtracting the base mean from both", -1, 1, False, (*ROWS, "rotation")),
        Measure("cosine_standardised", "the same, also over the base sd per dimension", -1, 1, False, ROWS),
        Measure("relative_displacement", "mean over examples of |y - x| / |x|", 0, INF, True, (*ROWS, "rotation")),
        Measure("mean_shift", "|mean(y) - mean(x)| over the rms norm of base rows", 0, INF, True, (*ROWS, "rotation")),
        Measure("procrustes", "squared distance of centred unit-norm states after the best rotation", 0, 2, True, KERNEL),
        Measure("token_cosine", "mean over real tokens (not position 0) of the raw cosine to the base token state", -1, 1, False, ROWS),
        Measure(
            "next_token_kl",
            "mean over prompts of KL(base || tuned) of the next token after the prompt",
            0,
            INF,
            True,
            ROWS,
            "nats",
        ),
        Measure(
            "top1_disagreement",
            "share of prompts whose most probable next token differs from the base's",
            0,
            1,
            True,
            ROWS,
            "fraction",
        ),
        Measure(
            "attention_js",
            "mean Jensen-Shannon divergence of the last prompt token's attention, over heads and examples",
            0,
            1,
            True,
            ROWS,
            "bits",
        ),
        Measure("mlp_cosine", "mean over examples of the raw cosine of MLP activations at the last prompt token", -1, 1, False, ROWS),
        Measure("mlp_displacement", "mean over examples of |y - x| / |x| of the same activations", 0, INF, True, ROWS),
        Measure("text_nll", "mean negative log-likelihood of a held-out text's tokens", 0, INF, None, (), "nats/token"),
        Measure("text_perplexity", "exp of text_nll", 1, INF, None, ()),
        Measure(
            "forgetting", "text_nll minus the base's, the log ratio of perplexities; may be negative", -INF, INF, True, (), "nats/token"
        ),
    )
}
"""`rotation` of row-wise measures means one rotation of both sides; of kernel measures, of either side."""
