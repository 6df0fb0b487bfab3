"""RTE: does the text support the claim? Accuracy. The publisher's label 0 is `entailment`."""

from .base import Classification, Row


def _prompt(row: Row) -> tuple[str, str, str]:
    return "Text: ", row["sentence1"].strip(), f"\nClaim: {row['sentence2'].strip()}\nSupported?"


TASK = Classification(
    name="rte",
    labels=("entailment", "not_entailment"),
    verbalisers=(" yes", " no"),
    text_columns=("sentence1", "sentence2"),
    prompt=_prompt,
)
