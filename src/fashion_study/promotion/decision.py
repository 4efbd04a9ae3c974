"""The options of a promotion, the contenders, and the decision with its evidence."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from fashion_study.errors import BadInputError, ExitCode
from fashion_study.promotion.gates import ClassRecall, Frozen, GateResult, Gates

LONGEST_REASON = 500


class Outcome(StrEnum):
    """The end of a promotion. A pending one was decided, and killed before the alias was moved."""

    PENDING = "pending"
    PROMOTED = "promoted"
    REFUSED = "refused"
    LOST = "lost"
    ROLLED_BACK = "rolled back"
    NOTHING_TO_DO = "nothing to do"


class PromotionConfig(Frozen):
    """What to promote; without `study`, `run` or `version` it is the version with the alias `challenger`.

    Raises:
        BadInputError: options that make no sense together, which are named, with the reason.
    """

    study: str | None = None
    run: str | None = None
    version: Annotated[int, Field(ge=1)] | None = None
    dry_run: bool = False
    force: str | None = None
    rollback: bool = False
    data_dir: Path | None = None
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("study", "run"):
            if (given := getattr(self, name)) is not None and not given.strip():
                raise BadInputError(f"--{name} is empty. Expected what names the challenger, or no --{name} at all.")
        named = [f"--{name}" for name in ("study", "run", "version") if getattr(self, name) is not None]
        if len(named) > 1:
            raise BadInputError(f"{' and '.join(named)} both name the challenger. Expected one of them.")
        others = ("force", "dry_run", "run", "version")
        beside = [f"--{name.replace('_', '-')}" for name in others if getattr(self, name) not in (None, False)]
        if self.rollback and beside:
            raise BadInputError(
                f"--rollback goes one step back from the champion; {beside[0]} does not go with it. "
                "Expected --rollback alone, or with --study to say of which data set."
            )
        if self.force is not None and self.dry_run:
            raise BadInputError("--force skips the evidence and --dry-run shows it. Expected one of them.")
        if self.force is not None and not 0 < len(self.force.strip()) <= LONGEST_REASON:
            raise BadInputError(
                f"--force has a reason of {len(self.force.strip())} characters. Expected 1 to {LONGEST_REASON}: "
                'it is recorded with the decision. For instance --force "first look".'
            )
        return self


class Contender(Frozen):
    """A model that is compared: a version of the registry, or a study's baseline trial."""

    role: Literal["challenger", "champion", "baseline trial"]
    title: str
    run_id: str
    sha256: str
    model_uri: str
    version: int | None = None
    study: str | None = None
    trial: int | None = None
    parameter_count: int | None = None
    right: int | None = None

    def __str__(self) -> str:
        return self.title


class HoldoutReading(Frozen):
    """How often the holdout was read for the study, this time included, and whether it was read this time."""

    images: int
    readings: int
    counted_on_run: str
    read_now: bool


def utc_now() -> str:
    """Return the time of a decision, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Decision(BaseModel):
    """A decision with its evidence, as it is recorded in `decision.json`.

    `reference` is the model that the challenger was compared with; the file calls it `opponent`. `skipped` names the
    gates that a forced promotion did not ask. `at` is ISO 8601, in UTC. `challenger` is the version that becomes
    champion again where `is_rollback`.
    """

    # A file has the sentence too, which is computed anew when it is read.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, serialize_by_alias=True)

    outcome: Outcome
    at: str
    registered_model: str
    dataset: str
    challenger: Contender
    reference: Contender | None = Field(None, alias="opponent")
    gates: tuple[GateResult, ...] = ()
    skipped: tuple[str, ...] = ()
    limits: Gates = Gates()
    recalls: tuple[ClassRecall, ...] = ()
    holdout: HoldoutReading | None = None
    forced: str | None = None
    dry_run: bool = False
    is_rollback: bool = False
    code_version: str = ""

    @property
    def folder(self) -> str:
        """Return the folder of this decision among the artifacts of the challenger's run."""
        return f"decisions/{self.at[:23].replace(':', '-')}Z"

    def judged(self, gates: tuple[GateResult, ...], **evidence: object) -> Self:
        """Return the decision that the gates make, with the evidence that they rest on."""
        outcome = Outcome.PENDING if all(gate.passed for gate in gates) else Outcome.REFUSED
        return self.model_copy(update={**evidence, "at": utc_now(), "gates": gates, "outcome": outcome})

    @property
    def failed(self) -> tuple[str, ...]:
        """Return the gates that did not let the challenger through."""
        return tuple(gate.name for gate in self.gates if not gate.passed)

    @property
    def exit_code(self) -> ExitCode:
        """Return the exit code of the command that decided this."""
        return ExitCode.ANSWER_IS_NO if self.outcome in (Outcome.REFUSED, Outcome.LOST) else ExitCode.DONE

    @computed_field  # type: ignore[prop-decorator]  # mypy does not support decorated properties
    @property
    def sentence(self) -> str:
        """Return the decision in one sentence."""
        challenger = self.challenger
        match self.outcome:
            case Outcome.NOTHING_TO_DO:
                return f"Nothing to do: {challenger} is the champion."
            case Outcome.LOST:
                return f"Not carried out: another command moved the alias, while {challenger} was to become champion."
            case Outcome.REFUSED:
                would = "would not become" if self.dry_run else "does not become"
                gates = f"gate{'s' if len(self.failed) > 1 else ''} {' and '.join(self.failed)}"
                return f"Refused: {challenger} {would} champion{self._against('compared with')}, for the {gates}."
            case Outcome.PENDING if self.dry_run:
                return f"Passed: {challenger} would become champion{self._against('having beaten')}."
            case Outcome.PENDING:
                return f"Decided and not carried out yet: {challenger} is to become champion{self._against('after')}."
            case Outcome.ROLLED_BACK:
                return f"Rolled back: {challenger} is champion again{self._against('after')}."
            case Outcome.PROMOTED:
                by_force = f" by force ({self.forced})" if self.forced else ""
                return f"Promoted{by_force}: {challenger} is champion now{self._against('having beaten')}."

    def _against(self, word: str) -> str:
        if self.reference is None:
            return ", the first one"
        return f", {'after' if self.forced else word} {self.reference}"
