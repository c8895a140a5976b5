"""What the model of a run makes of a few prompts while it learns."""

from collections.abc import Iterator

from txtgen.commands.running.job import Job
from txtgen.config.checkpoint import chat_format
from txtgen.distributed import is_sharded
from txtgen.generator import Generation, Generator


class Samples:
    """The sample prompts of a run, and what its model makes of them.

    Raises:
        TxtgenError: a prompt cannot be gone on from, being too long for one.
    """

    def __init__(self, job: Job, generator: Generator) -> None:
        self.job, self.generator = job, generator
        self.generate()  # before anything is trained

    def generate(self) -> Iterator[Generation]:
        """What the model makes of the prompts, once it is asked for."""
        samples = self.job.config.samples
        if not samples.prompts:
            return iter(())
        options = {name: value for name, value in samples.decoding.model_dump().items() if value is not None}
        return self.generator.iterate(list(samples.prompts), gap=samples.gap, **options)

    @property
    def are_made_here(self) -> bool:
        """Whether this rank generates: rank 0 does, and all do together where each has but a part of the model."""
        return self.job.world.is_main or is_sharded(self.job.model)

    @property
    def are_made_alone(self) -> bool:
        """Whether the rank that generates meets no other one while it does."""
        return not is_sharded(self.job.model)

    @property
    def every(self) -> int:
        """Steps from one time to the next: samples that have no rhythm of their own follow validation."""
        return self.job.config.samples.every or self.job.config.train.validate_every

    @property
    def joint(self) -> str:
        """What stands between a prompt and its text when they are shown: nothing where the one goes on as the other."""
        goes_on = self.job.model.config.kind == "decoder" and chat_format(self.job.settled.data) is None
        return "" if goes_on and self.job.config.samples.gap is None else " -> "
