"""The policy's own doubt, without an oracle."""

from stages.method.selection import Evidence, Selection, ranked
from stages.types import PairLogps


def confidence(evidence: Evidence, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the tokens that the starting policy is least sure of, in both responses, as in ConfPO, arXiv 2506.08712

    ConfPO asks the policy anew in every step and takes the tokens below the mean of their response; here the share is
    given, and the starting policy is asked once.
    """
    keys = (PairLogps(-logps.chosen, -logps.rejected) for logps in evidence.start_logps)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=False)
