"""Losses that stand in the graph, written out."""

from __future__ import annotations

from bnnopt.frontend.composed.body import Body, Writer, ints, number
from bnnopt.ops.operands import Operands


def _softmax_cross_entropy(o: Operands) -> Body:
    """The negative log-likelihood of log softmax(x), which is the second output."""
    text = "log_prob = LogSoftmax <axis = 1> (x)\n" + _likelihood(o, "log_prob")
    return Body(f"(x, labels, weights) => (loss, log_prob) {{ {text} }}")


def _negative_log_likelihood(o: Operands) -> Body:
    return Body(f"(x, labels, weights) => (loss) {{ {_likelihood(o, 'x')} }}")


def _likelihood(o: Operands, source: str) -> str:
    """loss_i = -w_i x[i, label_i]; the mean is their sum over that of w; w is 0 where ignored."""
    ignored, reduction = o.number_or_none("ignore_index"), o.text("reduction", "mean")
    text, labels, weight = ints("channel", [1]), "labels", "w" if o.has(2) else ""
    if ignored is not None:
        text += f"""skipped = Constant <value_int = {ignored}> () is_skipped = Equal (wide, skipped)
            first = Constant <value_int = 0> () known = Where (is_skipped, first, wide)
            {number("off", 0.0)} {number("on", 1.0)} kept = Where (is_skipped, off, on)
            """
        text = f"wide = Cast <to = 7> (labels)\n{text}"
        labels = "known"
    if o.has(2):
        text += f"w = Gather <axis = 0> (weights, {labels})\n"
    if ignored is not None:
        text += "share = Mul (w, kept)\n" if o.has(2) else "share = Identity (kept)\n"
        weight = "share"
    text += f"""places = Unsqueeze ({labels}, channel)
        picked = GatherElements <axis = 1> ({source}, places) likelihood = Squeeze (picked, channel)
        plain = Neg (likelihood) each = {f"Mul (plain, {weight})" if weight else "Identity (plain)"}
        """
    if reduction == "none":
        return f"{text} loss = Identity (each)"
    if reduction == "sum":
        return f"{text} loss = ReduceSum <keepdims = 0> (each)"
    if not weight:
        return f"{text} loss = ReduceMean <keepdims = 0> (each)"
    return f"""{text} total = ReduceSum <keepdims = 0> (each)
        count = ReduceSum <keepdims = 0> ({weight}) loss = Div (total, count)"""


BODIES: dict[str, Writer] = {
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
}
