"""IFEval's official verifier, on answers that were judged by hand, and what it needs."""

import json
import random
import sys
from importlib.util import find_spec

import pytest

from stages import pair, results
from stages.benchmarks.ifeval_verifier import LIBRARIES, open_verifier
from stages.configs import PairConfig, ResultsConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from tests.benchmarks import folders
from tests.test_pair import answer, answer_folder

if not all(map(find_spec, LIBRARIES)):
    pytest.skip("IFEval's verifier is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Data that cuts sentences at their ends and knows no abbreviation: enough for these tests, and nothing to fetch."""
    folder = tmp_path_factory.mktemp("nltk")
    english = folder / "tokenizers/punkt_tab/english"
    english.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (english / name).write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.data.path", [str(folder)])
        yield


@pytest.fixture(scope="module")
def verify(sentences):
    return open_verifier()


def row(**instructions):
    """A row with these instructions, `__` for the colon of their names, and their kwargs."""
    names = [name.replace("__", ":") for name in instructions]
    return {"prompt": "Say something.", "instruction_id_list": names, "kwargs": [*instructions.values()]}


AT_LEAST = "at least"
LETTERS = {"letter": "a", "let_frequency": 3, "let_relation": AT_LEAST}
CASES = {
    # strict and loose, of the good answer and of the bad one
    "punctuation__no_comma": ({}, "No pause here.", "Well, there is."),
    "length_constraints__number_words": ({"relation": AT_LEAST, "num_words": 4}, "one two three four", "one two three"),
    "length_constraints__number_sentences": ({"relation": "less than", "num_sentences": 3}, "One. Two.", "Go on. Look up. Sit down."),
    "length_constraints__number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    "keywords__existence": ({"keywords": ["Paris"]}, "I like paris.", "I like Rome."),
    "keywords__forbidden_words": ({"forbidden_words": ["bad"]}, "A badge.", "Too bad."),
    "keywords__frequency": ({"keyword": "fox", "frequency": 2, "relation": AT_LEAST}, "Fox and fox.", "One fox."),
    "keywords__letter_frequency": (LETTERS, "Banana", "Ban"),
    "detectable_content__number_placeholders": ({"num_placeholders": 1}, "Dear [name]", "Dear name"),
    "detectable_content__postscript": ({"postscript_marker": "P.S."}, "Bye.\n\nP.S. Write!", "Bye."),
    "detectable_format__json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format__title": ({}, "<<On foxes>>\nThey run.", "On foxes\nThey run."),
    "detectable_format__number_highlighted_sections": ({"num_highlights": 2}, "*one* and *two*", "*one*"),
    "startend__quotation": ({}, '"All of it."', '"Half" of it.'),
    "startend__end_checker": ({"end_phrase": "The end."}, "So it goes. the end.", "The end. Or not?"),
    "change_case__english_lowercase": ({}, "the fox runs over the hill.", "The fox runs over the hill."),
    "change_case__capital_word_frequency": ({"capital_frequency": 2, "capital_relation": AT_LEAST}, "GO ON now", "GO on now"),
    "language__response_language": ({"language": "de"}, "Das ist ein Haus und kein Hund.", "This is a house, not a dog."),
    "combination__repeat_prompt": ({"prompt_to_repeat": "Say it."}, "Say it. I said it.", "I said it."),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_instruction_is_followed_or_it_is_not(verify, name):
    kwargs, good, bad = CASES[name]
    assert verify(row(**{name: kwargs}), good) == ([True], [True])
    assert verify(row(**{name: kwargs}), bad) == ([False], [False])


def test_loose_forgives_a_first_line_a_last_one_and_asterisks(verify):
    asked = row(startend__end_checker={"end_phrase": "The end."}, punctuation__no_comma={})
    assert verify(asked, "Sure, here it is:\nA fox.\nThe end.") == ([True, False], [True, True])
    assert verify(asked, "A fox.\n**The end.**\nAnything else?") == ([False, True], [True, True])
    # What hf's own file says of options that an instruction has not.
    asked["kwargs"][1] = {"num_words": None}
    assert verify(asked, "") == ([False, False], [False, False])


def test_the_same_again_gives_the_same(verify):
    """Of a character that is no letter the verifier draws another; of a short text, the language."""
    asked = row(keywords__letter_frequency=LETTERS | {"letter": "!"}, language__response_language={"language": "en"})
    random.seed(1)
    state = random.getstate()
    texts = ["anna! bob sees us", "no, es ok", "zzz kkk mmm yyy"]
    first = [verify(asked, text) for text in texts]
    assert random.getstate() == state
    for _ in range(8):
        random.random()
        assert [verify(asked, text) for text in texts] == first


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kwargs": None}, "has no kwargs"),
        ({"kwargs": [{}, {}]}, "has 1 instructions and other kwargs"),
        ({"instruction_id_list": ["punctuation:semicolon"]}, "knows no instruction 'punctuation:semicolon'"),
        ({"instruction_id_list": [], "kwargs": []}, "no row without instructions"),
        ({"kwargs": [{"commas": 1}]}, "fails on 'Say something.'"),
    ],
)
def test_a_row_of_another_benchmark_is_refused(verify, changed, said):
    with pytest.raises(SepoError, match=said) as caught:
        verify(row(punctuation__no_comma={}) | changed, "text")
    assert "input_data.jsonl" in caught.value.hint


def test_what_is_missing_is_named_with_what_brings_it(monkeypatch, sentences):
    with monkeypatch.context() as patch:
        patch.setattr("nltk.data.path", [])
        with pytest.raises(SepoError, match="needs nltk's punkt_tab") as caught:
            open_verifier()
    assert "nltk.downloader punkt_tab" in caught.value.hint
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(SepoError, match="needs langdetect, which is not installed") as caught:
        open_verifier()
    assert caught.value.hint == "pip install 'sepo[ifeval]'"


def test_of_lm_eval_only_the_verifier_is_imported(verify):
    assert "lm_eval.tasks" not in sys.modules
    assert not [name for name in sys.modules if name.startswith("lm_eval.api")]


def test_pairs_by_the_share_of_instructions_that_an_answer_follows(verify, tmp_path):
    """The first answer to the second question has its comma in a line that the loose reading may leave out."""
    asked = row(punctuation__no_comma={}, length_constraints__number_words={"relation": AT_LEAST, "num_words": 4})
    texts = ["one, two", "one two three four", "one, two three four", "Well, here:\none two three four"]
    answers = [answer(n // 3, n % 3, text)._replace(row=asked) for n, text in enumerate([*texts, texts[2]])]
    folder = answer_folder(tmp_path / "answers", answers)

    def rewards(name):
        config = PairConfig(answers=str(folder), output=str(tmp_path / f"{name}.jsonl"), verifier=name)
        pair.run(config, Quiet())
        lines = map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        return [[each["reward"] for each in line["rewards"]] for line in lines]

    assert rewards("ifeval") == [[0.0, 1.0, 0.5]]
    assert rewards("ifeval-loose") == [[0.0, 1.0, 0.5], [1.0, 0.5]]


def test_sepo_results_verifies_a_folders_own_answers(verify, tmp_path):
    """Two prompts with two samples each; what has no answer follows nothing."""
    rows = [
        row(punctuation__no_comma={}, startend__end_checker={"end_phrase": "The end."}),
        row(detectable_format__title={}),
    ]
    rows[1]["prompt"] = "Say more."
    said = [
        folders.answer(0, "A fox.\nThe end.", rows[0]), folders.answer(0, "A fox, again.\nSo, *the end.*", rows[0], sample=1),
        folders.answer(1, "<<A title>>", rows[1]), folders.answer(1, "", rows[1], sample=1, problem="the prompt is too long"),
    ]  # fmt: skip
    folders.write_folder(tmp_path / "g", "ifeval", {"sepo": said, "dpo": said[:2] + said[:1:-1]})
    report = results.run(ResultsConfig(paths=(str(tmp_path),), json=True), Quiet()).json
    ifeval = next(each for each in report["benchmarks"] if each["benchmark"] == "ifeval")
    model = ifeval["models"]["sepo"]
    assert (ifeval["judge"], model["prompts"]) == ("its verifier", 2)
    expected = {"prompt_strict": 2 / 4, "instruction_strict": 3 / 6, "prompt_loose": 2 / 4, "instruction_loose": 4 / 6}
    assert {name: each["value"] for name, each in model["figures"].items()} == pytest.approx(
        {f"accuracy_{name}": 100 * value for name, value in expected.items()}
    )
    assert report["warnings"] == ["answers, g, sepo: 1 without an answer", "answers, g, dpo: 1 without an answer"]
    assert ifeval["comparisons"][0]["sentences"] == ["dpo and sepo are level: prompts, strict, %, on 2 common prompts"]


def test_models_of_one_name_in_several_folders_are_all_shown(verify, tmp_path):
    asked = row(punctuation__no_comma={})
    for name, text in (("first", "one, two"), ("second", "one two")):
        folders.write_folder(tmp_path / name, "ifeval", {"policy": [folders.answer(0, text, asked)]})
    report = results.run(ResultsConfig(paths=(str(tmp_path),), json=True), Quiet()).json
    models = next(each["models"] for each in report["benchmarks"] if each["benchmark"] == "ifeval")
    strict = {name: model["figures"]["accuracy_prompt_strict"]["value"] for name, model in models.items()}
    assert strict == {"first/policy": 0, "second/policy": 100}


def test_without_the_verifier_answers_to_ifeval_are_refused_at_once(monkeypatch, tmp_path):
    folders.write_folder(tmp_path / "g", "ifeval", {"sepo": [folders.answer(0, "x", row(punctuation__no_comma={}))]})
    monkeypatch.setitem(sys.modules, "immutabledict", None)
    with pytest.raises(SepoError, match="needs immutabledict"):
        results.run(ResultsConfig(paths=(str(tmp_path),)), Quiet())
