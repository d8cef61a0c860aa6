"""The one small type that crosses each border of the pipeline.

Pair (text) -> TokenPair (ids) -> Example (ids and weights) -> Batch (tensors) -> per-token log-probs -> PairLoss, and
ScoredPair (ids and scores) on disk.

Shapes: ``P`` prompt tokens, ``C`` chosen response tokens, ``J`` rejected response tokens; ``B`` pairs of a batch,
``R = 2B`` rows (every chosen, then every rejected), ``T`` tokens of the longest row.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]

SIDES: Final = ("chosen", "rejected")
"""of a pair"""

Message = dict[str, str]
"""A turn of a conversation: ``{"role": "user", "content": "..."}``."""

_NO_ARGUMENTS: dict[str, Any] = {}
Item = TypeVar("Item")
Other = TypeVar("Other")


class Lazy(Sequence[Item], ABC):
    """Items that are made when they are asked for, and kept by nobody."""

    @abstractmethod
    def at(self, index: int) -> Item:
        """The item at an index from 0."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        found = range(len(self))[index]
        return self.at(found) if isinstance(found, int) else [self.at(each) for each in found]

    def pick(self, indices: NDArray[np.int64]) -> Lazy[Item]:
        """The items at some indices."""
        return Lazily(len(indices), lambda index: self.at(int(indices[index])))

    def map(self, make: Callable[[Item], Other]) -> Lazy[Other]:
        """What is made of each item."""
        return Lazily(len(self), lambda index: make(self.at(index)), lambda: map(make, self))


class Lazily(Lazy[Item]):
    """Items that a function makes of their indices.

    Args:
        iterate: all of them in order, where that is quicker than one by one.
    """

    def __init__(
        self, length: int, make: Callable[[int], Item], iterate: Callable[[], Iterator[Item]] | None = None
    ) -> None:
        self._length, self._make, self._iterate = length, make, iterate

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        return self._iterate() if self._iterate else map(self._make, range(self._length))

    def at(self, index: int) -> Item:
        return self._make(index)


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers, fast or slow."""

    added_tokens_decoder: Mapping[int, Any]
    all_special_ids: Sequence[int]
    all_special_tokens: Sequence[str]
    bos_token_id: int | None
    chat_template: Any
    eos_token_id: int | None
    init_kwargs: Mapping[str, Any]
    is_fast: bool
    pad_token_id: int | None
    special_tokens_map: Mapping[str, Any]
    split_special_tokens: bool
    unk_token_id: int | None

    @property
    def backend_tokenizer(self) -> Any:
        """that of the library tokenizers, in a fast one"""

    def __call__(self, text: Any, **how: Any) -> Any: ...
    def __len__(self) -> int: ...
    def apply_chat_template(self, conversation: Any, **how: Any) -> Any: ...
    def batch_decode(self, sequences: Any, **how: Any) -> Any: ...
    def convert_ids_to_tokens(self, ids: Any) -> Any: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...
    def decode(self, token_ids: Any, **how: Any) -> Any: ...
    def get_chat_template(self, chat_template: Any = None, tools: Any = None) -> str: ...
    def get_vocab(self) -> dict[str, int]: ...
    def save_pretrained(self, save_directory: Any) -> Any: ...
    def save_vocabulary(self, save_directory: str) -> Any: ...


class CausalLM(Protocol):
    """What is asked of a causal language model of transformers, with or without an adapter inside."""

    config: Any
    generation_config: Any
    training: bool
    own_attention: bool
    """set where it has to attend by itself, and no pairs may be packed into its rows; else missing"""

    @property
    def base_model(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(self, *inputs: Any, **how: Any) -> Any: ...
    def children(self) -> Iterator[torch.nn.Module]: ...
    def dequantize(self) -> Any: ...
    def eval(self) -> Any: ...
    def forward(self, *inputs: Any, **how: Any) -> Any: ...
    def generate(self, *inputs: Any, **how: Any) -> Any: ...
    def get_input_embeddings(self) -> Any: ...
    def get_output_embeddings(self) -> Any: ...
    def modules(self) -> Iterator[Any]: ...
    def named_modules(self) -> Iterator[tuple[str, Any]]: ...
    def named_parameters(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, torch.nn.Parameter]]: ...
    def num_parameters(self) -> int: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def save_pretrained(self, save_directory: Any, **how: Any) -> Any: ...
    def set_attn_implementation(self, attn_implementation: str) -> None: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
    def to(self, device: torch.device) -> CausalLM: ...
    def train(self, mode: bool = True) -> Any: ...


class Pair(NamedTuple):
    """One row of a preference data set, as text.

    `prompt` is a list of messages that ends where an answer is expected (a string prompt is one user message);
    `chosen` and `rejected` are the texts of the two answers. In an SFT data set `rejected` is empty.
    """

    pair_id: int
    """row number in the data set it was read from, from 0, before anything was dropped"""
    prompt: list[Message]
    chosen: str
    rejected: str
    template_arguments: dict[str, Any] = _NO_ARGUMENTS
    """what the row passes to the chat template beside its turns, such as ``{"tools": [...]}``; never changed"""


class Dropped(NamedTuple):
    """A row that cannot be used, and why, in the words that the counts will show."""

    pair_id: int
    reason: str


class TokenPair(NamedTuple):
    """One pair as token ids. A response includes its end-of-turn token if it has one."""

    pair_id: int
    prompt_ids: Ids
    """(P,)"""
    chosen_ids: Ids
    """(C,)"""
    rejected_ids: Ids
    """(J,), empty in SFT data"""

    @property
    def parts(self) -> tuple[Ids, Ids, Ids]:
        """Prompt, chosen and rejected response."""
        return self.prompt_ids, self.chosen_ids, self.rejected_ids


def content_hash(pair: TokenPair) -> int:
    """64 bits that stand for all of a pair's ids and where each part ends, but not for its number."""
    lengths = np.array([len(part) for part in pair.parts], "<i4")
    return hash_ids(lengths, *(np.ascontiguousarray(part, "<i4") for part in pair.parts))


def hash_ids(*parts: NDArray[np.int32]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.data)
    return int.from_bytes(digest.digest(), "little")


def longest(pair: TokenPair) -> int:
    """Tokens of the longer of a pair's two rows, prompt included."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


class PairLogps(NamedTuple):
    """Log-probs of the response tokens of one pair under one model, in nats; a value stands at its own token."""

    chosen: Floats
    """(C,)"""
    rejected: Floats
    """(J,)"""


class PairWeights(NamedTuple):
    """How much each response token of one pair counts; 0 for one that takes no part."""

    chosen: Floats
    """(C,)"""
    rejected: Floats
    """(J,)"""


class ScoredPair(NamedTuple):
    """One row of a shard: a pair, and for every response token its score and, where known, its reference log-prob."""

    pair: TokenPair
    scores: PairLogps
    """s(y_i) = log pi_ora(y_i | q, y_<i) - log pi_ref(y_i | q, y_<i), in nats, no beta"""
    reference: PairLogps | None
    weights: PairWeights | None = None
    """weights of the tokens that came with the scores, if any did"""


class ReferenceSums(NamedTuple):
    """Of each response of a pair the sum of weight * reference log-prob, in nats."""

    chosen: float
    rejected: float


class Joined(NamedTuple):
    """What a rule and a reference say of one scored pair."""

    row: int
    """of the pair, among those that the rule was given"""
    weights: PairWeights
    reference: ReferenceSums | None
    token_reference: PairLogps | None
    """reference log-probs of every token, where a loss looks at them one by one"""


class PerToken(NamedTuple):
    """What is known of every response token of a pair, selected or not, in nats."""

    reference: PairLogps
    scores: PairLogps


class Response(NamedTuple):
    """One response of an example, as batches take it."""

    ids: Ids
    """(C,) or (J,)"""
    weights: Floats
    """the same shape"""
    reference: float | None
    token_reference: Floats | None = None
    """the same shape"""
    scores: Floats | None = None
    """the same shape"""


class Example(NamedTuple):
    """What training needs of one pair: its ids, the weight of every response token, its reference log-probs."""

    pair: TokenPair
    weights: PairWeights
    reference: ReferenceSums | None = None
    """for objectives that have a reference"""
    per_token: PerToken | None = None
    """for losses that look at tokens one by one; all of them are then needed"""

    @property
    def responses(self) -> list[Response]:
        """The chosen one, then the rejected one, which SFT data does not have."""
        nothing = (None, None)
        values = (self.weights, self.reference or nothing, *(self.per_token or (nothing, nothing)))
        responses = map(Response, (self.pair.chosen_ids, self.pair.rejected_ids), *values)
        return list(responses) if len(self.pair.rejected_ids) else [next(responses)]


def selected_share(example: Example) -> float:
    """The share of a pair's response tokens that take part."""
    return float(sum(map(np.count_nonzero, example.weights)) / sum(map(len, example.weights)))


class Batch(NamedTuple):
    """Examples as padded tensors. Rows: every chosen response, then every rejected one (SFT data: chosen only)."""

    ids_RT: Tensor
    """int64, prompt then response then padding"""
    attention_RT: Tensor
    """int64, 1 on real tokens"""
    weights_RW: Tensor
    """float32, the weights at the response tokens, 0 elsewhere; as wide as the rows, W = T"""
    reference_R: Tensor | None
    """float32, of each response the sum of weight * reference log-prob; None without a reference"""
    needed_RW: Tensor
    """bool, the tokens whose log-probs are computed: the weighted ones, or with a KL, or where every token's
    reference log-prob is known, all of the responses"""
    kl_RW: Tensor | None = None
    """float32 nats, divergence from a reference over the whole vocabulary at every needed token, if asked for"""
    reference_RW: Tensor | None = None
    """float32, the reference log-probs of the needed tokens, 0 elsewhere, for losses that look at them one by one"""
    scores_RW: Tensor | None = None
    """float32 nats, their scores, where `reference_RW` is known"""


class Weighted(Protocol):
    """What an objective sees of a batch, as in `Batch`: W places a response, in whatever order it has its tokens."""

    @property
    def weights_RW(self) -> Tensor: ...
    @property
    def reference_R(self) -> Tensor | None: ...
    @property
    def needed_RW(self) -> Tensor: ...
    @property
    def reference_RW(self) -> Tensor | None: ...
    @property
    def scores_RW(self) -> Tensor | None: ...
    @property
    def kl_RW(self) -> Tensor | None: ...


class PairLoss(NamedTuple):
    """What an objective makes of a batch."""

    loss_B: Tensor
    """one loss a pair; the loop divides their sum by the size of the whole step"""
    metrics: dict[str, Tensor]
    """detached values to be averaged over pairs, each (B,)"""
