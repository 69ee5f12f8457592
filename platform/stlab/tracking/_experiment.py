"""A study's experiment in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stlab.errors import UserError
from stlab.storage import Store
from stlab.tracking._connection import is_database

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NOTE = "mlflow.note.content"  # what the page shows as the description
_KIND = "mlflow.experimentKind"  # spares the page's question whether these are language model traces


def find_or_create_experiment(client: MlflowClient, uri: str, store: Store, name: str, description: str) -> str:
    """The experiment's id; with a database, its artifacts go to ``mlartifacts/<name>`` in the store.

    Raises:
        UserError: it was deleted in MLflow.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None  # a server has a root of its own
        if is_database(uri):
            folder = f"mlartifacts/{name}"
            location = Path(store.path(folder)).as_uri() if store.is_local else f"{store.location.partition('?')[0]}/{folder}"
        tags = {_KIND: "custom_model_development"} | ({NOTE: description} if description else {})
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the experiment '{name}' was deleted in MLflow. Restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}) or give the study another name."
        )
    return str(found.experiment_id)
