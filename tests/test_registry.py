"""Objectives and rules as the options of `sepo train-policy` name them: which there are, and what is refused."""

import inspect
from dataclasses import fields

import pytest

from stages.configs import PolicyConfig
from stages.errors import SepoError
from stages.method import objectives, rules
from stages.registry import OBJECTIVES, RULES, defaults_in_words


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objective": "dpo", "gamma": 1.0}, "gamma is no option of objective dpo; sepo, sepo-hinge, simpo, confpo have it"),
        ({"threshold": 0.1}, "threshold is no option of select oracle; threshold has it"),
        ({"objective": "simpo", "chosen_ratio": 0.3}, "chosen_ratio is no option of select all"),
        ({"objective": "sft", "select": "oracle", "rejected_ratio": 0.1}, "rejected_ratio changes nothing of objective sft"),
        ({"objective": "sepo", "select": "soft", "soft_k": 3.0}, "soft_k changes nothing of objective sepo"),
        ({"objective": "dpo", "anchor_margin": True}, "anchor_margin is no option of objective dpo"),
        ({"select": "threshold", "authors_rule": True}, "authors_rule is no option of select threshold; oracle, inverted, random"),
        ({"reference_model": "m"}, "reference_model is not used by objective sepo as it is set; dpo, ipo, r-dpo, tdpo1, tdpo, regress have"),
        ({"reference_model": "m", "kl_weight": 0.0}, "reference_model is not used"),
        ({"select": "soft", "soft_low": 3.0}, "soft_low must be at most soft_high, got 3.0 and 1.5"),
        ({"objective": "simpo", "kl_unselected": 1.0}, "kl_unselected changes nothing: select all takes every token; kl_selected"),
        ({"objective": "sft", "kl_selected": 1.0}, "kl_selected and kl_unselected are for pairwise objectives, not sft"),
        ({"objective": "simop"}, r"got 'simop' \(did you mean simpo"),
        ({"select": "orcle"}, r"got 'orcle' \(did you mean oracle"),
        ({"objective": "xyzzy"}, r"got 'xyzzy'$"),
        ({"objective": "dpo", "beta": 0.0}, "beta must be above 0"),
        ({"select": "auto", "auto_share": 1.5}, "auto_share must be in"),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_refused(given, said):
    with pytest.raises(SepoError, match=said):
        PolicyConfig(**given)


def test_an_option_that_changes_nothing_has_no_default_to_claim():
    config = PolicyConfig(objective="sft", select="oracle").resolved()
    assert (config.chosen_ratio, config.rejected_ratio) == (0.3, None)
    assert config.resolved() == config


@pytest.mark.parametrize(
    "given",
    [{"anchor_margin": True}, {"kl_weight": 0.1}, {"kl_unselected": 1.0}, {"objective": "ipo"}, {"objective": "tdpo1"}],
)
def test_a_reference_may_be_named_where_something_is_measured_from_it(given):
    assert PolicyConfig(reference_model="m", **given).reference_model == "m"


def test_every_option_of_an_objective_or_rule_is_one_of_the_command_and_of_one_kind():
    taken = [{option for entry in kind.values() for option in entry.options} for kind in (OBJECTIVES, RULES)]
    assert not taken[0] & taken[1]
    assert taken[0] | taken[1] <= {field.name for field in fields(PolicyConfig)}


@pytest.mark.parametrize(("module", "entries"), [(objectives, OBJECTIVES), (rules, RULES)])
def test_the_registry_knows_every_function_and_the_options_that_it_takes(module, entries):
    of_module = {
        name: each for name, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__
    }
    public = {name.replace("_", "-") for name, each in of_module.items() if callable(each) and name[0] != "_"}
    assert public == set(entries)
    for entry in entries.values():
        parameters = inspect.signature(entry.load().func).parameters.values()
        assert set(entry.options) == {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
        assert inspect.getdoc(entry.load().func)


def test_defaults_are_told_in_words():
    assert defaults_in_words("margin") == "sepo, simpo, confpo 0.5; sepo-hinge 0.0; slic 1.0"
