"""The open loop's commands and rows, and the adapter check against a small HTTP server that answers like vLLM."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tunescope.serve import open_loop

SPEC = {
    "model": "/m", "tokenizer": "/base", "dtype": "bfloat16", "seed": 1, "client_seed": 5, "max_model_len": 512, "max_num_seqs": 16,
    "gpu_memory_utilization": 0.9, "kv_cache_memory_bytes": 1000, "device": "cuda", "enforce_eager": False, "lora": None, "adapters": [],
    "request_rates": [2.5], "requests": 300, "prompt_length": 256, "output_tokens": 128, "warmup_calls": 100, "result": "/w/row.json",
}  # fmt: skip
LORA = {"max_loras": 2, "max_cpu_loras": 3, "max_lora_rank": 8, "target_modules": ["q_proj", "v_proj"]}


def after(command, option):
    return command[command.index(option) + 1]


def test_the_server_gets_the_engine_settings_of_its_arm():
    command = open_loop.serve_command(SPEC, 8123)
    assert command[3:5] == ["serve", "/m"] and after(command, "--gpu-memory-utilization") == "0.9"
    assert "--no-enable-prefix-caching" in command and "--enforce-eager" not in command and "--enable-lora" not in command
    assert "--max-cudagraph-capture-size" not in command
    assert after(open_loop.serve_command(SPEC | {"max_cudagraph_capture_size": 512}, 1), "--max-cudagraph-capture-size") == "512"
    two = SPEC | {
        "lora": LORA,
        "adapters": [{"name": "a", "path": "/a"}, {"name": "b", "path": "/b"}],
        "device": "cpu",
        "enforce_eager": True,
    }
    command = open_loop.serve_command(two, 8123)
    where = command.index("--lora-modules")
    assert command[where + 1 : where + 3] == ["a=/a", "b=/b"] and after(command, "--max-loras") == "2" and "--enforce-eager" in command
    assert "--gpu-memory-utilization" not in command and after(command, "--kv-cache-memory-bytes") == "1000"


def test_the_client_sends_exact_lengths_at_the_asked_rate(monkeypatch):
    monkeypatch.setattr(open_loop, "client_knows", lambda option: True)
    command = open_loop.client_command(SPEC | {"adapters": [{"name": "a", "path": "/a"}, {"name": "b", "path": "/b"}]}, 9, 2.5)
    assert (after(command, "--request-rate"), after(command, "--burstiness"), after(command, "--random-range-ratio")) == ("2.5", "1.0", "0")
    assert (after(command, "--random-input-len"), after(command, "--random-output-len"), after(command, "--num-prompts")) == (
        "256",
        "128",
        "300",
    )
    where = command.index("--lora-modules")
    assert command[where + 1 : where + 3] == ["a", "b"] and after(command, "--lora-assignment") == "round-robin"
    assert after(command, "--metric-percentiles") == "50,95,99" and "--ignore-eos" in command


def test_a_rate_row_holds_what_the_client_measured():
    found = {"completed": 299, "duration": 10.0, "request_throughput": 29.9, "output_throughput": 500.0}
    found |= {f"p{p}_{m}_ms": float(p) for p in (50, 95, 99) for m in ("ttft", "tpot", "itl", "e2el")}
    row = open_loop.rate_row(4.0, found, 300)
    assert (row["completed"], row["requests"], row["e2el_ms"]) == (299, 300, [50.0, 95.0, 99.0]) and row["requests_per_s"] == 29.9


def test_a_rate_at_which_nothing_was_answered_is_an_error_and_no_row_of_zeros():
    found = {"completed": 0, "duration": 10.0, "request_throughput": 0.0, "output_throughput": 0.0}
    with pytest.raises(RuntimeError, match=r"none of 300 requests at 2\.5 a second"):
        open_loop.rate_row(2.5, found, 300)


@pytest.fixture
def served():
    """A completions endpoint: adapter `same` answers like the base, `other` with other probabilities, `words` with other words."""
    answers = {"served-base": ("a", -1.0), "same": ("a", -1.0), "other": ("a", -2.0), "words": ("b", -1.0)}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((asked["model"], len(asked["prompt"])))
            token, value = answers[asked["model"]]
            body = json.dumps({"choices": [{"logprobs": {"tokens": [token] * 8, "token_logprobs": [value] * 8}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_adapters_that_do_something_pass_and_one_that_does_not_is_named(served):
    effects = open_loop.check_adapters(address(served), [1, 2], ["other", "words"], 0.01)
    assert effects == {"other": 1.0, "words": 1e9}
    with pytest.raises(RuntimeError, match="'same' answers like the base"):
        open_loop.check_adapters(address(served), [1, 2], ["other", "same"], 0.01)


def test_every_adapter_is_warmed_in_turn_with_prompts_of_the_asked_length(served):
    open_loop.warm(address(served), [1] * 7, ["same", "other"], 5)
    assert sorted(served.asked) == [("other", 7)] * 2 + [("same", 7)] * 3


@pytest.fixture
def stand_in(served, tmp_path, monkeypatch):
    """A launch around the small server; the client of the second argument's place is a script that may write to the log."""

    def launch(said, exits=0, **more):
        log, prompts = tmp_path / "log.txt", tmp_path / "prompts.json"
        log.write_text("Compiling a graph during start-up\n")  # before the requests: allowed
        prompts.write_text(json.dumps({"asks": [[1, 2, 3]]}))
        figures = {"completed": 3, "duration": 1.0, "request_throughput": 3.0, "output_throughput": 9.0}
        figures |= {f"p{p}_{m}_ms": 1.0 for p in (50, 95, 99) for m in open_loop.METRICS}
        (tmp_path / "figures.json").write_text(json.dumps(figures))
        script = f"import shutil; shutil.copy({str(tmp_path / 'figures.json')!r}, {str(tmp_path / 'rate-2.json')!r}); "
        script += f"open({str(log)!r}, 'a').write({said!r}); raise SystemExit({exits})"
        monkeypatch.setattr(open_loop, "free_port", lambda: served.server_port)
        monkeypatch.setattr(open_loop, "serve_command", lambda spec, port: [sys.executable, "-c", "import time; time.sleep(5)"])
        monkeypatch.setattr(open_loop, "client_command", lambda spec, port, rate: [sys.executable, "-c", script])
        spec = SPEC | {"log": str(log), "prompts": str(prompts), "result": str(tmp_path / "row.json"), "request_rates": [2.0]}
        return open_loop.run(spec | {"ready_timeout_s": 5, "minimum_difference": 0.01, "warmup_calls": 2, "requests": 3} | more)

    return launch


def test_a_launch_that_compiles_under_the_client_is_rejected(stand_in):
    row = stand_in("INFO Compiling a graph for dynamic shape\n")
    assert not row["ok"] and "compiled during inference" in row["error"] and row["compiled_during_inference"]


def test_compilation_before_the_requests_is_no_ground_to_reject(stand_in):
    row = stand_in("INFO all quiet\n")
    assert row["ok"] and row["rates"][0]["completed"] == 3 and row["compiled_during_inference"] is False


def test_a_client_that_fails_is_told_by_its_error_and_not_by_its_command(stand_in):
    with pytest.raises(RuntimeError, match=r"exit code 3 \(ValueError: no such tokenizer\)"):
        stand_in("ValueError: no such tokenizer\nleaked 4 instances\n", exits=3)


def test_the_base_is_warmed_beside_the_adapters_since_the_client_warms_with_it(stand_in, served):
    stand_in("INFO all quiet\n", adapters=[{"name": "other", "path": "/o"}])
    warm = [name for name, length in served.asked if length == 256]
    assert warm == ["served-base", "other"]


def test_a_server_that_dies_is_told_with_its_last_words(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("CUDA out of memory\n")
    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    dead.wait()
    with pytest.raises(RuntimeError, match=r"exit code 3 .*CUDA out of memory"):
        open_loop.wait_until_ready(dead, "http://127.0.0.1:9", log, 5)


def test_a_server_that_is_never_ready_ends_at_its_time_limit(tmp_path):
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(RuntimeError, match=r"not ready within 0\.5 s"):
            open_loop.wait_until_ready(alive, f"http://127.0.0.1:{open_loop.free_port()}", tmp_path / "log.txt", 0.5)
    finally:
        alive.kill()
        alive.wait()
