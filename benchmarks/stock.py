"""The stock Trainer, and Trainer with PEFT, as their documentation sets them up: what bench_training.py compares with."""

from typing import Any

import torch
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

IGNORED = -100


class PaddedRows:
    """Pad to the longest row, or to a fixed length, with attention mask and labels on the completion."""

    def __init__(self, length: int | None):
        self.length = length

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = self.length or max(len(r["input_ids"]) for r in rows)
        filled = [(r["input_ids"], r["labels"], width - len(r["input_ids"])) for r in rows]
        return {
            "input_ids": torch.tensor([ids + [0] * n for ids, _, n in filled]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * n for ids, _, n in filled]),
            "labels": torch.tensor([labels + [IGNORED] * n for _, labels, n in filled]),
        }


def stock_trainer(cell: Any, model: Any, rows: list[Any], setup: Any, folder: str, steps: int) -> Trainer:
    """`Trainer` with bf16=True over fp32 weights (`mixed`), or bf16 weights. Adapters: PEFT's own dtype handling stays on."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = True
    micro = 1 if cell.setting.startswith("b1x8") else 8
    limit = {"mrpc": 512, "squad": 768}[cell.lengths] if cell.setting.endswith("-max") else None
    arguments = TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=micro, gradient_accumulation_steps=8 // micro,
        learning_rate=1e-5,
        weight_decay=0.01, max_grad_norm=1.0, lr_scheduler_type="linear", optim="adamw_torch_fused",
        bf16=cell.precision == "mixed",
        logging_steps=10, logging_first_step=True, save_strategy="no", train_sampling_strategy="sequential", report_to="none", seed=1,
        disable_tqdm=True,
        use_cpu=setup.device == "cpu",
    )  # fmt: skip
    data = [{"input_ids": r.input_ids, "labels": [IGNORED] * r.prompt_length + r.input_ids[r.prompt_length :]} for r in rows]
    collator = DataCollatorWithFlattening() if cell.setting.endswith("-flat") else PaddedRows(limit)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    return trainer
