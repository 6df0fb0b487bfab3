"""SST-2: is a phrase of a film review positive or negative? Accuracy."""

from .base import Classification, Row


def _prompt(row: Row) -> tuple[str, str, str]:
    return "Review: ", row["sentence"].strip(), "\nSentiment:"


TASK = Classification(
    name="sst2",
    labels=("negative", "positive"),
    verbalisers=(" negative", " positive"),
    text_columns=("sentence",),
    prompt=_prompt,
)
