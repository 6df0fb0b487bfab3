"""Prompts are cut only in their passage, at the same place whatever the completion, and lost answers are counted."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.models.loading import load_tokenizer, resolve_model
from tunescope.models.tokenization import completion_ids, completion_room, encode
from tunescope.study.schema import ModelSpec


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_model(ModelSpec(name="sprout-2m")))


def question(passage: str, golds: tuple[str, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(id="train/1", before="Passage: ", passage=passage, after="\nQ: Who jumps?\nA:", golds=golds)


LONG = "The quick brown fox jumps over the lazy dog. " * 20


def test_ids_are_begin_prompt_completion_end(tokenizer):
    example = question("A fox jumps.")
    encoded = encode(tokenizer, example, 128, completion=" A fox", end=True)
    prompt = tokenizer("Passage: A fox jumps.\nQ: Who jumps?\nA:", add_special_tokens=False)["input_ids"]
    assert encoded.input_ids[: encoded.prompt_length] == [tokenizer.bos_token_id, *prompt]
    assert encoded.input_ids[encoded.prompt_length :] == [*completion_ids(tokenizer, " A fox"), tokenizer.eos_token_id]
    assert not encoded.truncated and not encoded.answer_lost


@pytest.mark.parametrize("limit", [40, 64, 100, 137])
def test_truncation_keeps_question_and_limit(tokenizer, limit):
    encoded = encode(tokenizer, question(LONG), limit, completion=" fox", end=True)
    assert encoded.truncated
    assert len(encoded.input_ids) <= limit
    assert encoded.prompt_length > limit - completion_room(limit) - 6  # no more is cut than must be
    text = tokenizer.decode(encoded.input_ids[1 : encoded.prompt_length])
    assert text.startswith("Passage: The quick") and text.endswith("\nQ: Who jumps?\nA:")


def test_the_cut_does_not_depend_on_the_completion(tokenizer):
    lengths = {
        encode(tokenizer, question(LONG), 96, completion=c, end=e).prompt_length
        for c, e in ((None, False), (" no", False), (" unknown", True), (" the lazy dog", True))
    }
    assert len(lengths) == 1


def test_lost_answers_are_marked(tokenizer):
    passage = LONG + "The winner was Zanzibar."
    assert encode(tokenizer, question(passage, ("Zanzibar",)), 64, completion=" Zanzibar", end=True).answer_lost
    assert not encode(tokenizer, question(passage, ("Zanzibar", "fox")), 64, completion=" fox", end=True).answer_lost
    assert not encode(tokenizer, question(passage, ()), 64, completion=" unknown", end=True).answer_lost
    assert not encode(tokenizer, question(passage, ("Zanzibar",)), 512, completion=" Zanzibar", end=True).answer_lost


def test_limit_below_the_prompt_is_an_error(tokenizer):
    with pytest.raises(StudyError, match=r"max_length 12: .* at least \d+"):
        encode(tokenizer, question(LONG), 12, completion=" fox", end=True)


def test_special_tokens_written_in_text_stay_text(tokenizer):
    encoded = encode(tokenizer, question("A </s> and a <pad> here."), 128, completion=None, end=False)
    assert tokenizer.eos_token_id not in encoded.input_ids and tokenizer.pad_token_id not in encoded.input_ids


@settings(max_examples=60, deadline=None)
@given(passage=st.text(max_size=400), limit=st.integers(48, 160))
def test_any_text_fits_or_says_so(tokenizer, passage, limit):
    encoded = encode(tokenizer, question(passage), limit, completion=" fox", end=True)
    assert len(encoded.input_ids) <= limit
    assert tokenizer.pad_token_id not in encoded.input_ids


def test_padding_is_never_the_end_token(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    config = (tmp_path / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(config.replace('"<pad>"', '"</s>"'))
    again = load_tokenizer(tmp_path)
    assert again.pad_token_id not in (again.eos_token_id, again.bos_token_id)


def test_no_safe_padding_token_is_an_error(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")), eos_token="</s>")
    bare.save_pretrained(tmp_path)
    with pytest.raises(PrerequisiteError, match="no padding token distinct from the end token"):
        load_tokenizer(tmp_path)
