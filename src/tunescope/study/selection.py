"""Which learning rate and batch size the search has chosen. Pure: reads selection losses, nothing else."""

from collections.abc import Mapping

Setting = tuple[str, float, int]
"""(method, learning rate, batch size)."""


def choose(losses: Mapping[Setting, float]) -> tuple[int, dict[str, float]]:
    """Choose one batch size for all methods, then each method's learning rate at it.

    The batch size minimises the mean over methods of each method's best selection loss, so that neither arm's preference rules alone
    and seeds stay paired; ties go to the smaller value.

    Args:
        losses: best selection loss (nats a completion token) of every search run; every method must have run at every batch size.

    Returns:
        (batch size, {method: learning rate}).
    """
    methods = sorted({m for m, _, _ in losses})
    sizes = sorted({b for _, _, b in losses})
    best = {(m, b): min((loss, lr) for (m2, lr, b2), loss in losses.items() if (m2, b2) == (m, b)) for m in methods for b in sizes}
    size = min(sizes, key=lambda b: (sum(best[m, b][0] for m in methods) / len(methods), b))
    return size, {m: best[m, size][1] for m in methods}
