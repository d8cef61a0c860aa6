"""The slow, obvious truth: plain Python floats, one response and one token at a time. Numerical tests compare with it."""

import math


def log_softmax(logits):
    highest = max(logits)
    total = math.log(sum(math.exp(x - highest) for x in logits))
    return [x - highest - total for x in logits]


def response_logps(model, prompt_ids, response_ids):
    """log p(y_i | q, y_<i) for every response token, from one unpadded row."""
    import torch

    ids = [int(i) for i in prompt_ids] + [int(i) for i in response_ids]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().tolist()
    logps = []
    for place in range(len(prompt_ids), len(ids)):
        logps.append(log_softmax(logits[place - 1])[ids[place]])
    return logps


def select(scores, ratio, highest):
    """Places of the ceil(ratio * n) best tokens (at least one), the earlier one first among equals."""
    wanted = max(1, math.ceil(round(ratio * len(scores), 6)))
    places = sorted(range(len(scores)), key=lambda i: (-scores[i] if highest else scores[i], i))
    return sorted(places[:wanted])


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > -30 else x


def mean(values, weights):
    return total(values, weights) / sum(weights)


def total(values, weights):
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


class Side:
    """One response: log-probs, reference log-probs, weights, KL and scores of its tokens, a list each."""

    def __init__(self, logps, reference=None, weights=None, kl=None, scores=None):
        self.logps = logps
        self.reference = reference or [0.0] * len(logps)
        self.weights = weights or [1.0] * len(logps)
        self.kl = kl or [0.0] * len(logps)
        self.scores = scores or [0.0] * len(logps)

    sum = property(lambda self: total(self.logps, self.weights))
    mean = property(lambda self: mean(self.logps, self.weights))
    ratio = property(lambda self: total(self.logps, self.weights) - total(self.reference, self.weights))
    sequence_kl = property(lambda self: total(self.kl, self.weights))
    mean_kl = property(lambda self: sum(self.kl) / len(self.kl))


def sepo_loss(chosen_logps, rejected_logps, chosen_selected, rejected_selected, gamma, margin):
    u_chosen = gamma / len(chosen_selected) * sum(chosen_logps[i] for i in chosen_selected)
    u_rejected = gamma / len(rejected_selected) * sum(rejected_logps[i] for i in rejected_selected)
    return -log_sigmoid(u_chosen - u_rejected - margin)


def simpo_loss(chosen_logps, rejected_logps, beta, gamma):
    """SimPO as its paper writes it (arXiv 2405.14734 Eq. 6)."""
    chosen = beta / len(chosen_logps) * sum(chosen_logps)
    rejected = beta / len(rejected_logps) * sum(rejected_logps)
    return -log_sigmoid(chosen - rejected - gamma)


def dpo_loss(chosen_logps, rejected_logps, chosen_reference, rejected_reference, beta):
    chosen = sum(chosen_logps) - sum(chosen_reference)
    rejected = sum(rejected_logps) - sum(rejected_reference)
    return -log_sigmoid(beta * (chosen - rejected))


def u(side, gamma, anchor_margin):
    return gamma * (side.ratio if anchor_margin else side.sum) / sum(side.weights)


def anchors(win, lose, sft_weight, kl_weight):
    return sft_weight * -win.mean + kl_weight * (win.mean_kl + lose.mean_kl) / 2


def sepo(win, lose, gamma, margin, sft_weight=0.0, kl_weight=0.0, anchor_margin=False):
    lead = u(win, gamma, anchor_margin) - u(lose, gamma, anchor_margin)
    return -log_sigmoid(lead - margin) + anchors(win, lose, sft_weight, kl_weight)


simpo = sepo


def sepo_hinge(win, lose, gamma, margin, sft_weight=0.0, kl_weight=0.0, anchor_margin=False):
    lead = u(win, gamma, anchor_margin) - u(lose, gamma, anchor_margin)
    return max(0.0, margin - lead) + anchors(win, lose, sft_weight, kl_weight)


def confpo(win, lose, gamma, margin):
    rewards = []
    for side in (win, lose):
        probabilities = [math.exp(logp) for logp in side.logps]
        threshold = mean(probabilities, side.weights)
        below = [
            (w, logp) for w, logp, p in zip(side.weights, side.logps, probabilities, strict=True) if w and p < threshold
        ]
        if not below:
            return 0.0
        rewards.append(gamma * sum(w * logp for w, logp in below) / sum(w for w, _ in below))
    return -log_sigmoid(rewards[0] - rewards[1] - margin)


def simper(win, lose):
    return math.exp(lose.mean) - math.exp(win.mean)


def dpo(win, lose, beta, sft_weight=0.0):
    return -log_sigmoid(beta * (win.ratio - lose.ratio)) + sft_weight * -win.mean


def ipo(win, lose, beta):
    return (win.ratio / sum(win.weights) - lose.ratio / sum(lose.weights) - 1 / (2 * beta)) ** 2


def rrhf(win, lose, sft_weight, kl_weight=0.0):
    return max(0.0, lose.mean - win.mean) - sft_weight * win.sum + anchors(win, lose, 0.0, kl_weight)


def tdpo1(win, lose, beta):
    u_pair = beta * win.ratio - beta * lose.ratio
    delta = beta * lose.sequence_kl - beta * win.sequence_kl
    return -log_sigmoid(u_pair - delta)


def tdpo(win, lose, beta, alpha):
    u_pair = beta * win.ratio - beta * lose.ratio
    delta = beta * lose.sequence_kl - beta * win.sequence_kl
    return -log_sigmoid(u_pair - alpha * delta)


def orpo(win, lose, beta, kl_weight=0.0):
    odds = [math.exp(side.mean) / (1 - math.exp(side.mean)) for side in (win, lose)]
    return -win.mean - beta * log_sigmoid(math.log(odds[0] / odds[1])) + anchors(win, lose, 0.0, kl_weight)


def cpo(win, lose, beta, sft_weight, kl_weight=0.0):
    return -log_sigmoid(beta * win.sum - beta * lose.sum) + anchors(win, lose, sft_weight, kl_weight)


def slic(win, lose, margin, sft_weight, kl_weight=0.0):
    return max(0.0, margin - win.sum + lose.sum) - sft_weight * win.sum + anchors(win, lose, 0.0, kl_weight)


def r_dpo(win, lose, beta, alpha):
    longer = sum(x != 0 for x in win.weights) - sum(x != 0 for x in lose.weights)
    return -log_sigmoid(beta * (win.ratio - lose.ratio) + alpha * longer)


def regress(win, lose, scale):
    loss = 0.0
    for side in (win, lose):
        for ours, theirs, weight, score in zip(side.logps, side.reference, side.weights, side.scores, strict=True):
            target = theirs + scale * score * weight
            loss += (ours - target) ** 2
    return loss


def kl(ours, theirs):
    """KL of two lists of logits: sum of p (log p - log q)."""
    ours, theirs = log_softmax(ours), log_softmax(theirs)
    return sum(math.exp(p) * (p - q) for p, q in zip(ours, theirs, strict=True))


def scores(oracle_logps, reference_logps):
    return [ours - theirs for ours, theirs in zip(oracle_logps, reference_logps, strict=True)]


def token_kl(model, other, prompt_ids, response_ids):
    """KL(model || other) of the distribution that each response token is drawn from."""
    import torch

    ids = [int(i) for i in prompt_ids] + [int(i) for i in response_ids]
    with torch.no_grad():
        ours, theirs = (each(input_ids=torch.tensor([ids])).logits[0].double().tolist() for each in (model, other))
    found = []
    for place in range(len(prompt_ids), len(ids)):
        found.append(kl(ours[place - 1], theirs[place - 1]))
    return found


def logistic_slopes(differences, coefficients):
    """First and second derivatives of the sum of log sigmoid(x . c) over the rows x of `differences`."""
    count = len(coefficients)
    first, second = [0.0] * count, [[0.0] * count for _ in range(count)]
    for row in differences:
        p = 1 / (1 + math.exp(-sum(x * c for x, c in zip(row, coefficients, strict=True))))
        for i in range(count):
            first[i] += (1 - p) * row[i]
            for j in range(count):
                second[i][j] -= p * (1 - p) * row[i] * row[j]
    return first, second


def quantile(values, share):
    """The usual linear interpolation between the two nearest values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def bootstrap(figure, draws):
    """Percentile interval of a figure of some items.

    Args:
        figure: a function of a list of the items' numbers.
        draws: lists of numbers, with repetitions.
    """
    values = [figure(draw) for draw in draws]
    return quantile(values, 0.025), quantile(values, 0.975)


def token_parts(ids, decode):
    """Each token's part of the text of all, by decoding every beginning of it."""
    parts, before = [], ""
    for end in range(1, len(ids) + 1):
        finished = decode(list(ids[:end])).rstrip("\ufffd")
        parts.append(finished[len(before) :])
        before = max(before, finished, key=len)
    return parts


def side_statistics(responses, sign, steps):
    """Of one side: [(ids, scores, selected)], lists of plain numbers.

    Returns:
        sums of max(0, sign * score) and of sign * score by step; tokens, selected ones and sum of scores by tenth; by id
        the same and the expected number of selected ones with its variance.
    """
    wanted, net, tenths, types = [0.0] * steps, [0.0] * steps, [[0, 0, 0.0] for _ in range(10)], {}
    for ids, scores, selected in responses:
        count = len(ids)
        order = sorted(range(count), key=lambda i: (-sign * scores[i], i))
        for rank, i in enumerate(order):
            wanted[rank * steps // count] += max(0.0, sign * scores[i])
            net[rank * steps // count] += sign * scores[i]
        share = sum(selected) / count
        for i in range(count):
            of_type = types.setdefault(ids[i], [0, 0, 0.0, 0.0, 0.0])
            for sums in (tenths[i * 10 // count], of_type):
                sums[0] += 1
                sums[1] += int(selected[i])
                sums[2] += scores[i]
            of_type[3] += share
            of_type[4] += share * (1 - share)
    return wanted, net, tenths, types
