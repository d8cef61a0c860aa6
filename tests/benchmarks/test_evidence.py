"""What the figures of the documentation are read with: packed rows, planted labels, gains by prefix weights."""

import argparse
import json
import math

import numpy as np
import pytest
import torch

from benchmarks.evidence import followed, last_layers, real_text, recipes, two_cores
from benchmarks.evidence.last_layers import Lower, Row, Upper
from stages.method.folds import fold_of
from stages.store.scores import open_scores
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama

PROMPT, ANSWERS = np.array([3, 1, 4], np.int32), [np.array(ids, np.int32) for ids in ([1, 5, 9], [2, 6], [5, 3, 5, 8])]


@pytest.fixture
def models(monkeypatch, tmp_path):
    """A model, and the upper part of it, of one layer."""
    monkeypatch.setattr(last_layers, "LAYERS", 1)
    model = tiny_llama(12).eval()
    lower = Lower(model, tmp_path / "lower.pt")
    return model, lower, Upper(model, lower)


def test_packed_rows_have_the_log_probs_of_the_whole_model(models, tmp_path, capsys):
    model, lower, upper = models
    assert len(upper.layers.layers) < len(model.model.layers)
    row = Row(PROMPT, ANSWERS)
    lower.read([row, row])
    assert capsys.readouterr().out == "lower layers: 1/1 rows\n"
    expected = []
    for ids in ANSWERS:
        whole = torch.from_numpy(np.concatenate([PROMPT, ids])).long()
        with torch.no_grad():
            expected.append(model(whole[None]).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1))
    torch.testing.assert_close(upper(row).detach(), torch.cat(expected), atol=1e-5, rtol=1e-5)
    # Hidden states of an answer are found again whatever it is beside, and in a new process.
    other = Row(PROMPT, ANSWERS[::-1])
    again = Lower(model, tmp_path / "lower.pt")
    torch.testing.assert_close(Upper(model, again)(other)[:4], upper(row)[-4:], atol=1e-5, rtol=1e-5)


def test_gain_and_divergence_are_those_of_the_policy(models):
    """Over all answers of two tokens, each drawn as the reference draws, against sums over the policy's own."""
    _, lower, reference = models
    policy = reference.copy()
    with torch.no_grad():
        policy.layers.norm.weight.mul_(1.5)
    answers = [np.array([a, b], np.int32) for a in range(12) for b in range(12)]
    row = Row(PROMPT, answers)
    lower.read([row])
    rewards_N = torch.tensor([float(ids % 3) for ids in row.targets])
    same, read = two_cores.read_policies(reference, [reference, policy], [two_cores.Sampled(0, row, rewards_N)])
    assert np.abs(same.gains_S).max() < 1e-5 > np.abs(same.kl_S).max()
    with torch.no_grad():
        ours, theirs = (
            model(row).gather(-1, row.targets[:, None])[:, 0].view(-1, 2).sum(-1).double()
            for model in (policy, reference)
        )
    rewards = rewards_N.view(-1, 2).sum(-1).double()
    gain = float(theirs.exp() @ torch.tensor(read.gains_S, dtype=torch.double))
    assert gain == pytest.approx(float((ours.exp() - theirs.exp()) @ rewards), abs=1e-5)
    assert abs(gain) > 0.01
    kl = float(theirs.exp() @ torch.tensor(read.kl_S, dtype=torch.double))
    assert kl == pytest.approx(float(ours.exp() @ (ours - theirs)), rel=1e-4)


def test_labels_are_bradley_terry_s(monkeypatch):
    first = real_text.bradley_terry({"prompt": 0}, "you")
    texts = ("Thanks, well, fine", "Do you know? You do")
    assert [*map(real_text.lexical, texts)] == [-3.0, 3.0]
    assert real_text.contextual("I say you") == -real_text.contextual("We say you") == 1.5
    wins = [
        real_text.bradley_terry({"prompt": n}, "you") > real_text.bradley_terry({"prompt": n}, "no") for n in range(500)
    ]
    assert np.mean(wins) == pytest.approx(1 / (1 + math.exp(-1.5)), abs=0.05)
    monkeypatch.setenv("LABELS", "2")
    assert real_text.bradley_terry({"prompt": 0}, "you") != first


def test_pairs_by_others_are_labelled_by_the_planted_reward(tmp_path):
    rows = [{"prompt": "a", "chosen": "no " + "," * 40, "rejected": "you " * 40}]
    rows.append({"prompt": "b", "chosen": "your " * 40, "rejected": "no"})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    real_text.write_labelled(argparse.Namespace(pairs=str(tmp_path / "p.jsonl"), output=tmp_path / "out.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["chosen"][:4] for row in found] == ["you ", "your"]
    assert [row["rejected"][:2] for row in found] == ["no", "no"]


def test_oracles_score_the_pairs_that_they_are_given(monkeypatch, tmp_path):
    """Others than those that they learn of; each by the oracle of its own fold, which learns of the other folds alone."""
    monkeypatch.setattr(last_layers, "LAYERS", 1)
    tokenizer = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def write(name, words):
        rows = [{"prompt": word, "chosen": f"{word} {word}", "rejected": "no"} for word in words]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def scores(dataset, to_score=None):
        output = tmp_path / f"{dataset} {to_score}"
        files = {
            "dataset": str(tmp_path / f"{dataset}.jsonl"),
            "to_score": to_score and str(tmp_path / f"{to_score}.jsonl"),
        }
        two_cores.write_scores(argparse.Namespace(
            model=str(tmp_path / "model"), cache=tmp_path / "lower.pt", rate=1e-2, seed=1, output_dir=output, **files
        ))  # fmt: skip
        return {tokenizer.decode(row.pair.chosen_ids)[:1]: row for row in open_scores(str(output)).rows()}

    write("own", "abcdefgh")
    own, again = scores("own"), scores("own", "own")
    folds = {word: fold_of(row.pair.prompt_ids, 2) for word, row in own.items()}
    write("first", [word for word, fold in folds.items() if fold == 0])
    by_others = scores("first", "own")
    assert "".join(own) == "".join(by_others) == "abcdefgh"
    for word, fold in folds.items():
        np.testing.assert_allclose(again[word].scores[0], own[word].scores[0], atol=1e-6)
        # The oracle of the first fold has nothing to learn of.
        assert (np.abs(by_others[word].scores[0]).max() > 1e-3) == (fold == 1)


def test_the_selection_is_the_best_of_the_chosen_and_the_worst_of_the_rejected():
    row = Row(PROMPT, ANSWERS[:2])
    weights = recipes.selected(row, torch.tensor([0.5, 2.0, 1.0, -1.0, 3.0]))
    assert weights.tolist() == [0, 1, 0, 1, 0]


def test_prompts_are_the_shortest_and_each_is_there_once(tmp_path):
    texts = ["a much longer prompt than these", "one", "two?", "three", "one"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
    options = {"prompts": [str(tmp_path / "p.jsonl")], "output_dir": tmp_path / "d", "seed": 0}
    real_text.write_prompts(argparse.Namespace(**options, train=2, test=1))
    train, test = ((tmp_path / "d" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    assert {json.loads(line)["prompt"][-1]["content"] for line in train + test} == {"one", "two?", "three"}
    with pytest.raises(SystemExit, match="only 4 prompts, not 5"):
        real_text.write_prompts(argparse.Namespace(**options, train=4, test=1))


def test_every_recipe_has_a_loss_that_moves_its_policy(models):
    _, lower, reference = models
    rows = [Row(PROMPT, ANSWERS[:2]), Row(PROMPT, ANSWERS[1:])]
    lower.read(rows)
    scores = [torch.linspace(-1, 1, len(row.targets)) for row in rows]
    several = [[factor * each for each in scores] for factor in (1, 2, 3)]
    losses = {}
    for name, settings in recipes.recipes(rows, *several, 1e-3, seed=0).items():
        assert len(settings) == 2
        policy = last_layers.train(reference, rows, settings[0].loss, settings[0].rate, seed=0)
        losses[name] = settings[0].loss(0, policy(rows[0]), reference).item()
    assert len(set(losses.values())) == len(losses), losses
    by_hand = losses.pop(recipes.BASELINE)
    policy = last_layers.train(
        reference, rows, recipes.recipes(rows, *several, 1e-3, 0)[recipes.BASELINE][0].loss, 1e-3, 0
    )
    with torch.no_grad():
        ours, theirs = policy(rows[0]), reference(rows[0])
    ratios = (ours - theirs).gather(-1, rows[0].targets[:, None])[:, 0].split(rows[0].lengths)
    kl = (theirs.exp() * (theirs - ours)).sum()
    expected = math.log1p(math.exp(-float(ratios[0].sum() - ratios[1].sum()))) + 0.3 * float(kl)
    assert by_hand == pytest.approx(expected, rel=1e-5)


def test_a_policy_half_way_to_its_reference_has_the_mean_of_both_weights(models):
    _, _, reference = models
    policy = reference.copy()
    with torch.no_grad():
        policy.layers.norm.weight.mul_(1.5)
    ours, theirs = (upper.layers.norm.weight for upper in (policy.towards(reference, 0.75), reference))
    torch.testing.assert_close(ours, 1.125 * theirs)


def test_a_policy_that_is_tilted_by_its_reward_has_all_there_is(tmp_path, capsys):
    """Gain = variance * c and KL = variance * c^2 / 2 for a small c: the share is 1, at a smaller KL too."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(200, 8))
    centred = rewards - rewards.mean(1, keepdims=True)
    variance = np.square(centred).sum(1).mean() / 7
    kl = 0.0501
    c = math.sqrt(2 * kl / variance)
    line = {
        "recipe": recipes.BASELINE,
        "seed": 1,
        "setting": 0,
        "prompts_S": np.repeat(np.arange(200), 8).tolist(),
        "rewards_S": rewards.ravel().tolist(),
        "gains_S": [c * variance] * 1600,
        "kl_S": [kl] * 1600,
        "scale": 1.0,
        "margins_P": [1.0, 0.0, -1.0, 1.0] * 50,
    }
    nearer = {"kl_S": [0.01] * 1600, "scale": 0.5, "margins_P": [1.0] * 200}
    less = math.sqrt(0.01 / kl)
    half = {**line, "recipe": "half", "gains_S": [c * variance / 2] * 1600}
    more = {**half, "setting": 1, "gains_S": line["gains_S"]}
    lines = [line, half, more]
    lines += [{**each, **nearer, "gains_S": [less * gain for gain in each["gains_S"]]} for each in lines]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    two_cores.show(argparse.Namespace(output=[tmp_path / "p.jsonl"], less=recipes.BASELINE))
    rows = [
        row.split(" | ") for row in capsys.readouterr().out.splitlines() if "by seed" not in row and "--" not in row
    ]
    rows, accuracies = rows[:4], rows[4:]
    # From 1 where it is nearer to 0.625 where it is farther, half a point for a pair that it does not tell apart.
    at = [1 - 0.375 * (math.sqrt(there) - 0.1) / (math.sqrt(kl) - 0.1) for there in two_cores.BUDGETS]
    assert [row[3][:6] for row in accuracies] == [f"{each:+.3f}" for each in at] * 2
    by_draw = two_cores._accuracies([lines[0], lines[3]], 0.009), two_cores._accuracies([lines[0], lines[3]], 0.06)
    assert np.isnan(by_draw).all()
    assert [(row[0], row[1]) for row in rows] == [
        (f"| {name}", f"{kl:g}") for name in (recipes.BASELINE, "half") for kl in two_cores.BUDGETS
    ]
    for row, share in zip(rows, (1.0, 1.0, 0.5, 0.5), strict=True):
        assert row[4].startswith(f"{share:+.3f} ["), row
    gain = c * variance / 2 * math.sqrt(0.05 / kl)
    assert rows[-1][3].startswith(f"{gain:+.3f} [")
    assert (rows[-1][5][:6], rows[-1][6][:6]) == (f"{-gain:+.3f}",) * 2
    two_cores.show(argparse.Namespace(output=[tmp_path / "p.jsonl"], less="half"))
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert "| less half |" in header
    assert rows[1].split(" | ")[5].startswith(f"{gain:+.3f} [")


def test_held_out_pairs_are_those_of_the_samples_prompts(tmp_path):
    """Whatever their order, and though a prompt has no samples; a prompt is in one part alone, and its shortest pair."""
    words = ["you", "do know", "this is so", "no", "yes yes yes"]
    rows = [{"prompt": text, "chosen": f"{text} it", "rejected": "no"} for text in words]
    rows.append({**rows[0], "chosen": "much longer than it was before"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"pairs": str(tmp_path / "pairs.jsonl"), "model": str(tmp_path / "tokenizer"), "seed": 0}
    real_text.write_pairs(argparse.Namespace(**options, output_dir=tmp_path / "d", train=2, test=3))
    train, test = ([json.loads(line) for line in (tmp_path / f"d/{name}.jsonl").read_text().splitlines()]
                   for name in ("train", "test"))  # fmt: skip
    prompts = [row["prompt"][-1]["content"] for row in train + test]
    assert sorted(prompts) == sorted(words)
    assert "longer" not in json.dumps(train + test)
    samples = [two_cores.Sampled(question, None, None) for question in (2, 0)]
    found = two_cores.held_out_rows(str(tmp_path / "d/test.jsonl"), tokenizer, samples)
    chosen = [tokenizer.decode(row.responses[0], skip_special_tokens=True).strip() for row in found]
    assert chosen == [test[2]["chosen"], test[0]["chosen"]]


def test_margins_of_counts_are_sums_of_what_types_are_worth():
    row = Row(PROMPT, [np.array([1, 5, 1], np.int32), np.array([2, 7], np.int32)])
    worth = {1: 2.0, 2: -1.0, 5: 0.25}
    assert followed.margin(row, worth) == 2 + 0.25 + 2 - -1
    assert followed.margin(row, worth, 0.5) == 5.25 - 0.5


def test_margins_are_of_the_chosen_response_less_the_rejected_one(models):
    _, lower, reference = models
    policy = reference.copy()
    with torch.no_grad():
        policy.layers.norm.weight.mul_(1.5)
    row = Row(PROMPT, ANSWERS[:2])
    lower.read([row])
    same, [margin] = two_cores.read_margins(reference, [reference, policy], [row])
    ratios = (policy(row) - reference(row)).gather(-1, row.targets[:, None])[:, 0].detach()
    assert (same, margin) == ([0.0], pytest.approx(float(ratios[:3].sum() - ratios[3:].sum()), abs=1e-5))
