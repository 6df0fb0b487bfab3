"""Lists in a study file: each value once, and what stands in a list's place is told so."""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from tunescope.errors import did_you_mean


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [str(value) for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} {'is' if len(twice) == 1 else 'are'} named more than once")
    return values


def or_a_list(word: str) -> BeforeValidator:
    """Of a list in whose place one word may stand: a lone value is told to be neither, in one message for both."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value != word:
            raise ValueError(f"should be a list, e.g. [{value}], or {word}{did_you_mean(value, [word])}")
        return value

    return BeforeValidator(check)


Value = TypeVar("Value")
Several = Annotated[tuple[Value, ...], AfterValidator(_each_once), Field(json_schema_extra={"uniqueItems": True})]
"""A list whose values are of one sort, each once: the same work is never planned twice."""
