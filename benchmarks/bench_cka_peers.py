"""22 CKAs of base and tuned states beside the packages people install for it: 750 examples, width 2,048, one CPU thread.

Every package gets the 22 pairs one by one, as centred float32 features, and each runs in its own process; what is not installed is
skipped. `largest_gap`: to this package's debiased CKA (plain CKA where a package has no debiased one).

    pip install --no-deps --target peers torch-cka==0.21 ckatorch==1.0.3 pytorch-cka==1.1.3 repsim==0.1.5 seaborn
    PYTHONPATH=peers:$PYTHONPATH python benchmarks/bench_cka_peers.py
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from bench_cka import pair, timed

Pairs = list[tuple[np.ndarray, np.ndarray]]


def tunescope(pairs: Pairs) -> list[float]:
    """Both sides from scratch; a study keeps the base's Grams (`bench_cka.py cka`)."""
    from tunescope.drift.similarity import debiased_cka

    return [debiased_cka(x, y) for x, y in pairs]


def tunescope_plain(pairs: Pairs) -> list[float]:
    from tunescope.drift.similarity import linear_cka

    return [linear_cka(x, y) for x, y in pairs]


def torch_cka(pairs: Pairs) -> list[float]:
    """torch-cka takes models and a loader only: here models of one layer, a pair at a time."""
    return [float(_torch_cka([x], [y])[0, 0]) for x, y in pairs]


def torch_cka_as_used(pairs: Pairs) -> list[float]:
    """The same of two models of 22 layers: it then compares every layer with every other."""
    base, tuned = zip(*pairs, strict=True)
    return [float(v) for v in np.diag(_torch_cka(base, tuned))]


def _torch_cka(base: Sequence[np.ndarray], tuned: Sequence[np.ndarray]) -> np.ndarray:
    """Both models are lists of identity layers that are fed the states as one batch."""
    import torch
    import torch_cka as package

    class Fed(torch.nn.Module):
        def __init__(self, states: Sequence[np.ndarray]):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in states)
            self.states = [torch.from_numpy(v) for v in states]

        def forward(self, _rows: object) -> object:
            return [layer(v) for layer, v in zip(self.layers, self.states, strict=True)]

    n, names = len(base[0]), [f"layers.{k}" for k in range(len(base))]
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(n, 1)), batch_size=n)
    with contextlib.redirect_stderr(io.StringIO()):
        compared = package.CKA(Fed(base), Fed(tuned), "base", "tuned", names, names, device="cpu")
        compared.compare(rows, rows)
    return compared.export()["CKA"].numpy()


def ckatorch(pairs: Pairs) -> list[float]:
    import torch
    from ckatorch.core import cka_base

    return [float(cka_base(torch.from_numpy(x), torch.from_numpy(y), unbiased=True)) for x, y in pairs]


def pytorch_cka(pairs: Pairs) -> list[float]:
    import torch
    from cka import cka_from_features

    return [float(cka_from_features(torch.from_numpy(x), torch.from_numpy(y))) for x, y in pairs]


def repsim(pairs: Pairs) -> list[float]:
    """Its plain estimator, since neither other one is this debiased CKA; `cka` gives all pairs of its inputs, here a 2 x 2 matrix."""
    import repsim as package

    return [float(package.cka([x, y], kernel_type="linear", estimator="gretton")[0, 1]) for x, y in pairs]


def numpy_features(pairs: Pairs) -> list[float]:
    """The usual feature-space formula of plain CKA."""

    def one(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))

    return [one(x, y) for x, y in pairs]


WORKS: dict[str, Callable[[Pairs], list[float]]] = {
    "tunescope": tunescope,
    "numpy, feature space (plain)": numpy_features,
    "pytorch-cka": pytorch_cka,
    "repsim (plain)": repsim,
    "ckatorch": ckatorch,
    "torch-cka, a pair at a time": torch_cka,
    "torch-cka, all layers at once": torch_cka_as_used,
}


def measure(name: str) -> None:
    """Time one package; its libraries are loaded by a small pair first."""
    base, tuned = pair()
    pairs = [(base[k] - base[k].mean(axis=0), tuned[k] - tuned[k].mean(axis=0)) for k in base]
    work = WORKS[name]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            work([(x[:20], y[:20]) for x, y in pairs[:1]])
    except ImportError as error:
        print(json.dumps({"measurement": name, "skipped": str(error)}))
        return
    ours = (tunescope_plain if "plain" in name else tunescope)(pairs)
    values: list[float] = []
    row = timed(name, lambda: values.extend(work(pairs)))
    print(json.dumps({**row, "value": float(np.mean(values)), "largest_gap": float(np.abs(np.subtract(values, ours)).max())}))


def rows() -> Iterator[dict]:
    """Each package in a process of its own, on one thread."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for name in WORKS:
        out = subprocess.run([sys.executable, __file__, name], env=one_thread, check=True, capture_output=True, text=True).stdout
        yield json.loads(out.splitlines()[-1])


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    found = []
    for row in rows():
        print(json.dumps(row), flush=True)
        found += [] if "skipped" in row else [row]
    ours = found[0]["cpu_s"]
    print("\n| 22 CKAs | CPU s | over tunescope | peak RSS, MiB | largest gap |\n|---|---|---|---|---|")
    for row in found:
        cells = [row["measurement"], f"{row['cpu_s']:.2f}", f"{row['cpu_s'] / ours:.1f}", str(row["peak_rss_mib"])]
        print(f"| {' | '.join(cells)} | {row['largest_gap']:.1g} |")


if __name__ == "__main__":
    main()
