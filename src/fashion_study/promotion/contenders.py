"""The contenders: which version is the challenger, and whom it has to beat."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion_study.errors import BadInputError, DamagedModelError, ExitCode, StudyError
from fashion_study.promotion.decision import Contender, PromotionConfig
from fashion_study.text import shown, shown_list
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, Registry, Version

# The number of a study's baseline trial.
BASELINE = 0


class NoReferenceModelError(StudyError):
    """Report that there is neither a champion nor a complete baseline trial."""

    exit_code = ExitCode.ANSWER_IS_NO


def choose_challenger(registry: Registry, config: PromotionConfig) -> Version:
    """Return the version that is asked for.

    Raises:
        BadInputError: there is none, or several could be meant.
        DamagedModelError: it was not registered by this project.
    """
    versions = [version for name in registry.names() for version in registry.versions(name)]
    chosen = _chosen(versions, config)
    if "dataset" not in chosen.tags or not chosen.sha256:
        raise DamagedModelError(
            f"{chosen} has no tag 'dataset' or 'model_sha256'. Expected a version that this project registered, "
            "with what it is to be checked against. Run its study again, which registers it."
        )
    return chosen


def choose_name(registry: Registry, study: str | None) -> str:
    """Return the registered model to roll back: the only one with a champion, or that of a study.

    Raises:
        BadInputError: there is none, or several could be meant.
    """
    versions = [version for name in registry.names() for version in registry.versions(name)]
    if study is not None:
        return _latest_of_study(versions, study).name
    names = sorted({version.name for version in versions if CHAMPION in version.aliases})
    if len(names) > 1:
        raise BadInputError(f"{' and '.join(names)} have a champion each. Name a study of one of them with --study.")
    if not names:
        raise BadInputError(
            "No registered model has a champion. Expected one to go back from; promote a version first."
        )
    return names[0]


def as_contender(version: Version, role: str) -> Contender:
    """Describe a version as a contender."""
    trial, parameters = (version.tags.get(key, "") for key in ("trial", "parameter_count"))
    return Contender(
        role="challenger" if role == CHALLENGER else "champion",
        title=str(version),
        run_id=version.run_id,
        sha256=version.sha256,
        model_uri=version.model_uri,
        version=version.number,
        study=version.study,
        trial=int(trial) if trial.isdecimal() else None,
        parameter_count=int(parameters) if parameters.isdecimal() else None,
    )


def baseline_of(client: MlflowClient, challenger: Version) -> Contender:
    """Return the baseline trial of the challenger's study, which a first champion has to beat.

    Raises:
        NobodyToBeatError: the challenger has no study, or its baseline trial is not complete.
    """
    study_run = parent_run(client, challenger)
    experiment = client.get_run(study_run).info.experiment_id
    condition = (
        f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{study_run}' and tags.kind = 'trial' and tags.trial = '{BASELINE}' "
        "and tags.state = 'complete'"
    )
    runs = [run for run in client.search_runs([experiment], condition) if "model_uri" in run.data.tags]
    if not runs:
        raise NoReferenceModelError(
            f"There is no champion, and {challenger} comes from no study with a complete baseline trial. Expected one "
            'of them to compare with. Promote it without a comparison: --force "the reason".'
        )
    tags = runs[0].data.tags
    return Contender(
        role="baseline trial",
        title=f"the baseline trial of study {tags['study']}",
        run_id=runs[0].info.run_id,
        sha256=tags["model_sha256"],
        model_uri=tags["model_uri"],
        study=tags["study"],
        trial=BASELINE,
    )


def parent_run(client: MlflowClient, version: Version) -> str:
    """Return the run above a version's run, its study's where it has one: readings of the holdout are counted there.

    Raises:
        DamagedModelError: the version's run is gone.
    """
    try:
        tags = client.get_run(version.run_id).data.tags
    except MlflowException as error:
        raise DamagedModelError(
            f"The run {version.run_id!r} of {version} is gone: {error}. Expected the evidence that it was registered "
            "with. Register a fresh model, by running its study again."
        ) from error
    return str(tags.get(MLFLOW_PARENT_RUN_ID, version.run_id))


def _chosen(versions: list[Version], config: PromotionConfig) -> Version:
    if config.study is not None:
        return _latest_of_study(versions, config.study)
    if config.run is not None:
        return _only(
            [version for version in versions if version.run_id == config.run],
            f"No version was registered from the run {shown(config.run)}",
            "--version",
        )
    if config.version is not None:
        return _only(
            [version for version in versions if version.number == config.version],
            f"No registered model has a version {config.version}",
            "--run",
        )
    challengers = [version for version in versions if CHALLENGER in version.aliases]
    return _only(challengers, "No version has the alias 'challenger'", "--study")


def _latest_of_study(versions: list[Version], study: str) -> Version:
    """Take the challenger of a study where it still is the challenger, else the study's latest version."""
    own = [version for version in versions if version.study == study]
    if not own:
        studies = sorted({version.study for version in versions if version.study})
        raise BadInputError(
            f"No version comes from a study {shown(study)}. "
            f"Expected one of {shown_list(tuple(studies)) or 'none: run a study'}."
        )
    return max(own, key=lambda version: (CHALLENGER in version.aliases, version.number))


def _only(found: list[Version], nothing: str, option: str) -> Version:
    if not found:
        raise BadInputError(f"{nothing}. Run a study first, whose end registers one, or name its store with --store.")
    if len(found) > 1:
        raise BadInputError(
            f"{' and '.join(str(version) for version in found)} could be meant. Name the one with {option}."
        )
    return found[0]
