"""How fast the transformers engine answers, beside one prompt at a time and plain `generate` in padded batches.

    python benchmarks/generation.py --model FOLDER --prompts prompts.jsonl --rows 24 --max-new-tokens 128
    python benchmarks/generation.py --model FOLDER --prompts prompts.jsonl --rows 2000 --max-new-tokens 8 --memory

Every round runs all three one after the other on the same prompts, at temperature 0:

ours        the engine: prompts to text and log-probs, batched under the token budget
one         `generate` on one prompt at a time
padded      `generate` on as many prompts as the engine's batches have at most, in the order of the file

Prints tokens a second of CPU time, which other work on the machine moves least, and of the clock, and their ratios.
With --memory ours alone, and the peak of the process: once with few rows and once with many.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import GenerationConfig

from stages.generation.engine import Request
from stages.generation.questions import read_questions
from stages.generation.transformers_engine import TransformersEngine
from stages.models.folders import load_model, load_tokenizer
from stages.tokens.encode import Encoder
from stages.types import CausalLM, Ids


def ours(engine: TransformersEngine, requests: list[Request]) -> int:
    return sum(len(answer.answer_ids) for _, answer in engine.answers(requests) if answer.answer_ids is not None)


@torch.no_grad()
def plain(model: CausalLM, prompts: list[Ids], end: int, max_new_tokens: int, batch_size: int) -> int:
    how = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=end)
    tokens = 0
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids_RT = torch.full((len(batch), width), end)
        attention_RT = torch.zeros_like(ids_RT)
        for row, prompt in enumerate(batch):
            ids_RT[row, width - len(prompt) :] = torch.from_numpy(prompt.astype("int64"))
            attention_RT[row, width - len(prompt) :] = 1
        found = model.generate(input_ids=ids_RT, attention_mask=attention_RT, generation_config=how)
        for answer in found[:, width:].tolist():
            tokens += answer.index(end) + 1 if end in answer else len(answer)
    return tokens


def timed(work: Callable[[], int]) -> dict[str, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {"tokens": tokens, "a second": tokens / clock, "a CPU second": tokens / cpu}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    encoder = Encoder(load_tokenizer(options.model, trust_remote_code=False))
    model = load_model(options.model, trust_remote_code=False).eval()
    engine = TransformersEngine(model, encoder, max_tokens=options.max_tokens)
    questions = [question.messages for question in read_questions(options.prompts)]
    repeated = (questions * (options.rows // len(questions) + 1))[: options.rows]
    requests = [Request(messages, 0.0, 1.0, options.max_new_tokens, 0) for messages in repeated]
    report: dict[str, object] = {"options": {name: str(value) for name, value in vars(options).items()}}
    if options.memory:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tokens = ours(engine, requests)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report["memory"] = {"tokens": tokens, "MiB before": before // 1024, "MiB at most": after // 1024}
    else:
        end = encoder.end_of_turn
        assert end is not None
        prompts = [encoder.prompt_ids(request.messages) for request in requests]
        rows = max(map(len, engine.together(requests)))
        works = {
            "ours": lambda: ours(engine, requests),
            "one": lambda: plain(model, prompts, end, options.max_new_tokens, 1),
            "padded": lambda: plain(model, prompts, end, options.max_new_tokens, rows),
        }
        rounds = []
        for number in range(options.rounds):
            rounds.append({name: timed(work) for name, work in works.items()})
            print(number, json.dumps(rounds[-1]), flush=True)
        report["rows of a batch"] = rows
        for of in ("a second", "a CPU second"):
            report[of] = {name: round(statistics.median(r[name][of] for r in rounds), 1) for name in works}
            report[f"ours, {of}, over"] = {
                name: round(statistics.median(r["ours"][of] / r[name][of] for r in rounds), 2)
                for name in ("one", "padded")
            }
    report["versions"] = {name: version(name) for name in ("torch", "transformers")}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
