"""MRPC: do two sentences say the same? Accuracy and F1 of the class `equivalent`."""

from .base import Classification, Row


def _prompt(row: Row) -> tuple[str, str, str]:
    return f"A: {row['sentence1'].strip()}\nB: ", row["sentence2"].strip(), "\nSame?"


TASK = Classification(
    name="mrpc",
    labels=("not_equivalent", "equivalent"),
    verbalisers=(" no", " yes"),
    text_columns=("sentence1", "sentence2"),
    prompt=_prompt,
    positive="equivalent",
)
