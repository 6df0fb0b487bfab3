"""Open loop: a real `vllm serve` under Poisson arrivals, measured by vLLM's own bench client. One server start is one launch.

`python -m tunescope.serve.open_loop SPEC.json` is the child process of one launch; launches.py plans them.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .launch import die_with_parent, failed_row, prepare_environment, write_row
from .measure import compilation, read_log
from .session import root_cause, tail

VLLM = [sys.executable, "-m", "tunescope.serve.vllm_cli"]
METRICS = ("ttft", "tpot", "itl", "e2el")
"""As the client names them: time to first token, time per output token after the first, inter-token latency, end-to-end latency."""
PERCENTILES = (50, 95, 99)
WARM_TOKENS, WARM_TOGETHER = 8, 16
_MODEL = "served-base"


def run(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Start the server, make sure that every adapter does something, warm it, and run the client once a rate."""
    started, port = time.monotonic(), free_port()
    url, log = f"http://127.0.0.1:{port}", Path(spec["log"])
    server = subprocess.Popen(serve_command(spec, port), stdin=subprocess.DEVNULL, start_new_session=False)
    wait_until_ready(server, url, log, spec["ready_timeout_s"])
    cold_start = time.monotonic() - started
    names = [a["name"] for a in spec["adapters"]]
    prompt = json.loads(Path(spec["prompts"]).read_text())["asks"][0]
    effects = check_adapters(url, prompt, names, spec["minimum_difference"])
    warm(url, [prompt[i % len(prompt)] for i in range(spec["prompt_length"])], [_MODEL, *names], spec["warmup_calls"])
    position, rates = os.path.getsize(log), []
    for rate in spec["request_rates"]:
        code = subprocess.run(client_command(spec, port, rate), check=False, stdin=subprocess.DEVNULL).returncode
        if code != 0:
            raise RuntimeError(f"the bench client ended with exit code {code} ({root_cause(log) or tail(log)})")
        found = json.loads((Path(spec["result"]).parent / result_name(rate)).read_text())
        rates.append(rate_row(rate, found, spec["requests"]))
    compiled = compilation(read_log(str(log), position))
    row = {"cold_start_s": cold_start, "adapter_effects": effects, "rates": rates, "compiled_during_inference": compiled is not None}
    if compiled is not None:
        return row | {"ok": False, "error": f"rejected: the engine compiled during inference ({compiled[:200]})"}
    return row | {"ok": True, "error": None}


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(spec: Mapping[str, Any], port: int) -> list[str]:
    """`vllm serve` with the same engine settings as the closed-loop launches of that arm."""
    command = [
        *VLLM, "serve", spec["model"], "--host", "127.0.0.1", "--port", str(port), "--served-model-name", _MODEL, "--dtype", spec["dtype"],
        "--seed", str(spec["seed"]), "--max-model-len", str(spec["max_model_len"]), "--max-num-seqs", str(spec["max_num_seqs"]),
        "--no-enable-prefix-caching", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if spec["device"] == "cpu":
        command += ["--kv-cache-memory-bytes", str(spec["kv_cache_memory_bytes"])]
    else:
        command += ["--gpu-memory-utilization", str(spec["gpu_memory_utilization"])]
    if spec["enforce_eager"]:
        command.append("--enforce-eager")
    if "max_cudagraph_capture_size" in spec:
        command += ["--max-cudagraph-capture-size", str(spec["max_cudagraph_capture_size"])]
    lora = spec["lora"]
    if lora:
        command += ["--enable-lora", "--max-loras", str(lora["max_loras"]), "--max-cpu-loras", str(lora["max_cpu_loras"])]
        command += ["--max-lora-rank", str(lora["max_lora_rank"])]
        command += ["--lora-target-modules", *lora["target_modules"]] if lora["target_modules"] else []
        command += ["--lora-modules", *(f"{a['name']}={a['path']}" for a in spec["adapters"])] if spec["adapters"] else []
    return command


def client_command(spec: Mapping[str, Any], port: int, rate: float) -> list[str]:
    """`vllm bench serve`: exact prompt and answer lengths, Poisson arrivals, adapters in turn where the client can."""
    command = [
        *VLLM, "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}", "--endpoint", "/v1/completions",
        "--model", _MODEL, "--tokenizer", spec["tokenizer"], "--dataset-name", "random", "--random-input-len", str(spec["prompt_length"]),
        "--random-output-len", str(spec["output_tokens"]), "--random-range-ratio", "0", "--num-prompts", str(spec["requests"]),
        "--request-rate", str(rate), "--burstiness", "1.0", "--seed", str(spec["client_seed"]), "--ignore-eos", "--temperature", "0",
        "--num-warmups", str(spec["warmup_calls"]), "--percentile-metrics", ",".join(METRICS),
        "--metric-percentiles", ",".join(map(str, PERCENTILES)), "--save-result", "--result-dir", str(Path(spec["result"]).parent),
        "--result-filename", result_name(rate), "--disable-tqdm",
    ]  # fmt: skip
    if spec["adapters"]:
        command += ["--lora-modules", *(a["name"] for a in spec["adapters"])]
        command += ["--lora-assignment", "round-robin"] if client_knows("--lora-assignment") else []
    return command


def client_knows(option: str) -> bool:
    """Whether the installed bench client has an option, from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("vllm")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return any(option in path.read_text() for root in roots if (path := Path(root) / "benchmarks" / "serve.py").is_file())


def result_name(rate: float) -> str:
    return f"rate-{rate:g}.json"


def rate_row(rate: float, found: Mapping[str, Any], requests: int) -> dict[str, Any]:
    """The client's figures at one rate: percentiles 50, 95, 99 in milliseconds, and what was really offered and completed.

    Raises:
        RuntimeError: no request was answered; the client then gives times of 0 ms and ends as if all were well.
    """
    if not found["completed"]:
        raise RuntimeError(f"none of {requests} requests at {rate:g} a second was answered")
    row: dict[str, Any] = {
        "request_rate": rate,
        "requests": requests,
        "completed": found["completed"],
        "duration_s": found["duration"],
        "requests_per_s": found["request_throughput"],
        "output_tokens_per_s": found["output_throughput"],
    }
    return row | {f"{m}_ms": [found[f"p{p}_{m}_ms"] for p in PERCENTILES] for m in METRICS}


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    """Poll the server's health page.

    Raises:
        RuntimeError: the server ended, or is not ready in time.
    """
    limit = time.monotonic() + timeout_s
    while time.monotonic() < limit:
        if server.poll() is not None:
            why = root_cause(log) or tail(log)
            raise RuntimeError(f"the server ended with exit code {server.returncode} before it was ready ({why})")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready within {timeout_s:g} s ({tail(log)})")


def check_adapters(url: str, prompt: Sequence[int], names: Sequence[str], minimum: float) -> dict[str, float]:
    """Largest difference (nats) between the log-probabilities of the base's and each adapter's greedy tokens; this also warms each adapter.

    Raises:
        RuntimeError: an adapter answers like the base model.
    """
    base = greedy(url, _MODEL, prompt)
    effects = {}
    for name in names:
        found = greedy(url, name, prompt)
        same = [abs(a - b) for (ta, a), (tb, b) in zip(base, found, strict=True) if ta == tb]
        effects[name] = max(same, default=0.0) if len(same) == len(base) else float("inf")
        if not effects[name] > minimum:
            raise RuntimeError(f"adapter '{name}' answers like the base model (within {effects[name]:.2g} nats): not applied")
    return {name: min(value, 1e9) for name, value in effects.items()}  # JSON has no infinity: another token altogether


def warm(url: str, prompt: Sequence[int], models: Sequence[str], calls: int) -> None:
    """At least `calls` requests, each model alone first, then many at once, the models in turn: the bench client warms only the base.

    The base belongs to the models of an arm with adapters too, because the client's own warm-up sends it.
    """
    asked = [models[i % len(models)] for i in range(max(calls, len(models)))]
    for model in asked[: len(models)]:
        answer(url, model, prompt)
    with ThreadPoolExecutor(WARM_TOGETHER) as pool:
        list(pool.map(lambda model: answer(url, model, prompt), asked[len(models) :]))


def greedy(url: str, model: str, prompt: Sequence[int]) -> list[tuple[str, float]]:
    """Greedy tokens and their log-probabilities from the completions endpoint."""
    found = answer(url, model, prompt, logprobs=0)["logprobs"]
    return list(zip(found["tokens"], found["token_logprobs"], strict=True))


def answer(url: str, model: str, prompt: Sequence[int], **more: Any) -> dict[str, Any]:
    """The first choice of the completions endpoint, asked as the bench client asks (greedy, no end of sequence) for a short answer."""
    body = {"model": model, "prompt": list(prompt), "max_tokens": WARM_TOKENS, "temperature": 0, "ignore_eos": True} | more
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        found: dict[str, Any] = json.load(reply)["choices"][0]
    return found


def main(spec_path: str) -> None:
    """Run one launch; the parent ends the server with the process group."""
    spec = json.loads(Path(spec_path).read_text())
    prepare_environment(spec["device"], spec["enforce_eager"])
    if spec["watch_stdin"]:
        die_with_parent()
    try:
        row = run(spec)
    except BaseException as error:
        row = failed_row(error, spec["log"])
    write_row(spec["result"], row)
    sys.stdout.flush()
    os._exit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main(sys.argv[1])
