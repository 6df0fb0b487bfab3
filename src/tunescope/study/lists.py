"""Lists in a study file: each value once, and what stands in a list's place is told so."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails

from tunescope.errors import did_you_mean


def _each_once(given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """The values, each once; a repeated one is told beside what is wrong with others, which would hide it."""
    try:
        values = validate(given)
    except ValidationError as error:
        told = _repeated(given) if isinstance(given, list | tuple) else ""
        if not told:
            raise
        wrong = [InitErrorDetails(type=e["type"], loc=e["loc"], input=e["input"], ctx=e.get("ctx", {})) for e in error.errors()]
        repeated = InitErrorDetails(type="value_error", loc=(), input=given, ctx={"error": ValueError(told)})
        raise ValidationError.from_exception_data(error.title, [*wrong, repeated]) from error
    if told := _repeated(values):
        raise ValueError(told)
    return values


def _repeated(values: Sequence[Any]) -> str:
    """What is wrong with values that are not all different; "" when they are. Wrong ones need not be hashable."""
    twice = [str(value) for k, value in enumerate(values) if values.index(value) == k and values.count(value) > 1]
    return f"{', '.join(twice)} {'is' if len(twice) == 1 else 'are'} named more than once" if twice else ""


def or_a_list(word: str) -> BeforeValidator:
    """Of a list in whose place one word may stand: a lone value is told to be neither, in one message for both."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value != word:
            raise ValueError(f"should be a list, e.g. [{value}], or {word}{did_you_mean(value, [word])}")
        return value

    return BeforeValidator(check)


Value = TypeVar("Value")
Several = Annotated[tuple[Value, ...], WrapValidator(_each_once), Field(json_schema_extra={"uniqueItems": True})]
"""A list whose values are of one sort, each once: the same work is never planned twice."""
