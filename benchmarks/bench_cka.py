"""Cost of the drift table: 22 layers, 750 examples, width 2,048, one CPU thread. Prints one JSON row per measurement.

Each measurement runs in its own process (peak memory is a high-water mark): `python benchmarks/bench_cka.py [table|cka|moments|numpy]`.
"""

import json
import os
import resource
import subprocess
import sys
import time

LAYERS, N, D = 22, 750, 2048


def states(seed: int):
    import numpy as np

    rng = np.random.default_rng(seed)
    return {(k, "last_prompt_token"): rng.standard_normal((N, D), dtype=np.float32) for k in range(1, LAYERS + 1)}


def pair():
    import numpy as np

    base, tuned = states(0), states(1)
    for key, value in tuned.items():
        value *= np.float32(0.3)
        value += base[key]
    return base, tuned


def table() -> dict:
    from tunescope.drift.states import ProbeStates
    from tunescope.drift.table import drift_table
    from tunescope.study.schema import DriftSpec

    base, tuned = pair()
    a, b = (ProbeStates(layers, "0" * 64, "bench") for layers in (base, tuned))
    return timed("full drift table, 22 layers", lambda: len(drift_table(a, b, DriftSpec(), scored=True)))


def cka() -> dict:
    from tunescope.drift.similarity import debiased_cka, gram

    base, tuned = pair()
    grams = {key: gram(value) for key, value in base.items()}
    for g in grams.values():
        g.debiased  # noqa: B018 (fills the cache)
    return timed("22 debiased CKAs, base Grams cached", lambda: sum(debiased_cka(grams[k], tuned[k]) for k in grams))


def moments() -> dict:
    """Exact mean and sd over all row permutations, instead of 10,000 sampled ones; Grams of both sides are there by then."""
    from tunescope.drift.similarity import cka_chance, gram

    base, tuned = ({key: gram(value) for key, value in side.items()} for side in pair())
    for g in (*base.values(), *tuned.values()):
        g.norm  # noqa: B018 (fills the cache)
    return timed("chance mean and sd of 22 CKAs", lambda: sum(cka_chance(base[k], tuned[k])[0] for k in base))


def numpy() -> dict:
    """The usual feature-space formula in plain numpy, for comparison."""
    import numpy as np

    base, tuned = pair()

    def one(x, y):
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))

    return timed("22 plain CKAs, feature space, plain numpy", lambda: sum(one(base[k], tuned[k]) for k in base))


def timed(name, work) -> dict:
    cpu, wall = time.process_time(), time.perf_counter()
    value = work()
    seconds = {"cpu_s": round(time.process_time() - cpu, 3), "wall_s": round(time.perf_counter() - wall, 3)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"measurement": name, **seconds, "peak_rss_mib": peak, "value": value, "n": N, "d": D, "layers": LAYERS}


def main() -> None:
    chosen = {"table": table, "cka": cka, "moments": moments, "numpy": numpy}
    if len(sys.argv) > 1:
        print(json.dumps(chosen[sys.argv[1]]()))
        return
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for name in chosen:
        subprocess.run([sys.executable, __file__, name], env=one_thread, check=True)


if __name__ == "__main__":
    main()
