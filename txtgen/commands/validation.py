"""What a run measures on held-out text, and which of two measurements is the better."""

from itertools import islice, takewhile

from txtgen.commands.job import Job
from txtgen.commands.signals import StopRequest
from txtgen.data import Objective, validation_pairs, validation_parts
from txtgen.errors import DataError
from txtgen.evaluate import LossMetrics, evaluate_loss, translate_pairs, weighted_loss
from txtgen.generator import Generator


class Validation:
    """The held-out text of a run, the same at every measurement."""

    def __init__(self, job: Job, objective: Objective, generator: Generator) -> None:
        self.job, self.generator = job, generator
        data = job.config.data
        holds_out = bool(data.validation.sources or data.validation.fraction)
        self.weights = objective.weights
        self.parts = validation_parts(data, objective, **job.stream_options) if holds_out else {}

    def measure(self, stop: StopRequest, max_tokens: int | None = None) -> dict[str, float] | None:
        """Loss, bits per byte, and BLEU and chrF if one of them is the metric; empty if no text is held out.

        Of a mixture every part is measured on all of the text, and the loss of the whole is the mean by weight.
        None if any rank was asked to stop, for then only some of it was measured.

        Raises:
            DataError: BLEU or chrF is wanted, and the held-out text has no pairs.
        """
        config = self.job.config.train
        if not self.parts:
            return {}
        found: dict[str, LossMetrics] = {}
        for name, batches in self.parts.items():
            wanted = takewhile(lambda _: not self.job.world.any(bool(stop)), islice(batches, config.validation_batches))
            found[name] = evaluate_loss(self.job.model, wanted, self.job.dtype, self.job.world, max_tokens)
            if self.job.world.any(bool(stop)):
                return None
        loss = weighted_loss(found, self.weights) if self.weights else found[""]
        metrics = {"val_loss": loss.loss, "val_bits_per_byte": loss.bits_per_byte}
        metrics.update({f"val_loss_{name}": part.loss for name, part in found.items() if name})
        if config.validation_metric != "loss":
            metrics.update(self._translate())
        return metrics

    def is_better(self, metrics: dict[str, float], best: dict[str, float]) -> bool:
        """Whether metrics are better than the best so far, by the metric of the run."""
        metric = self.job.config.train.validation_metric
        key = f"val_{metric}"
        if key not in best:
            return True
        return metrics[key] < best[key] if metric == "loss" else metrics[key] > best[key]

    def _translate(self) -> dict[str, float]:
        """BLEU and chrF of greedily generated targets for the first held-out pairs."""
        config = self.job.config
        pairs = list(islice(validation_pairs(config.data, seed=config.seed), config.train.validation_translations))
        if not pairs:
            raise DataError(
                "validation_metric needs source and target pairs, and there are none",
                "train.validation_metric",
                "use validation_metric: loss",
            )
        tokenize = config.data.validation.bleu_tokenizer
        _, scores = translate_pairs(self.generator, pairs, tokenize, strategy="greedy")
        return {"val_bleu": scores.bleu, "val_chrf": scores.chrf}
