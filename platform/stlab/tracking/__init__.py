"""MLflow as a view of a study's directories. No other package imports mlflow, and this one imports it only on use."""

from stlab.tracking._connection import TrackingUnavailable, connect, default_uri, reaching, ui_command
from stlab.tracking._sync import sync
from stlab.tracking._tracker import Tracker
from stlab.tracking._views import study_url

__all__ = ["Tracker", "TrackingUnavailable", "connect", "default_uri", "reaching", "study_url", "sync", "ui_command"]
