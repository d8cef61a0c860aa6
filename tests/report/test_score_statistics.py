"""The figures of a folder of scores, against slow loops; what is called selected is what train-policy trains on."""

import math

import numpy as np
import pytest

from stages.method.selection import RuleInputs
from stages.method.statistics import preference_accuracy
from stages.registry import RULES
from stages.report.score_statistics import STEPS, read_statistics
from stages.report.token_classes import CLASSES, class_of, classes_of
from stages.report.token_selection import TokenSelector
from stages.report.vocabulary import Vocabulary
from stages.reporting import Quiet
from stages.store.scores import open_scores
from tests import reference
from tests.conftest import random_pairs
from tests.scored import score_folder, scored_pair
from tests.tokenizers_zoo import byte_level, with_added_tokens

MODEL_FREE = [name for name, rule in RULES.items() if "start_logps" not in rule.needs and name != "column"]


@pytest.fixture(scope="module")
def rows():
    pairs = random_pairs(60, 30, longest=30)
    rows = [scored_pair(pair.pair_id, *pair[1:]) for pair in pairs]
    # Ties, within a response and across the data set.
    return [row._replace(scores=type(row.scores)(*(np.round(side, 1) for side in row.scores))) for row in rows]


@pytest.fixture(scope="module")
def scores(rows, tmp_path_factory):
    return open_scores(score_folder(tmp_path_factory.mktemp("scored") / "s", rows, noise=0.2, shards=4))


@pytest.mark.parametrize("rule", MODEL_FREE)
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_the_selected_tokens_are_those_that_train_policy_takes(rule, ratio, rows, scores):
    options = {"chosen_ratio": ratio, "rejected_ratio": 0.4}
    taken = {name: value for name, value in options.items() if name in RULES[rule].options}
    wanted, notes = RULES[rule].load()(RuleInputs(rows, (), 0.2, 7), **taken).drawn()
    selector = TokenSelector(scores, rule, options, 7)
    masks = [selector.masks(columns) for columns in scores.columns()]
    for side in (0, 1):
        ours = np.concatenate([mask[side] for mask in masks])
        assert ours.tolist() == [weight > 0 for weights in wanted for weight in weights[side]]
    assert dict(selector.notes) == notes


def test_the_figures_are_those_of_slow_loops(rows, scores):
    selector = TokenSelector(scores, "oracle", {"chosen_ratio": 0.3, "rejected_ratio": 0.3}, 0)
    found = read_statistics(scores, selector, Quiet())
    weights = RULES["oracle"].load()(RuleInputs(rows)).drawn()[0]
    nets = []
    for side, sign in enumerate((+1, -1)):
        ours = (found.chosen, found.rejected)[side]
        responses = [
            (row.pair[2 + side].tolist(), row.scores[side].tolist(), (weight[side] > 0).tolist())
            for row, weight in zip(rows, weights, strict=True)
        ]
        wanted, net, tenths, types = reference.side_statistics(responses, sign, STEPS)
        nets.append(net)
        assert ours.cumulative == pytest.approx([sum(wanted[: step + 1]) / sum(wanted) for step in range(STEPS)])
        for part, (tokens, selected, total) in zip(ours.by_position, tenths, strict=True):
            assert (part.tokens, part.selected, part.mean_score) == (tokens, selected, pytest.approx(total / tokens))
        z = {id_: (sums[1] - sums[3]) / math.sqrt(sums[4]) for id_, sums in types.items()}
        best = sorted((id_ for id_ in z if z[id_] >= 2), key=lambda id_: (-z[id_], id_))
        assert [each.id for each in ours.types] == best
        for each in ours.types:
            tokens, selected, total, expected, _ = types[each.id]
            assert (each.tokens, each.selected) == (tokens, selected)
            assert (each.expected, each.z, each.mean_score) == pytest.approx((expected, z[each.id], total / tokens))
        assert ours.tokens == sum(len(ids) for ids, _, _ in responses) == sum(part.tokens for part in ours.by_length)
        assert (
            ours.selected == sum(sum(mask) for _, _, mask in responses) == sum(part.selected for part in ours.by_length)
        )
        assert ours.last_selected.value == sum(mask[-1] for _, _, mask in responses) / len(rows)
        for part in ours.by_length:
            low, _, high = part.name.replace(",", "").partition("-")
            assert part.tokens == sum(len(ids) for ids, _, _ in responses if int(low) <= len(ids) <= int(high or low))
    gaps = [sum(both) for both in zip(*nets, strict=True)]
    share = [sum(gaps[: step + 1]) / sum(gaps) for step in range(STEPS)] if sum(gaps) > 0 else None
    assert found.cumulative == (share and pytest.approx(share))
    every = np.concatenate([side for row in rows for side in row.scores]).astype(float)
    assert found.scores.median == pytest.approx(np.median(every), abs=1e-3)
    assert found.scores.spread == pytest.approx(every.std(), rel=1e-6)
    assert found.histogram.chosen.sum() + found.histogram.rejected.sum() == found.scores.tokens == len(every)
    assert found.within_noise == pytest.approx((np.abs(every - np.median(every)) < 0.2 - 1e-3).mean(), abs=1e-9)


def test_figures_of_pairs(rows, scores):
    found = read_statistics(scores, TokenSelector(scores, "all", {}, 0), Quiet())
    margins = [float(row.scores.chosen.sum(dtype=float) - row.scores.rejected.sum(dtype=float)) for row in rows]
    longer = [len(row.pair.chosen_ids) - len(row.pair.rejected_ids) for row in rows]
    assert found.margin.accuracy == preference_accuracy(margins)
    assert found.margin.mean.value == pytest.approx(np.mean(margins))
    assert found.margin.length_correlation == pytest.approx(np.corrcoef(margins, longer)[0, 1])
    assert found.margin.longer_accuracy.value == np.mean([(np.sign(each) + 1) / 2 for each in longer])
    np.testing.assert_allclose(found.margin.sample, np.stack([longer, margins, range(60)], 1), atol=1e-6)
    best = [int(row.pair.chosen_ids[row.scores.chosen.argmax()]) for row in rows]
    worst = [int(row.pair.rejected_ids[row.scores.rejected.argmin()]) for row in rows]
    same = [one for one, other in zip(best, worst, strict=True) if one == other]
    assert found.drifting.same.value == len(same) / 60
    assert found.drifting.expected == pytest.approx(np.mean([[one == other for other in worst] for one in best]))
    assert dict(found.drifting.types) == {id_: same.count(id_) for id_ in same}
    assert (found.pairs, found.prompt_tokens) == (60, sum(len(row.pair.prompt_ids) for row in rows))
    assert not found.chosen.types
    assert (found.chosen.selected, found.notes) == (found.chosen.tokens, {})


def test_one_token_one_score_no_margin(tmp_path):
    """Every response is one token, all scores are alike: nothing to divide by anywhere."""
    row = scored_pair(0, [1], [2], [2], reference=False)
    rows = [row._replace(scores=type(row.scores)(*(np.full(1, 0.25, np.float32) for _ in "ab")))] * 3
    scores = open_scores(score_folder(tmp_path / "s", rows))
    found = read_statistics(scores, TokenSelector(scores, "oracle", {}, 0), Quiet())
    assert found.cumulative is None
    assert (found.noise, found.within_noise, found.margin.length_correlation) == (None, None, None)
    assert found.rejected.cumulative == [0.0] * STEPS
    assert found.drifting.same.value == found.drifting.expected == 1.0
    assert (found.scores.median, found.scores.spread, found.scores.far) == pytest.approx((0.25, 0.0, 0.0))


def test_classes_are_told_by_text():
    texts = {" The": "stop word", "\n\n": "blank", " 42": "digits", "٣": "digits", "...": "punctuation", "€": "punctuation",
             "Paris": "other", "\ufffd": "other", "": "other", "for from": "other", " 日": "other"}  # fmt: skip
    assert {text: class_of(text) for text in texts} == texts
    tokenizer = with_added_tokens()
    classes = classes_of(Vocabulary(tokenizer))
    assert len(classes) == tokenizer.get_vocab_size()
    assert (
        CLASSES[classes[tokenizer.token_to_id("</s>")]]
        == CLASSES[classes[tokenizer.token_to_id("<think>")]]
        == "control"
    )
    assert CLASSES[classes[byte_level().token_to_id("?")]] == "punctuation"


def test_tokens_are_counted_by_their_class(rows, scores):
    classes = np.arange(30, dtype=np.int8) % len(CLASSES)
    found = read_statistics(scores, TokenSelector(scores, "oracle", {}, 0), Quiet(), classes).rejected
    for number, part in enumerate(found.by_class):
        inside = [row.scores.rejected[row.pair.rejected_ids % len(CLASSES) == number] for row in rows]
        assert part.name == CLASSES[number]
        assert (part.tokens, part.mean_score) == (
            sum(map(len, inside)),
            pytest.approx(np.concatenate(inside).mean(), abs=1e-6),
        )
    assert sum(part.selected for part in found.by_class) == found.selected
