"""The probe: a fixed, hashed set of prompts and the pooled hidden states a model gives them."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tunescope.drift.forgetting import HeldOutText
from tunescope.drift.gram import Array, StatesError
from tunescope.drift.hooks import Batch, base_of, decoder_layers, exact_inference, head_of_last_token, make_batch, watching
from tunescope.drift.internals import internal_states
from tunescope.drift.states import CONVENTION, POOLINGS, ProbeStates, load_states, save_states
from tunescope.drift.table import drift_table
from tunescope.errors import StepError
from tunescope.models.tokenization import PromptParts, encode
from tunescope.study.identity import fingerprint
from tunescope.study.schema import DriftSpec

__all__ = ["Probe", "ProbeStates", "drift_table", "load_states", "save_states"]
TOKEN_BYTES = 64 * 2**20
"""Room for token-level states, over all layers; tokens spread over the whole probe are kept."""
OUTPUT_BYTES = 128 * 2**20
"""Room for next-token log-probabilities."""
ACTIVATION_EXAMPLES = 64


class Probe:
    """A probe set: ids, texts, token ids and truncation, fixed by a hash. Labels are never read.

    `task` is its name. Prompts longer than `max_length` tokens lose the end of their passage (see models.tokenization).
    """

    def __init__(
        self,
        task: Any,
        examples: Sequence[PromptParts],
        tokenizer: Any,
        max_length: int,
        spec: DriftSpec,
        device: str,
        text: HeldOutText | None = None,
    ):
        self.task: str = getattr(task, "name", task)
        chosen = list(examples)[: spec.probe_examples]
        encoded = [encode(tokenizer, example, max_length, completion=None, end=False) for example in chosen]
        self.ids = [example.id for example in chosen]
        self.tokens: list[list[int]] = [list(e.input_ids) for e in encoded]
        self.truncated = sum(e.truncated for e in encoded)
        self.spec, self.device, self.text = spec, device, text
        self._pad = int(getattr(tokenizer, "pad_token_id", None) or 0)
        self.sha256 = fingerprint(
            {
                "task": self.task,
                "max_length": max_length,
                "convention": CONVENTION,
                "examples": [[e.id, e.before, e.passage, e.after, ids] for e, ids in zip(chosen, self.tokens, strict=True)],
            }
        )
        short = [i for i, ids in zip(self.ids, self.tokens, strict=True) if len(ids) < 2]
        if short:
            raise StepError(f"probe of {self.task}: example {short[0]} has fewer than 2 tokens, so nothing remains without position 0")
        if len(chosen) < 4:
            raise StepError(f"probe of {self.task}: needs at least 4 examples, got {len(chosen)}; prepare the data with more")

    def states(
        self,
        model: nn.Module,
        *,
        internals: bool | None = None,
        batch_size: int | None = None,
        padding: Literal["right", "left"] = "right",
        name: str = "this run",
    ) -> ProbeStates:
        """Pooled states of every layer, in probe order, fp32 on the CPU; the model's modes are restored.

        internals: also attention and MLP activations (default: the spec's); False leaves out the held-out text too.
        Raises StatesError naming `name` and the layer when a state is NaN or infinite.
        """
        size = batch_size or self.spec.batch_size
        collector = _Collector(self, model)
        with (
            exact_inference(model, self.device),
            watching(model, collector.keep),
            head_of_last_token(model, lambda: collector.batch),
        ):
            for batch in self.batches(size, padding):
                collector.start(batch)
                collector.finish(model(**batch.inputs(), use_cache=False))
        states = ProbeStates(collector.layers(name), self.sha256, self.task, source=name, extras=collector.extras())
        if self.spec.internals if internals is None else internals:
            with exact_inference(model, self.device):
                states.extras |= internal_states(model, self.tokens, self._pad, size, self.device)
        if self.text is not None and internals is not False:
            states.extras["text_nll"] = self.text.losses(model, self.device)
        return states

    def activations(self, model: nn.Module) -> pd.DataFrame:
        """Massive activations per layer: max |h| over real tokens of the first examples, over the median of |h|.

        The median is the median over examples of each example's own; `at_position_0` says where the largest value stands.
        """
        rows: list[dict[str, float]] = []

        def keep(layer: int, hidden: Tensor) -> None:
            for i in range(hidden.shape[0]):
                h = hidden[i, -batch.ids_BT.shape[1] :][batch.real_BT[i]].abs().float()
                first = bool(h.amax(dim=1).argmax() == 0)
                rows.append({"layer": layer, "max_abs": float(h.max()), "median_abs": float(h.median()), "at_position_0": first})

        with exact_inference(model, self.device), watching(model, keep), head_of_last_token(model, lambda: batch):
            for batch in self.batches(self.spec.batch_size, "right", limit=ACTIVATION_EXAMPLES):
                model(**batch.inputs(), use_cache=False)
        grouped = pd.DataFrame(rows).groupby("layer")
        table = pd.DataFrame({"max_abs": grouped["max_abs"].max(), "median_abs": grouped["median_abs"].median()})
        table["at_position_0"] = grouped["at_position_0"].mean()
        table["max_over_median"] = table["max_abs"] / table["median_abs"]
        return table.reset_index()

    def batches(self, size: int, padding: str, limit: int | None = None) -> Iterator[Batch]:
        """Batches of similar length (shortest first), which wastes little on padding; the order is deterministic."""
        rows = sorted(range(len(self.tokens))[:limit], key=lambda row: (len(self.tokens[row]), row))
        for start in range(0, len(rows), size):
            yield make_batch(rows[start : start + size], self.tokens, self._pad, padding == "left", self.device)

    def rows_within(self, budget: int, bytes_of: Sequence[int]) -> int:
        """How many of the first examples fit the budget, at least one."""
        return max(1, int(np.searchsorted(np.cumsum(bytes_of), budget, side="right")))


class _Collector:
    """Receives hidden states from the hooks and keeps n x d per layer and pooling, plus the token sample.

    What a batch gives stays on the device until its forward pass has ended: one copy a batch, since a copy a layer would stop the
    device at every layer.
    """

    def __init__(self, probe: Probe, model: nn.Module):
        self.batch: Batch
        self._n = len(probe.tokens)
        self._pending: dict[tuple[int, str], Tensor] = {}
        self._kept: dict[tuple[int, str], Tensor] = {}
        self._log_probs: dict[int, Tensor] = {}
        config = base_of(model).config.get_text_config()
        width = 4 * config.hidden_size * (len(decoder_layers(model)) + 1)
        self._sample = token_sample([len(ids) for ids in probe.tokens], max(1, TOKEN_BYTES // width))
        self._output_rows = probe.rows_within(OUTPUT_BYTES, [4 * config.vocab_size] * self._n)

    def start(self, batch: Batch) -> None:
        """Fix which tokens of the coming batch belong to the sample."""
        self.batch = batch
        starts = batch.real_BT.int().argmax(dim=1).tolist()
        found = [(i, starts[i] + at, place) for i, row in enumerate(batch.rows) for at, place in self._sample.get(row, ())]
        self._tokens = [torch.tensor(column, dtype=torch.long, device=batch.ids_BT.device) for column in zip(*found, strict=True)]

    def keep(self, layer: int, hidden: Tensor) -> None:
        batch = self.batch
        h = hidden[:, -batch.ids_BT.shape[1] :].float()
        averaged = batch.averaged_BT
        self._pending[layer, "mean"] = h.masked_fill(~averaged[..., None], 0).sum(dim=1) / averaged.sum(dim=1, keepdim=True)
        self._pending[layer, "last_prompt_token"] = h[torch.arange(len(batch.rows), device=h.device), batch.last_B]
        if self._tokens:
            self._pending[layer, "token"] = h[self._tokens[0], self._tokens[1]]

    def finish(self, output: Any) -> None:
        """Move what the batch gave to the CPU, each kind in one copy, and its log-probabilities after the prompt."""
        for kind in (*POOLINGS, "token"):
            keys = [key for key in self._pending if key[1] == kind]
            if not keys:
                continue
            places = self._tokens[2].cpu() if kind == "token" else torch.tensor(self.batch.rows)
            rows = sum(map(len, self._sample.values())) if kind == "token" else self._n
            for key, value in zip(keys, torch.stack([self._pending.pop(key) for key in keys]).cpu(), strict=True):
                self._kept.setdefault(key, torch.empty(rows, value.shape[-1]))[places] = value
        logits = getattr(output, "logits", None)
        if logits is not None and logits.shape[1] == 1:
            log_probs = logits[:, 0].float().log_softmax(dim=-1).cpu()
            self._log_probs |= {row: log_probs[i] for i, row in enumerate(self.batch.rows) if row < self._output_rows}

    def layers(self, name: str) -> dict[tuple[int, str], Array]:
        for (layer, kind), value in sorted(self._kept.items()):
            if not torch.isfinite(value).all():
                raise StatesError(f"{name}: layer {layer} ({kind}) has NaN or infinite states; the model has diverged or overflowed")
        return {key: value.numpy() for key, value in sorted(self._kept.items()) if key[1] in POOLINGS}

    def extras(self) -> dict[str, Array]:
        extras = {f"tokens.{layer}": value.numpy() for (layer, kind), value in sorted(self._kept.items()) if kind == "token"}
        if self._log_probs:
            extras["log_probs"] = torch.stack([self._log_probs[i] for i in sorted(self._log_probs)]).numpy()
        return extras


def token_sample(lengths: Sequence[int], room: int) -> dict[int, list[tuple[int, int]]]:
    """Tokens spread evenly over the whole probe, position 0 left out: row -> [(position, place in the sample)].

    All real tokens where `room` allows; otherwise every (total / room)-th of them in probe order, so that all prompts and positions
    have their share in the mean over tokens.
    """
    ends = np.cumsum([length - 1 for length in lengths])
    total = int(ends[-1])
    m = min(total, room)
    sample: dict[int, list[tuple[int, int]]] = {}
    for place, token in enumerate((2 * np.arange(m) + 1) * total // (2 * m)):
        row = int(np.searchsorted(ends, token, side="right"))
        sample.setdefault(row, []).append((int(token - ends[row]) + lengths[row], place))
    return sample
