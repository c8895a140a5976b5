"""What a run measures on held-out text, which of two measurements is the better, and how long it waits for one."""

from itertools import islice
from typing import Any

from txtgen.commands.running.job import Job
from txtgen.commands.running.measuring import MeasuredText
from txtgen.commands.running.retention import Retention
from txtgen.commands.running.signals import StopRequest
from txtgen.config.objectives import DpoObjective
from txtgen.data import Objective, validation_pairs, validation_parts
from txtgen.distributed import is_sharded
from txtgen.errors import DataError, OutOfMemoryError
from txtgen.evaluate import translate_pairs, weighted_loss
from txtgen.generator import Generator
from txtgen.train import ReferenceTable


class Validation:
    """The held-out text of a run, the same at every measurement, and what became of the measurements so far."""

    def __init__(
        self, job: Job, objective: Objective, generator: Generator, reference: ReferenceTable | None = None
    ) -> None:
        self.job, self.generator = job, generator
        data = job.config.data
        self.retention = Retention(job)
        self.weights = objective.weights
        self.text = MeasuredText(
            validation_parts(data, objective, **job.stream_options) if data.held_out_kinds else {},
            job.config.train.validation_batches,
            job.loss if isinstance(data.objective, DpoObjective) else None,
            reference,
        )
        self.step = 0
        """The step that was measured last; a resumed run owes what was due and not done."""
        self.no_better = 0
        """Measurements in a row that were not better than the best before them."""

    def restore(self, training: dict[str, Any]) -> None:
        """Go on from the training state of a checkpoint."""
        self.step, self.no_better = training["validated"], training.get("no_better", 0)
        self.retention.restore(training)

    def progress(self) -> dict[str, Any]:
        """What `restore` takes up."""
        return {"validated": self.step, "no_better": self.no_better, **self.retention.progress()}

    def measure(self, stop: StopRequest, max_tokens: int | None = None) -> dict[str, float] | None:
        """Loss, bits per byte, and BLEU and chrF if one of them is the metric, if any text is held out; and what is
        left of the base model.

        Of a mixture every part is measured on all of the text, and the loss of the whole is the mean by weight. Of
        pairs of answers, the loss and what else it tells of preferences.
        None if any rank was asked to stop, for then only some of it was measured.

        Raises:
            DataError: BLEU or chrF is wanted, and the held-out text has no pairs.
            OutOfMemoryError: on all ranks, but those of a sharded model, who wait for one another within it.
        """
        metrics = self._measure_task(stop, max_tokens)
        kept = None if metrics is None else self.retention.measure(stop, max_tokens)
        return None if metrics is None or kept is None else {**metrics, **kept}

    def _measure_task(self, stop: StopRequest, max_tokens: int | None) -> dict[str, float] | None:
        found = self.text.measure(self.job, stop, max_tokens)
        if not found:
            return None if found is None else {}
        if self.text.loss is not None:
            return {"val_loss": found[""].loss, **{f"val_{name}": mean for name, mean in found[""].told.items()}}
        whole = weighted_loss(found, self.weights)
        metrics = {"val_loss": whole.loss, "val_bits_per_byte": whole.bits_per_byte}
        metrics.update({f"val_loss_{name}": part.loss for name, part in found.items() if name})
        if self.job.config.train.validation_metric != "loss":
            # Several ranks generate together only where each has but a part of the model.
            metrics.update(self._translate() if is_sharded(self.job.model) else self._translate_on_main())
        return metrics

    def improves(self, metrics: dict[str, float], best: dict[str, float]) -> bool:
        """Take up a measurement: whether it is better than the best so far, on every rank.

        Rank 0 decides, for it alone knows whether the best model so far could be saved.
        """
        better = self.job.world.gather(self._is_better(metrics, best))[0]
        self.no_better = 0 if better else self.no_better + 1
        return better

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.text.parts) or self.retention.measures

    @property
    def out_of_patience(self) -> bool:
        """Whether nothing has become better for as long as the config allows."""
        patience = self.job.config.train.patience
        return patience is not None and self.no_better >= patience

    def _is_better(self, metrics: dict[str, float], best: dict[str, float]) -> bool:
        """By the metric of the run."""
        metric = self.job.config.train.validation_metric
        key = f"val_{metric}"
        if key not in best:
            return True
        return metrics[key] < best[key] if metric == "loss" else metrics[key] > best[key]

    def _translate_on_main(self) -> dict[str, float]:
        """What rank 0 translates, while the others wait; if its memory runs out, all are told."""
        out: list[OutOfMemoryError] = []

        def translate() -> dict[str, float]:
            try:
                return self._translate()
            except OutOfMemoryError as error:
                out.append(error)
                return {}

        metrics = self.job.world.from_main(translate)
        self.job.world.raise_on_all(OutOfMemoryError, out[0] if out else None)
        return metrics

    def _translate(self) -> dict[str, float]:
        """BLEU and chrF of greedily generated targets for the first held-out pairs."""
        config = self.job.config
        pairs = list(islice(validation_pairs(config.data, seed=config.seed), config.train.validation_translations))
        if not pairs:
            raise DataError(
                "validation_metric needs source and target pairs, and none can be read of what is held out",
                "train.validation_metric",
                "use validation_metric: loss",
            )
        tokenize = config.data.validation.bleu_tokenizer
        _, scores = translate_pairs(self.generator, pairs, tokenize, strategy="greedy")
        return {"val_bleu": scores.bleu, "val_chrf": scores.chrf}
