"""Duplicate counts on cases small enough to count by eye."""

from tunescope.data.leakage import input_key, leakage, normalised


def pair(a, b, label=1):
    return {"sentence1": a, "sentence2": b, "label": label}


def test_normalised():
    assert normalised("  The CAT, sat\u00a0on_it! ") == "the cat sat on it"
    assert normalised("ﬁne") == "fine"  # a ligature is two letters
    assert normalised("STRASSE") == normalised("straße")
    assert normalised(" !! ") == "!!"  # nothing else left: kept, so that different marks stay different


def test_mrpc_pairs_count_in_either_order_and_rte_pairs_do_not():
    assert input_key("mrpc", pair("a", "b")) == input_key("mrpc", pair("B.", "a"))
    assert input_key("rte", pair("a", "b")) != input_key("rte", pair("b", "a"))


def test_counts():
    train = [pair("A cat.", "A dog."), pair("a cat", "a dog", 0), pair("One.", "Two."), pair("Three.", "Four.")]
    test = [pair("A cat.", "A dog."), pair("ONE", "two", 0), pair("three", "five"), pair("Two.", "One."), pair("six", "seven", -1)]
    found = leakage("rte", {"train": train, "test": test})
    assert found == {
        "train-test": {
            "exact": 1, "normalised": 2, "normalised_first": 3, "contradicting": 1, "shared_sentence1": 3, "shared_sentence2": 2,
        }
    }  # fmt: skip


def test_all_pairs_of_parts_and_squad_columns():
    def question(context, text, answers=()):
        return {"context": context, "question": text, "answers": {"text": list(answers), "answer_start": [0] * len(answers)}}

    parts = {
        "train": [question("Tom.", "Who?", ["Tom"]), question("Tim.", "Why?")],
        "selection": [question("Tom.", "How?")],
        "test": [question("tom", "who", []), question("Ann.", "Who?")],
    }
    found = leakage("squad_v2", parts)
    assert list(found) == ["train-selection", "train-test", "selection-test"]
    assert found["train-selection"]["shared_context"] == 1 and found["train-selection"]["normalised"] == 0
    assert found["train-test"] == {
        "exact": 0, "normalised": 1, "normalised_first": 1, "contradicting": 1, "shared_context": 1, "shared_question": 2,
    }  # fmt: skip


def test_disjoint_parts_have_no_leakage():
    found = leakage("sst2", {"train": [{"sentence": "a", "label": 1}], "test": [{"sentence": "b", "label": 1}]})
    assert set(found["train-test"].values()) == {0}
