"""`sepo denoise`: scores pooled over the data set, in a folder that every later stage reads as any other."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages import denoise, inspect
from stages.configs import DenoiseConfig, InspectConfig
from stages.errors import SepoError
from stages.method.calibration import calibrate
from stages.method.counts import COUNT_FOLDS, count
from stages.method.folds import fold_of
from stages.method.pooling import pool
from stages.reporting import Quiet
from stages.store.alarms import Scale, alarms
from stages.store.scores import open_scores
from stages.types import PairLogps, ScoredPair
from tests.conftest import token_pair
from tests.scored import score_folder, scored_pair
from tests.world import manifest, run_policy


def denoised(scores, output, **options):
    denoise.run(DenoiseConfig(scores=str(scores), output_dir=str(output), **options), Quiet())
    return output


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    return denoised(world / "scores", tmp_path_factory.mktemp("denoise") / "d")


def tokens(folder):
    """(id, id before it, score) of every token of every chosen response, then of every rejected one."""
    rows, found = list(open_scores(folder).rows()), []
    for n in (0, 1):
        for row in rows:
            before = int(row.pair.prompt_ids[-1])
            for token, score in zip(row.pair[2 + n].tolist(), row.scores[n].tolist(), strict=True):
                found.append((token, before, score))
                before = token
    return found


def test_scores_are_pooled_over_both_sides_and_all_shards(world, folder):
    assert len(manifest(folder)["files"]) > 1
    types, predecessors, scores = map(np.array, zip(*tokens(world / "scores"), strict=True))
    expected = pool(scores, types, predecessors)
    assert [score for *_, score in tokens(folder)] == pytest.approx(expected.scores_N, abs=1e-6)
    assert manifest(folder)["results"]["contexts"] == pytest.approx(expected.contexts._asdict())


def test_nothing_else_changes_and_measured_scores_stay_beside(world, folder):
    for ours, theirs in zip(open_scores(folder).rows(), open_scores(world / "scores").rows(), strict=True):
        for one, other in zip((*ours.pair[1:], *ours.reference), (*theirs.pair[1:], *theirs.reference), strict=True):
            np.testing.assert_array_equal(one, other)
    for name in manifest(folder)["files"]:
        table, source = pq.read_table(folder / name), pq.read_table(world / "scores" / name)
        for side in ("chosen", "rejected"):
            assert table[f"{side}_raw_scores"].to_pylist() == source[f"{side}_scores"].to_pylist()


def test_by_type_alone_a_token_scores_the_same_everywhere(world, folder, tmp_path):
    found = tokens(denoised(world / "scores", tmp_path / "d", pool="type"))
    assert len({(token, score) for token, _, score in found}) == len({token for token, *_ in found})
    assert [score for *_, score in found] != [score for *_, score in tokens(folder)]


def test_a_policy_finds_the_reference_in_them(world, folder, tmp_path):
    options = {"objective": "regress", "max_steps": 1, "batch_size": 64}
    run_policy(world, world / "oracle/reference", output=tmp_path / "p", scores_dir=str(folder), **options)
    assert not (tmp_path / "p/reference-logps.parquet").exists()
    scores = np.array([score for *_, score in tokens(folder)])
    # Where the policy is still the reference, the loss is the sum of the squares.
    expected = np.square(scores).sum() / manifest(folder)["counts"]["kept"]
    assert manifest(tmp_path / "p")["results"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_scores_of_another_scorer_keep_their_weights(world, tmp_path):
    """They need not say of what they are made, nor have reference log-probs; weights may be of some rows alone."""
    written = manifest(world / "scores")
    kept = {name: written[name] for name in ("format", "stage", "fingerprint", "files", "counts", "tokenizer")}
    (tmp_path / "s").mkdir()
    (tmp_path / "s/manifest.json").write_text(json.dumps(kept))
    weights = []
    for name in written["files"]:
        table = pq.read_table(world / "scores" / name).drop_columns(
            ["chosen_reference_logps", "rejected_reference_logps"]
        )
        for side in ("chosen", "rejected"):
            values = [[0.5] * len(ids) if row else None for row, ids in enumerate(table[f"{side}_ids"].to_pylist())]
            table = table.append_column(f"{side}_weights", [values])
            weights += values
        pq.write_table(table, tmp_path / "s" / name)
    rows = list(open_scores(denoised(tmp_path / "s", tmp_path / "d")).rows())
    assert [row.weights is None for row in rows] == [n % 16 == 0 for n in range(len(rows))]
    assert rows[1].weights.rejected.tolist() == [0.5] * len(rows[1].pair.rejected_ids)
    assert rows[1].reference is None


def test_what_is_denoised_is_not_denoised_again(world, folder, tmp_path):
    with pytest.raises(SepoError, match="is denoised already"):
        denoised(folder, tmp_path / "d")
    before = (folder / "manifest.json").read_bytes()
    denoised(world / "scores", folder)
    assert (folder / "manifest.json").read_bytes() == before


def planted(folder, *, real):
    """Scores by two oracles of pairs that these had not seen: half of a token's score is its type's, half its own.

    Labels follow the types, or the tokens' own halves.
    """
    rng, rows = np.random.default_rng(7), []
    types = rng.normal(size=20)
    for number in range(300):
        ids = rng.integers(0, 20, (2, 6))
        own = rng.normal(size=(2, 6))
        rewards = (types[ids] if real == "type" else own).sum(1)
        first = int(rng.random() > 1 / (1 + np.exp(rewards[1] - rewards[0])))
        pair = token_pair(number, rng.integers(0, 20, 3), ids[first], ids[1 - first])
        scores = (types[ids] + own).astype(np.float32)
        rows.append(ScoredPair(pair, PairLogps(scores[first], scores[1 - first]), None))
    score_folder(folder, rows, shards=2)
    written = manifest(folder)
    (folder / "manifest.json").write_text(json.dumps({**written, "settings": {"folds": 2}}))
    return folder


@pytest.mark.parametrize(("real", "memory"), [("type", "residual"), ("residual", "type")])
def test_labels_of_unseen_pairs_say_which_part_of_the_scores_is_real(tmp_path, real, memory):
    results = manifest(denoised(planted(tmp_path / "s", real=real), tmp_path / "d"))["results"]
    found, accuracies = results["calibration"], results["accuracy_on_unseen_pairs"]
    # What a type is worth, counts find without the scores: its part and theirs are two measurements of one thing.
    value = found[real]["coefficient"] + (real == "type") * found["counts"]["coefficient"]
    assert value == pytest.approx(1, abs=3 * found[real]["standard_error"])
    assert found[memory]["coefficient"] == pytest.approx(0, abs=3 * found[memory]["standard_error"])
    assert found[real]["standard_error"] < 0.2
    best = "pooled" if real == "type" else "calibrated"
    assert accuracies[best]["value"] > accuracies["as measured"]["value"] + 0.05
    assert accuracies["calibrated"]["value"] > accuracies["as measured"]["value"] + 0.05
    assert (accuracies["counts"]["value"] > 0.6) == (real == "type")
    losses = results["log_loss_on_unseen_pairs"]
    assert losses["calibrated"]["value"] < losses["as measured"]["value"] < np.log(2)
    # Counts say what the type's part says: what that part is worth without them is what speaks for pooling.
    assert results["calibration_without_counts"][real]["coefficient"] == pytest.approx(1, abs=0.4)
    warned = " ".join(manifest(tmp_path / "d")["warnings"])
    assert ("neither what a token's type" in warned, "--calibrate keeps it" in warned) == (real != "type",) * 2


def test_calibrated_scores_are_parts_times_what_unseen_labels_say(tmp_path):
    """The coefficients are of parts pooled within a fold, and of counts of other folds; what is written, of all."""
    folder = planted(tmp_path / "s", real="type")
    types, predecessors, scores = map(np.array, zip(*tokens(folder), strict=True))
    rows = list(open_scores(folder).rows())
    of_pair = np.tile(np.repeat(np.arange(300), 6), 2)
    folds = np.array([fold_of(row.pair.prompt_ids, 2) for row in rows])[of_pair]
    sign = np.repeat([1, -1], 1800)
    differences = np.zeros((300, 4))
    for fold in (0, 1):
        mine = folds == fold
        for k, part in enumerate(pool(scores[mine], types[mine], predecessors[mine]).parts_KN):
            np.add.at(differences[:, k], of_pair[mine], sign[mine] * part)
    counted = count(types, sign, of_pair, np.array([fold_of(row.pair.prompt_ids, COUNT_FOLDS) for row in rows]))
    np.add.at(differences[:, 3], of_pair, sign * counted.unseen_N)
    calibration = calibrate(differences)
    output = denoised(folder, tmp_path / "d", calibrate=True)
    found = manifest(output)["results"]["calibration"]
    assert [each["coefficient"] for each in found.values()] == pytest.approx(calibration.coefficients_K)
    assert [each["standard_error"] for each in found.values()] == pytest.approx(calibration.errors_K)
    expected = calibration.coefficients_K @ [*pool(scores, types, predecessors).parts_KN, counted.all_N]
    assert [score for *_, score in tokens(output)] == pytest.approx(expected, abs=1e-5)
    assert manifest(output)["settings"]["folds"] == 2


@pytest.mark.parametrize("folds", [1, 2])
def test_counts_alone_are_what_labels_say_of_types_whatever_the_scores(tmp_path, folds):
    """Times what unseen pairs say that they are worth; an oracle's folds are not asked for."""
    folder = planted(tmp_path / "s", real="type")
    one_model = {"inputs": {"oracle": "sha256:a", "reference": "sha256:a"}}
    told = {"settings": {"folds": folds}, "warnings": ["every score is 0"], **one_model}
    (folder / "manifest.json").write_text(json.dumps({**manifest(folder), **told}))
    types, _, _ = map(np.array, zip(*tokens(folder), strict=True))
    of_pair, sign = np.tile(np.repeat(np.arange(300), 6), 2), np.repeat([1, -1], 1800)
    count_folds = np.array([fold_of(row.pair.prompt_ids, COUNT_FOLDS) for row in open_scores(folder).rows()])
    counted = count(types, sign, of_pair, count_folds)
    worth = calibrate(np.bincount(of_pair, sign * counted.unseen_N)[:, None])
    output = denoised(folder, tmp_path / "d", pool="counts")
    expected = worth.coefficients_K[0] * counted.all_N
    assert [score for *_, score in tokens(output)] == pytest.approx(expected, abs=1e-5)
    results = manifest(output)["results"]
    assert results["calibration"] == {
        "counts": {
            "coefficient": pytest.approx(worth.coefficients_K[0]),
            "standard_error": pytest.approx(worth.errors_K[0]),
        }
    }
    assert manifest(output)["warnings"] == alarms(Scale(), manifest(output)) == []
    unseen = (np.bincount(of_pair, sign * counted.unseen_N) > 0).mean()
    assert results["accuracy_on_unseen_pairs"]["counts"]["value"] == pytest.approx(unseen)
    with pytest.raises(SepoError, match="calibrate weighs counts beside scores"):
        denoised(folder, tmp_path / "e", pool="counts", calibrate=True)


def test_counts_that_tell_nothing_of_other_pairs_are_warned_of(tmp_path):
    folder = planted(tmp_path / "s", real="residual")
    warned = " ".join(manifest(denoised(folder, tmp_path / "d", pool="counts"))["warnings"])
    assert "counts are not shown to tell preferences of unseen pairs (coefficient " in warned
    one = score_folder(tmp_path / "one", [scored_pair(number, [1], [2, 3], [4]) for number in range(3)])
    with pytest.raises(SepoError, match="are of one fold: nothing says what counts are worth"):
        denoised(one, tmp_path / "e", pool="counts")


def test_log_losses_are_of_margins_that_other_folds_scaled(tmp_path):
    """Of scores as measured: one coefficient by each fold's labels, for the other fold's pairs."""
    folder = planted(tmp_path / "s", real="type")
    rows = list(open_scores(folder).rows())
    margins = np.array([row.scores.chosen.sum(dtype=float) - row.scores.rejected.sum(dtype=float) for row in rows])
    folds = np.array([fold_of(row.pair.prompt_ids, 2) for row in rows])
    losses = []
    for fold in (0, 1):
        scale = calibrate(margins[folds != fold, None]).coefficients_K[0]
        losses += np.log1p(np.exp(-scale * margins[folds == fold])).tolist()
    found = manifest(denoised(folder, tmp_path / "d"))["results"]["log_loss_on_unseen_pairs"]["as measured"]
    assert found["value"] == pytest.approx(np.mean(losses))
    assert found["high"] - found["value"] == pytest.approx(1.959964 * np.std(losses, ddof=1) / 300**0.5)


@pytest.mark.parametrize("folds", [1, 2])
def test_what_is_said_of_the_accuracy_is_true_of_the_oracles(tmp_path, folds):
    folder = planted(tmp_path / "s", real="type")
    (folder / "manifest.json").write_text(json.dumps({**manifest(folder), "settings": {"folds": folds}}))
    summary = denoise.run(DenoiseConfig(scores=str(folder), output_dir=str(tmp_path / "d")), Quiet())
    [said] = [text for name, text in summary.rows if name == "implicit reward prefers chosen"]
    assert ("trained on or not" in said, "had not seen the prompt" in said) == (folds == 1, folds == 2)


def test_inspect_shows_what_unseen_pairs_said(tmp_path):
    folder = denoised(planted(tmp_path / "s", real="residual"), tmp_path / "d")
    shown = dict(inspect.run(InspectConfig(scores=str(folder)), Quiet()).rows)
    results = manifest(folder)["results"]
    found = results["calibration"]["residual"]
    assert (
        shown["coefficient of the residual"]
        == f"{found['coefficient']:+.2f} (standard error {found['standard_error']:.2f})"
    )
    accuracy, loss = (results[f"{kind}_on_unseen_pairs"]["calibrated"] for kind in ("accuracy", "log_loss"))
    assert shown["on unseen pairs, calibrated"].startswith(f"accuracy {accuracy['value']:.3f} [")
    assert f", log-loss {loss['value']:.3f} [" in shown["on unseen pairs, calibrated"]
    plain = dict(inspect.run(InspectConfig(scores=str(tmp_path / "s")), Quiet()).rows)
    assert not any("unseen" in name for name in plain)
    found = inspect.run(InspectConfig(scores=str(folder), json=True), Quiet()).json
    assert found["calibration"] == results["calibration"]


def beside(folder, **columns):
    """Write further columns into every shard: functions of a row's number."""
    start = 0
    for name in manifest(folder)["files"]:
        table = pq.read_table(folder / name)
        for column, values in columns.items():
            table = table.append_column(column, [[values(start + n) for n in range(len(table))]])
        start += len(table)
        pq.write_table(table, folder / name)


def test_scores_are_centred_before_they_are_pooled(tmp_path):
    """By what the folder says of each token; the measured scores stay what they were."""
    folder = planted(tmp_path / "s", real="type")
    types, predecessors, scores = map(np.array, zip(*tokens(folder), strict=True))
    plain = manifest(denoised(folder, tmp_path / "plain"))["results"]
    kl = np.random.default_rng(3).random((2, 300, 6)).round(3)
    beside(folder, chosen_kl=lambda n: kl[0, n].tolist(), rejected_kl=lambda n: kl[1, n].tolist())
    output = denoised(folder, tmp_path / "d")
    expected = pool(scores + kl.ravel(), types, predecessors).scores_N
    assert [score for *_, score in tokens(output)] == pytest.approx(expected, abs=1e-5)
    results = manifest(output)["results"]
    assert (results["centred"], plain["centred"]) == (True, False)
    ours, theirs = (each["accuracy_on_unseen_pairs"] for each in (results, plain))
    assert ours["as measured"] == theirs["as measured"]
    margins = (scores + kl.ravel()).reshape(2, 300, 6).sum(-1)
    assert ours["centred"]["value"] == pytest.approx((margins[0] > margins[1]).mean())
    table = pq.read_table(output / manifest(output)["files"][0])
    assert np.concatenate(table["chosen_raw_scores"].to_pylist()) == pytest.approx(scores[: 150 * 6], abs=1e-6)


def test_what_centres_has_a_number_for_every_token(tmp_path):
    folder = score_folder(tmp_path / "s", [scored_pair(number, [1], [2, 3], [4]) for number in range(3)])
    beside(folder, chosen_kl=lambda n: [0.1] * (1 + (n > 0)), rejected_kl=lambda n: [0.1])
    with pytest.raises(SepoError, match="do not have a number for every response token"):
        denoised(folder, tmp_path / "d")


def test_scores_that_may_remember_the_labels_are_not_calibrated(world, tmp_path):
    with pytest.raises(SepoError, match="may have seen the pairs"):
        denoised(world / "scores", tmp_path / "d", calibrate=True)
    assert "calibration" not in manifest(denoised(world / "scores", tmp_path / "d"))["results"]


def test_pairs_of_one_fold_calibrate_nothing(tmp_path):
    folder = score_folder(tmp_path / "s", [scored_pair(number, [1], [2, 3], [4]) for number in range(3)])
    (folder / "manifest.json").write_text(json.dumps({**manifest(folder), "settings": {"folds": 2}}))
    with pytest.raises(SepoError, match="are of one fold"):
        denoised(folder, tmp_path / "d", calibrate=True)
    assert "all pairs are of one of 2 folds" in " ".join(manifest(denoised(folder, tmp_path / "d"))["warnings"])
