"""`sepo cut-model`: the first layers of a model as a model of its own, to make a weak oracle of.

The head has never read so early a layer: the result speaks nonsense until it is fine-tuned. It has the whole model's
tokenizer, and so can be its oracle.
"""

from typing import Final

from stages.configs import CutModelConfig
from stages.errors import SepoError
from stages.models.cut import layers_of, load_first_layers
from stages.models.folders import load_tokenizer, model_hash, resolve_model, save_model_into
from stages.reporting import Reporter, Summary
from stages.store.manifest import Input
from stages.store.run import open_stage
from stages.tokens.fingerprint import tokenizer_inputs

STAGE: Final = "cut-model"


def run(config: CutModelConfig, reporter: Reporter) -> Summary:
    """Write the cut model as an ordinary model folder."""
    source = resolve_model(config.model_name, reporter)
    count = layers_of(source, trust_remote_code=config.trust_remote_code)
    if config.layers >= count:
        raise SepoError(
            f"layers must be below the {count} that {config.model_name} has, got {config.layers}",
            hint="to use the whole model as the oracle, give it to `sepo train-oracle` as it is",
        )
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    inputs = {"model": Input(config.model_name, model_hash(source)), **tokenizer_inputs(config.model_name, tokenizer)}
    with open_stage(STAGE, config, inputs) as work:
        if work.finished:
            return work.nothing_to_do("model")
        model = load_first_layers(source, config.layers, trust_remote_code=config.trust_remote_code)
        files = save_model_into(model, tokenizer, work.folder, promise=work.promise)
        warning = (
            "a model that was cut speaks nonsense until it is fine-tuned: give it to `sepo train-oracle` with SFT"
            " (--sft-epochs 1 or more), and to nothing before that"
        )
        reporter.warn(warning)
        work.finish(files=files, device="cpu", warnings=[warning])
        rows = [
            ("layers", f"{config.layers} of {count}"),
            ("parameters", f"{model.num_parameters():,}"),
            ("next", f"sepo train-oracle --model {work.folder} --dataset D --output-dir O"),
        ]
        return Summary(f"model in {work.folder}", rows)
