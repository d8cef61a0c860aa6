import numpy as np
from matplotlib.image import imread

from stages.report.curves import draw_curves

RECORDS = [
    {"step": n, "loss": 1 / n, "reward_margin": n / 9, "accuracy": 0.5, "chosen_logp": -1.0, "rejected_logp": -n / 5}
    for n in range(1, 30)
]


def ink(path):
    return int((imread(path)[..., :3].min(-1) < 0.9).sum())


def test_a_picture_has_a_panel_for_what_there_is(tmp_path):
    draw_curves(RECORDS, tmp_path / "all.png", "policy")
    draw_curves([{"step": r["step"], "loss": r["loss"]} for r in RECORDS], tmp_path / "loss.png", "policy")
    four, one = imread(tmp_path / "all.png"), imread(tmp_path / "loss.png")
    assert four.shape[0] == 2 * one.shape[0]
    assert four.shape[1] == 2 * one.shape[1]


def test_every_metric_is_drawn(tmp_path):
    draw_curves(RECORDS, tmp_path / "all.png", "policy")
    for name in ("accuracy", "rejected_logp"):
        flat = [{**record, name: 0.25} for record in RECORDS]
        draw_curves(flat, tmp_path / "other.png", "policy")
        assert not np.array_equal(imread(tmp_path / "all.png"), imread(tmp_path / "other.png")), name


def test_the_same_steps_give_the_same_bytes_and_one_step_is_enough(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curves(RECORDS, tmp_path / name, "policy")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw_curves(RECORDS[:1], tmp_path / "one.png", "policy")
    assert ink(tmp_path / "one.png") > 1000


def test_a_name_is_no_formula(tmp_path):
    draw_curves(RECORDS, tmp_path / "a.png", "cost $x\\y in $")
    assert ink(tmp_path / "a.png") > 1000
