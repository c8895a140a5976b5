"""Whether a fast way to compute gives what the slow one gives."""

from torch import Tensor

FAR = {"float32": 1e-3, "short": 0.03, "fused": 0.1, "quantised": 0.3}
"""How far what two ways compute may lie apart, as a share of its spread. Short weights come with keys and values in
bfloat16; compiled code of short weights rounds at fewer places; quantised ones meet inputs that are rounded, too."""


def disagreement(quick: Tensor, exact: Tensor, kind: str) -> str:
    """What is to be said of logits that lie further apart than weights of this kind explain; "" where they do not."""
    apart = float((quick - exact).abs().max() / exact.std())
    if apart <= FAR[kind]:
        return ""
    return f"it is wrong on this machine, by {apart:.2g} times the spread of the logits"
