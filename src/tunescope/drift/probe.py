"""The probe: a fixed, hashed set of prompts and the pooled hidden states a model gives them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tunescope.drift.forgetting import HeldOutText
from tunescope.drift.gram import StatesError
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
OUTPUT_BLOCK = 64
"""Rows of them normalised at once."""
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
        self._batches: dict[tuple[int, str, int | None], list[Batch]] = {}
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
        on_device: bool = False,
    ) -> ProbeStates:
        """Pooled states of every layer, in probe order, as fp32 arrays; the model's modes are restored.

        internals: also attention and MLP activations (default: the spec's); False leaves out the held-out text too.
        on_device: leave them as tensors where the model is, for a `drift_table` on that device and nothing else.
        Raises StatesError naming `name` and the layer when a state is NaN or infinite.
        """
        size = batch_size or self.spec.batch_size
        batches = self.batches(size, padding)
        collector = _Collector(self, model, batches)
        with (
            exact_inference(model, self.device),
            watching(model, collector.keep),
            head_of_last_token(model, lambda: collector.batch),
        ):
            for index, batch in enumerate(batches):
                collector.start(index, batch)
                collector.finish(model(**batch.inputs(), use_cache=False))
            layers, extras = collector.layers(name), collector.extras()
        given: Callable[[Tensor], Any] = (lambda kept: kept) if on_device else (lambda kept: kept.cpu().numpy())
        states = ProbeStates({k: given(v) for k, v in layers.items()}, self.sha256, self.task, source=name)
        states.extras = {k: given(v) for k, v in extras.items()}
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

    def batches(self, size: int, padding: str, limit: int | None = None) -> list[Batch]:
        """Batches of similar length (shortest first), which wastes little on padding; the order is deterministic.

        They are made once and stay on the device: all token ids of a probe are a few MB, and every copy would make the device wait.
        """
        key = (size, padding, limit)
        if key not in self._batches:
            rows = sorted(range(len(self.tokens))[:limit], key=lambda row: (len(self.tokens[row]), row))
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            self._batches[key] = [make_batch(part, self.tokens, self._pad, padding == "left", self.device) for part in parts]
        return self._batches[key]

    def rows_within(self, budget: int, bytes_of: Sequence[int]) -> int:
        """How many of the first examples fit the budget, at least one."""
        return max(1, int(np.searchsorted(np.cumsum(bytes_of), budget, side="right")))


class _Collector:
    """Receives hidden states from the hooks and keeps n x d per layer and pooling, plus the token sample and the outputs.

    Everything stays on the device, in the order of the batches, until the last forward pass has ended. Nothing here may wait for the
    device while batches run: each wait leaves it idle until the host has queued the next kernels.
    """

    def __init__(self, probe: Probe, model: nn.Module, batches: Sequence[Batch]):
        config = base_of(model).config.get_text_config()
        self.device, self._count = batches[0].ids_BT.device, len(decoder_layers(model)) + 1
        self._rows = [row for batch in batches for row in batch.rows]
        lengths = [len(ids) for ids in probe.tokens]
        sample = token_sample(lengths, max(1, TOKEN_BYTES // (4 * config.hidden_size * self._count)))
        outputs = probe.rows_within(OUTPUT_BYTES, [4 * config.vocab_size] * len(lengths))
        self._picks = list(_picks(batches, lengths, sample, outputs, self.device))
        self._places = [place for row in self._rows for _, place in sample.get(row, ())]
        self._output_rows = [row for row in self._rows if row < outputs]
        self._divisors = torch.tensor([lengths[row] - 1 for row in self._rows], device=self.device)
        self._pooled: dict[str, Tensor] = {}
        self._tokens: Tensor | None = None
        self._outputs: Tensor | None = None

    def start(self, index: int, batch: Batch) -> None:
        """Fix where the coming batch's states go."""
        self.batch, self._now = batch, self._picks[index]

    def keep(self, layer: int, hidden: Tensor) -> None:
        now, width = self._now, hidden.shape[-1]
        h = hidden[:, -self.batch.ids_BT.shape[1] :].float()
        flat = h.reshape(-1, width)
        if not self._pooled:
            self._pooled = {kind: self._room(len(self._rows), width) for kind in POOLINGS}
            self._tokens = self._room(len(self._places), width)
        assert self._tokens is not None
        torch.sum(torch.where(self.batch.averaged_BT[..., None], h, 0), dim=1, out=self._pooled["mean"][layer, now.rows])
        torch.index_select(flat, 0, now.last, out=self._pooled["last_prompt_token"][layer, now.rows])
        torch.index_select(flat, 0, now.sampled, out=self._tokens[layer, now.tokens])

    def _room(self, rows: int, width: int) -> Tensor:
        return torch.empty(self._count, rows, width, device=self.device)

    def finish(self, output: Any) -> None:
        """Keep the logits after the prompt."""
        logits = getattr(output, "logits", None)
        if logits is None or logits.shape[1] != 1:
            return
        if self._outputs is None:
            self._outputs = torch.empty(len(self._output_rows), logits.shape[-1], device=self.device)
        self._outputs[self._now.outputs] = logits[:, 0].index_select(0, self._now.kept)

    def layers(self, name: str) -> dict[tuple[int, str], Tensor]:
        """Pooled states in probe order, on the device."""
        self._pooled["mean"].div_(self._divisors[:, None])
        finite = torch.stack([torch.stack([part.isfinite().all() for part in self._pooled[kind]]) for kind in POOLINGS]).tolist()
        for layer in range(self._count):
            for kind, fine in zip(POOLINGS, finite, strict=True):
                if not fine[layer]:
                    raise StatesError(f"{name}: layer {layer} ({kind}) has NaN or infinite states; the model has diverged or overflowed")
        pooled = {kind: _reordered(self._pooled[kind], self._rows) for kind in POOLINGS}
        return {(layer, kind): pooled[kind][layer] for layer in range(self._count) for kind in POOLINGS}

    def extras(self) -> dict[str, Tensor]:
        """The token sample by layer and the log-probabilities after the prompt, in probe order, on the device."""
        assert self._tokens is not None
        found = {f"tokens.{layer}": value for layer, value in enumerate(_reordered(self._tokens, self._places))}
        if self._outputs is not None:
            for block in self._outputs.split(OUTPUT_BLOCK):
                block.copy_(block.log_softmax(dim=-1))
            found["log_probs"] = _reordered(self._outputs[None], self._output_rows)[0]
        return found


class _Picks(NamedTuple):
    """What one batch gives, as positions in its flattened tokens (or rows), and where that goes in the kept arrays."""

    rows: slice
    last: Tensor
    tokens: slice
    sampled: Tensor
    outputs: slice
    kept: Tensor


def _picks(
    batches: Sequence[Batch], lengths: Sequence[int], sample: dict[int, list[tuple[int, int]]], outputs: int, device: torch.device
) -> Iterator[_Picks]:  # fmt: skip
    """Batches with their picks; all copies to the device happen here, before the first forward pass."""
    row = token = output = 0
    for batch in batches:
        width = batch.ids_BT.shape[1]
        starts = [i * width + (width - lengths[r] if batch.left else 0) for i, r in enumerate(batch.rows)]
        last = [start + lengths[r] - 1 for start, r in zip(starts, batch.rows, strict=True)]
        sampled = [start + at for start, r in zip(starts, batch.rows, strict=True) for at, _ in sample.get(r, ())]
        kept = [i for i, r in enumerate(batch.rows) if r < outputs]
        on_device = [torch.tensor(found, dtype=torch.long, device=device) for found in (last, sampled, kept)]
        spans = [slice(at, at + n) for at, n in ((row, len(last)), (token, len(sampled)), (output, len(kept)))]
        yield _Picks(spans[0], on_device[0], spans[1], on_device[1], spans[2], on_device[2])
        row, token, output = (span.stop for span in spans)


def _reordered(kept_KNd: Tensor, places: list[int]) -> Tensor:
    """Row i of each slice moved to `places[i]`, in place but for one slice at a time."""
    order = torch.tensor(places, device=kept_KNd.device).argsort()
    for part in kept_KNd:
        part.copy_(part.index_select(0, order))
    return kept_KNd


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
