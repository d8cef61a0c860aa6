import pytest

from stages.configs import PolicyConfig
from stages.report.card import Made, write_policy_card


@pytest.mark.parametrize("local", [False, True])
def test_a_card_names_a_base_of_the_hub_whole_and_no_folder_of_this_computer(tmp_path, local):
    """The hub links to the name; a folder is nowhere else, and its last part may be another's model there."""
    (tmp_path / "start").mkdir()
    name = str(tmp_path / "start") if local else "HuggingFaceTB/SmolLM2-135M-Instruct"
    counts = {"kept": 1, "selected": {"chosen": 1, "rejected": 1}, "tokens": {"chosen": 2, "rejected": 2}}
    write_policy_card(tmp_path, Made(PolicyConfig(model=name, scores="s", output_dir="o"), {}, counts), {})
    head, _, text = (tmp_path / "README.md").read_text().removeprefix("---\n").partition("---\n")
    assert ("base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in head) is not local
    assert ("base_model" in head) is not local
    assert f"# {'start' if local else 'SmolLM2-135M-Instruct'}, trained by" in text
    assert "pipeline_tag: text-generation\n" in head
    assert "\ntags:\n" in head


def test_a_card_shows_names_and_obeys_none_of_them(tmp_path):
    counts = {"kept": 1, "selected": {"chosen": 1, "rejected": 1}, "tokens": {"chosen": 2, "rejected": 2}}
    name = "a|b\x1b[2J <script>\n---\n# owned"
    (tmp_path / name).mkdir()
    made = Made(PolicyConfig(model=str(tmp_path / name), scores="s", output_dir="o"), {name: "hash"}, counts)
    write_policy_card(tmp_path, made, {})
    card = (tmp_path / "README.md").read_text()
    assert r"# a\|b\\x1b[2J \<script>\\n---\\n# owned, trained by" in card
    assert r"| a\|b\\x1b[2J \<script>\\n---\\n# owned | hash |" in card
    assert "\x1b" not in card
    assert "\n# owned" not in card
