"""The contenders of a promotion: the challenger, and the reference model that it has to beat."""

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion_study.errors import BadInputError, DamagedModelError, ExitCode, StudyError
from fashion_study.promotion.decision import Contender, PromotionConfig
from fashion_study.text import shown, shown_list
from fashion_study.tracking.registry import CHALLENGER, ModelRef, RegisteredModel, Version
from fashion_study.trial import BASELINE_NUMBER, TrialState


class NoReferenceModelError(StudyError):
    """There is neither a champion nor a complete baseline trial."""

    exit_code = ExitCode.ANSWER_IS_NO


def choose_challenger(models: Sequence[RegisteredModel], config: PromotionConfig) -> Version:
    """Return the version that is asked for.

    Raises:
        BadInputError: there is none, or several fit.
        DamagedModelError: it was not registered by this project.
    """
    chosen = _chosen([version for model in models for version in model.versions], config)
    if "dataset" not in chosen.tags or not chosen.sha256:
        raise DamagedModelError(
            f"{chosen} has no tag 'dataset' or 'model_sha256'. Expected a version that this project registered, "
            "with what it is to be checked against. Run its study again, which registers it."
        )
    return chosen


def choose_model(models: Sequence[RegisteredModel], study: str | None) -> RegisteredModel:
    """Return the registered model to roll back: the only one with a champion, or that of a study.

    Raises:
        BadInputError: there is none, or several fit.
    """
    if study is not None:
        name = _latest_of_study([version for model in models for version in model.versions], study).name
        return next(model for model in models if model.name == name)
    found = [model for model in models if model.champion is not None]
    if len(found) > 1:
        names = " and ".join(model.name for model in found)
        raise BadInputError(f"{names} have a champion each. Name a study of one of them with --study.")
    if not found:
        raise BadInputError(
            "No registered model has a champion. Expected one to go back from; promote a version first."
        )
    return found[0]


def as_contender(version: Version, role: str) -> Contender:
    """Return a version as a contender."""
    trial, parameters = (version.tags.get(key, "") for key in ("trial", "parameter_count"))
    return Contender(
        role="challenger" if role == CHALLENGER else "champion",
        title=str(version),
        run_id=version.run_id,
        sha256=version.sha256,
        model_uri=version.uri,
        version=version.number,
        study=version.study,
        trial=int(trial) if trial.isdecimal() else None,
        parameter_count=int(parameters) if parameters.isdecimal() else None,
    )


def baseline_of(client: MlflowClient, challenger: Version) -> Contender:
    """Return the baseline trial of the challenger's study, which a first champion has to beat.

    Raises:
        NoReferenceModelError: the challenger has no study, or its baseline trial is not complete.
    """
    study_run = parent_run(client, challenger)
    condition = (
        f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{study_run}' and tags.kind = 'trial' "
        f"and tags.trial = '{BASELINE_NUMBER}' and tags.state = '{TrialState.COMPLETE}'"
    )
    runs = client.search_runs([client.get_run(study_run).info.experiment_id], condition)
    run = next((run for run in runs if "model_uri" in run.data.tags), None)
    if run is None:
        raise NoReferenceModelError(
            f"There is no champion, and {challenger} comes from no study with a complete baseline trial. Expected one "
            'of them to compare with. Promote it without a comparison: --force "the reason".'
        )
    study, model = run.data.tags["study"], ModelRef.of_run(run)
    return Contender(
        role="baseline trial",
        title=f"the baseline trial of study {study}",
        run_id=run.info.run_id,
        sha256=model.sha256,
        model_uri=model.uri,
        study=study,
        trial=BASELINE_NUMBER,
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
        found = [version for version in versions if version.run_id == config.run]
        nothing, option = f"No version was registered from the run {shown(config.run)}", "--version"
    elif config.version is not None:
        found = [version for version in versions if version.number == config.version]
        nothing, option = f"No registered model has a version {config.version}", "--run"
    else:
        found = [version for version in versions if CHALLENGER in version.aliases]
        nothing, option = "No version has the alias 'challenger'", "--study"
    if not found:
        raise BadInputError(f"{nothing}. Run a study first, whose end registers one, or name its store with --store.")
    if len(found) > 1:
        raise BadInputError(f"{' and '.join(map(str, found))} could be meant. Name the one with {option}.")
    return found[0]


def _latest_of_study(versions: list[Version], study: str) -> Version:
    """Return the challenger of a study where it still is the challenger, else the study's latest version."""
    own = [version for version in versions if version.study == study]
    if not own:
        studies = sorted({version.study for version in versions if version.study})
        raise BadInputError(
            f"No version comes from a study {shown(study)}. "
            f"Expected one of {shown_list(tuple(studies)) or 'none: run a study'}."
        )
    return max(own, key=lambda version: (CHALLENGER in version.aliases, version.number))
