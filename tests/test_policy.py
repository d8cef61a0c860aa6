"""What `sepo train-policy` does beyond its defaults: other objectives, references, selections and anchors."""

import gc
import json
from contextlib import suppress
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from stages import train_policy
from stages.errors import SepoError
from stages.models.folders import load_model, save_model
from stages.registry import OBJECTIVES, RULES
from stages.reporting import Quiet
from stages.store.scores import open_scores
from stages.training.metrics import read_metrics
from stages.types import Example, PairLogps, PairWeights, ScoredPair
from tests import reference
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama
from tests.reference import Side
from tests.training.fits import Killed
from tests.world import manifest, run_policy, run_score

ONE_OF_EACH_NEED = ("sepo", "cpo", "dpo", "tdpo", "regress")
"""by what is computed for them; what each makes of it is tested where its function is"""


def losses(folder):
    return [record["loss"] for record in read_metrics(folder)]


def first_loss(world, model, tmp_path, **options):
    run_policy(world, model, output=tmp_path / "p", batch_size=40, max_steps=1, **options)
    return losses(tmp_path / "p")[0]


@cache
def plain_logps(world, folder):
    """Log-probs of every response of every pair, by plain Python."""
    model = load_model(folder, trust_remote_code=False)
    rows = open_scores(world / "scores").rows()
    return [[reference.response_logps(model, row.pair.prompt_ids, ids) for ids in row.pair[2:]] for row in rows]


@cache
def plain_kl(world, ours, theirs):
    """KL(ours || theirs) at every token of every response, from whole logits."""
    models = [load_model(folder, trust_remote_code=False) for folder in (ours, theirs)]
    found = []
    for row in open_scores(world / "scores").rows():
        start = len(row.pair.prompt_ids)
        for ids in row.pair[2:]:
            whole = torch.tensor([[*row.pair.prompt_ids.tolist(), *ids.tolist()]])
            with torch.no_grad():
                one, other = (model(input_ids=whole).logits[0].log_softmax(-1) for model in models)
            found.append((one.exp() * (one - other)).sum(-1)[start - 1 : whole.shape[1] - 1].tolist())
    return list(zip(found[::2], found[1::2], strict=True))


def sides(world, policy, anchor, select="all", kl=None):
    """Every pair as two `Side`s: log-probs, reference log-probs and KL by plain ways, weights by the rule."""
    found = []
    rows = open_scores(world / "scores").rows()
    for place, row in enumerate(rows):
        pair = []
        for n, (ids, scores) in enumerate(zip(row.pair[2:], row.scores, strict=True)):
            logps = [plain_logps(world, folder)[place][n] for folder in (policy, anchor)]
            places = reference.select(scores.tolist(), 0.3, highest=n == 0) if select == "oracle" else range(len(ids))
            weights = [float(each in places) for each in range(len(ids))]
            pair.append(Side(*logps, weights, kl and kl[place][n], scores.tolist()))
        found.append(pair)
    return found


@pytest.fixture(scope="module")
def other(tmp_path_factory, chatml):
    """Another model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    save_model(tiny_llama(len(chatml), seed=9), chatml, folder)
    return folder


@pytest.mark.parametrize("name", ONE_OF_EACH_NEED)
def test_the_first_loss_of_an_objective_is_that_of_its_slow_self(world, chat_folder, other, tmp_path, name):
    entry = OBJECTIVES[name]
    needs_kl = "kl" in entry.needs
    given = {"reference_model": str(other)} if entry.needs else {}
    select = entry.select
    pairs = sides(world, chat_folder, other, select, plain_kl(world, other, chat_folder) if needs_kl else None)
    expected = np.mean([getattr(reference, name.replace("-", "_"))(*pair, **entry_options(entry)) for pair in pairs])
    assert first_loss(world, chat_folder, tmp_path, objective=name, **given) == pytest.approx(
        expected, rel=1e-4, abs=1e-4
    )


def entry_options(entry):
    return {name: value for name, value in entry.options.items() if name != "anchor_margin"}


def test_sft_averages_over_the_chosen_tokens_of_a_step(world, chat_folder, tmp_path):
    pairs = sides(world, chat_folder, chat_folder)
    expected = -sum(chosen.sum for chosen, _ in pairs) / sum(len(chosen.logps) for chosen, _ in pairs)
    assert first_loss(world, chat_folder, tmp_path, objective="sft") == pytest.approx(expected, rel=1e-4)


def test_anchors_by_their_slow_selves(world, chat_folder, other, tmp_path):
    pairs = sides(world, chat_folder, other, "oracle", plain_kl(world, chat_folder, other))
    options = {"gamma": 1.5, "margin": 0.4, "sft_weight": 0.3, "kl_weight": 0.7, "anchor_margin": True}
    expected = np.mean([reference.sepo(*pair, **options) for pair in pairs])
    found = first_loss(world, chat_folder, tmp_path, reference_model=str(other), **options)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_held_tokens_by_their_slow_selves(world, chat_folder, other, tmp_path):
    options = {"kl_selected": 0.3, "kl_unselected": 0.7}
    expected = []
    for pair in sides(world, chat_folder, other, "oracle"):
        loss = reference.sepo(*pair, gamma=2.1, margin=0.5)
        for side in pair:
            for ours, theirs, weight in zip(side.logps, side.reference, side.weights, strict=True):
                loss += (0.3 if weight else 0.7) * (ours - theirs) ** 2 / 2
        expected.append(loss)
    found = first_loss(world, chat_folder, tmp_path, reference_model=str(other), **options)
    assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_without_another_one_the_start_is_the_reference(world, chat_folder, tmp_path):
    """DPO begins at ln 2, an anchored margin at -log sigmoid(-margin), the KL at 0."""
    assert first_loss(world, chat_folder, tmp_path, objective="dpo") == pytest.approx(np.log(2), abs=1e-5)
    options = {"anchor_margin": True, "margin": 0.5, "kl_weight": 9.0, "overwrite": True}
    assert first_loss(world, chat_folder, tmp_path, **options) == pytest.approx(np.log1p(np.exp(0.5)), abs=1e-4)


class Selected(Exception):
    """Training would begin."""


@pytest.fixture
def selected(world, chat_folder, tmp_path, monkeypatch):
    """The weights of all tokens that the training with some options would begin with."""

    def run(output, **options):
        taken = []

        def fit(model, examples, *arguments, **more):
            taken.extend(side for example in examples for side in example.weights)
            raise Selected

        monkeypatch.setattr(train_policy, "fit", fit)
        with suppress(Selected):
            run_policy(world, chat_folder, output=tmp_path / output, **options)
        return np.concatenate(taken).tolist()

    return run


@pytest.mark.parametrize("objective", ["sepo", "regress"])
def test_pairs_wait_in_files_while_training_lasts(objective, world, chat_folder, tmp_path, monkeypatch):
    def alive():
        gc.collect()
        return sum(type(each) in (Example, ScoredPair, PairWeights, PairLogps) for each in gc.get_objects())

    before, found = alive(), []

    def fit(model, examples, *arguments, **more):
        found.extend([len(examples), alive() - before, sorted(path.name for path in prepared.iterdir())])
        raise Selected

    prepared = tmp_path / "p/.prepared.tmp"
    monkeypatch.setattr(train_policy, "fit", fit)
    with suppress(Selected):
        run_policy(world, chat_folder, output=tmp_path / "p", objective=objective)
    assert found[0] > 30
    assert found[1] == 0
    assert found[2] == ["examples.arrow", "scores.arrow"]
    assert not prepared.exists()


@pytest.mark.parametrize(
    "option",
    [*({"select": name} for name in RULES if name not in ("oracle", "column")), {"authors_rule": True}],
    ids=lambda option: "-".join(map(str, *option.items())),
)
def test_every_rule_changes_what_is_trained_on(selected, option):
    assert selected("a", **option) != selected("b")


@pytest.mark.parametrize(
    ("base", "option"),
    [
        ({"objective": "r-dpo", "select": "threshold"}, {"threshold": -0.05}), ({"select": "auto"}, {"auto_share": 0.2}),
        ({"select": "soft", "objective": "dpo"}, {"soft_k": 5.0}), ({"select": "confidence"}, {"rejected_ratio": 0.9}),
    ],
)  # fmt: skip
def test_an_option_of_a_rule_changes_what_is_trained_on(selected, base, option):
    """They reach their function by one way; what each does is tested where that function is."""
    assert selected("a", **base) != selected("b", **base, **option)


def test_the_resolved_options_are_in_the_manifest_and_the_card(world, chat_folder, tmp_path):
    run_policy(world, chat_folder, output=tmp_path / "p", max_steps=1, objective="tdpo", alpha=0.2)
    settings = manifest(tmp_path / "p")["settings"]
    assert {name: settings[name] for name in ("objective", "select", "beta", "alpha", "gamma", "chosen_ratio")} == {
        "objective": "tdpo", "select": "all", "beta": 0.1, "alpha": 0.2, "gamma": None, "chosen_ratio": None,
    }  # fmt: skip
    card = (tmp_path / "p/README.md").read_text()
    assert "| beta | 0.1 |" in card
    assert "gamma" not in card
    # Spelt out, the defaults are the same run.
    assert not run_policy(
        world, chat_folder, output=tmp_path / "p", max_steps=1, objective="tdpo", alpha=0.2, beta=0.1
    ).fresh


class Counting(Quiet):
    """The titles of the tasks of a run."""

    def __init__(self):
        super().__init__()
        self.titles = []

    def task(self, title, total, unit):
        self.titles.append(title)
        return super().task(title, total, unit)


def computed(reporter):
    return [title for title in reporter.titles if title.startswith("log-probs under")]


def test_reference_logps_are_taken_from_the_scores_whose_reference_it_is(world, chat_folder, tmp_path):
    """The shards' numbers are used where the model is the same to the bit, and the loss is the same as computed anew."""
    name = str(world / "oracle/reference")
    reporter = Counting()
    run_policy(world, chat_folder, reporter, output=tmp_path / "a", objective="dpo", reference_model=name, max_steps=2)
    assert computed(reporter) == []
    assert not (tmp_path / "a/reference-logps.parquet").exists()
    run_score(world, output=tmp_path / "apart", precision="medium")
    again = Counting()
    run_policy(
        world, chat_folder, again, output=tmp_path / "b", scores=tmp_path / "apart", objective="dpo", reference_model=name,
        max_steps=2,
    )  # fmt: skip
    assert len(computed(again)) == 1
    assert (tmp_path / "b/reference-logps.parquet").exists()
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(tmp_path / "b"), atol=1e-5)


class KilledInTraining(Counting):
    def advance(self, amount=1, figures=None):
        if self.titles[-1] == "dpo" and figures:
            raise Killed


def test_a_resumed_run_computes_no_logps_again(world, chat_folder, other, tmp_path):
    """Neither those of the reference nor those of its start, by which tokens are selected."""
    options = {"objective": "dpo", "select": "confidence", "reference_model": str(other), "save_steps": 1}
    with pytest.raises(Killed):
        run_policy(world, chat_folder, first := KilledInTraining(), output=tmp_path / "p", **options)
    run_policy(world, chat_folder, second := Counting(), output=tmp_path / "p", **options)
    assert (len(computed(first)), len(computed(second))) == (2, 0)
    run_policy(world, chat_folder, output=tmp_path / "untouched", **options)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "untouched" / name).read_bytes()


def test_logps_of_another_model_are_not_taken(world, chat_folder, other, tmp_path):
    options = {"objective": "dpo", "max_steps": 1, "reference_model": str(tmp_path / "moving")}
    save_model(load_model(chat_folder, trust_remote_code=False), tokenizer(other), tmp_path / "moving")
    run_policy(world, chat_folder, output=tmp_path / "p", **options)
    save_model(load_model(other, trust_remote_code=False), tokenizer(other), tmp_path / "moving")
    with pytest.raises(SepoError, match=r"the reference differs$"):
        run_policy(world, chat_folder, output=tmp_path / "p", **options)


def tokenizer(folder):
    from stages.models.folders import load_tokenizer

    return load_tokenizer(folder, trust_remote_code=False)


def test_a_reference_with_another_vocabulary_is_refused(world, chat_folder, chatml, tmp_path):
    foreign = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|pad|>")
    save_model(tiny_llama(len(foreign)), foreign, tmp_path / "foreign")
    save_model(tiny_llama(300), chatml, tmp_path / "small")
    save_model(tiny_llama(len(chatml) + 64), chatml, tmp_path / "padded")
    for name, objective, said in [
        ("foreign", "dpo", r"the token->id map of .*foreign is not the one"),
        ("small", "dpo", r"the pairs hold token id \d+, but .*small has embeddings for 300"),
        ("padded", "tdpo", r"no KL between heads of \d+ rows \(the policy's\) and \d+ \(.*padded's\)"),
    ]:
        with pytest.raises(SepoError, match=said):
            run_policy(
                world,
                chat_folder,
                output=tmp_path / name[:1],
                objective=objective,
                reference_model=str(tmp_path / name),
            )
    assert run_policy(
        world,
        chat_folder,
        output=tmp_path / "o",
        objective="dpo",
        max_steps=1,
        reference_model=str(tmp_path / "padded"),
    ).fresh


def with_columns(world, tmp_path, make):
    """A copy of the scores, without checksums, whose shards have columns made of their rows."""
    folder = tmp_path / "weighted"
    folder.mkdir()
    written = manifest(world / "scores")
    del written["shards"]
    (folder / "manifest.json").write_text(json.dumps(written))
    for name in written["files"]:
        table = pq.read_table(world / "scores" / name)
        for column, values in make(table.to_pylist()).items():
            table = table.append_column(column, [values])
        pq.write_table(table, folder / name)
    return folder


def test_weights_may_come_with_the_scores(world, chat_folder, tmp_path):
    """A column that says what the oracle rule would say gives the same policy, to the bit."""

    def as_the_oracle(rows):
        found = {}
        for side, highest in (("chosen", True), ("rejected", False)):
            places = [reference.select(row[f"{side}_scores"], 0.3, highest=highest) for row in rows]
            found[f"{side}_weights"] = [
                [float(i in those) for i in range(len(row[f"{side}_scores"]))]
                for row, those in zip(rows, places, strict=True)
            ]
        return found

    folder = with_columns(world, tmp_path, as_the_oracle)
    run_policy(world, chat_folder, scores=folder, output=tmp_path / "p", select="column")
    assert losses(tmp_path / "p") == losses(world / "policy")
    with pytest.raises(SepoError, match="pair 0 comes without weights, and select column takes nothing else"):
        run_policy(world, chat_folder, output=tmp_path / "q", select="column")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([-1.0], "pair 0 has a negative weight in chosen_weights, at token 0"),
        ([float("nan")], "pair 0 has a chosen_weights that is not finite, at token 0"),
        ([1.0, 2.0] * 40, r"pair 0 has \d+ chosen_ids and 80 chosen_weights"),
        (None, "pair 0 has no chosen_weights"),
    ],
)
def test_weights_that_cannot_be_are_refused(world, chat_folder, tmp_path, value, said):
    def bad(rows):
        whole = {
            f"{side}_weights": [[1.0] * len(row[f"{side}_ids"]) for row in rows] for side in ("chosen", "rejected")
        }
        if value is None:
            return {"rejected_weights": whole["rejected_weights"]}
        first = whole["chosen_weights"][0]
        whole["chosen_weights"][0] = value if len(value) > 1 else [*value, *first[1:]]
        return whole

    with pytest.raises(SepoError, match=said):
        run_policy(
            world, chat_folder, scores=with_columns(world, tmp_path, bad), output=tmp_path / "p", select="column"
        )


def test_snapshots_are_the_policy_after_so_many_steps(world, chat_folder, tmp_path):
    """With a constant learning rate, what is kept after two steps is what a run of two steps ends with."""
    constant = {"lr_scheduler_type": "constant", "batch_size": 8}
    run_policy(world, chat_folder, output=tmp_path / "whole", snapshot_steps=2, **constant)
    run_policy(world, chat_folder, output=tmp_path / "short", max_steps=2, **constant)
    names = sorted(path.name for path in (tmp_path / "whole/snapshots").iterdir())
    assert names == ["step-00000002", "step-00000004"]
    kept = load_file(tmp_path / "whole/snapshots/step-00000002/model.safetensors")
    ended = load_file(tmp_path / "short/model.safetensors")
    assert all(torch.equal(kept[name], ended[name]) for name in ended)
