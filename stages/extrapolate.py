"""`sepo extrapolate`: a model as far from its reference as is wanted, without training.

    theta_ref + scale * (theta - theta_ref)

(Task arithmetic, arXiv 2212.04089 section 2, of one task; ExPO, arXiv 2404.16792, has a scale above 1.)
"""

from typing import Final

from stages.configs import ExtrapolateConfig
from stages.errors import SepoError
from stages.models.extrapolation import move_along, refuse_other_shapes
from stages.models.folders import (
    described_in,
    load_model,
    load_tokenizer,
    load_without_weights,
    model_hash,
    resolve_model,
    save_model_into,
)
from stages.models.quantization import quantized
from stages.reporting import Reporter, Summary
from stages.store.manifest import Input
from stages.store.run import open_stage
from stages.tokens.fingerprint import refuse_other_tokens, tokenizer_inputs

STAGE: Final = "extrapolate"


def run(config: ExtrapolateConfig, reporter: Reporter) -> Summary:
    """Write the model as an ordinary folder, in the precision that the given one has."""
    names, trust = (config.model_name, config.reference_model), config.trust_remote_code
    source, reference = (resolve_model(name, reporter) for name in names)
    for name, folder in zip(names, (source, reference), strict=True):
        if bits := quantized(folder):
            raise SepoError(f"{name} holds its weights in {bits}", hint="give the model that it was made from")
    described = map(described_in, (source, reference))
    ours, theirs = (load_without_weights(folder, trust_remote_code=trust) for folder in described)
    refuse_other_shapes(ours, theirs, names)
    tokenizer, other = (load_tokenizer(folder, trust_remote_code=trust) for folder in (source, reference))
    hint = "give the model that this one was trained from"
    refuse_other_tokens(tokenizer, other, f"{names[0]} and {names[1]}", hint)
    inputs = {
        "model": Input(names[0], model_hash(source)),
        "reference": Input(names[1], model_hash(reference)),
        **tokenizer_inputs(names[0], tokenizer),
    }
    with open_stage(STAGE, config, inputs) as work:
        if work.finished:
            return work.nothing_to_do("model")
        model = load_model(source, trust_remote_code=trust, dtype="auto", ordinary=True)
        origin = load_model(reference, trust_remote_code=trust, dtype="auto", ordinary=True)
        refuse_other_shapes(model, origin, names)
        distance = move_along(model, origin, config.scale)
        files = save_model_into(model, tokenizer, work.folder, promise=work.promise)
        work.finish(files=files, device="cpu", results={"distance": distance})
        rows = [
            ("scale", f"{config.scale:g} (0 is {names[1]}, 1 is {names[0]})"),
            ("parameters", f"{model.num_parameters():,}"),
            ("distance from the reference", f"{distance:.4g} now; root of the summed squares of the differences"),
        ]
        return Summary(f"model in {work.folder}", rows)
