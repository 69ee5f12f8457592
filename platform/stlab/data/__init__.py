"""Data: from a file to windows on the device, under a protocol that lets nothing later be seen."""

from stlab.data.dataset import Dataset
from stlab.data.load import load_dataset
from stlab.data.protocol.scaler import Scaler
from stlab.data.windows import Windows

__all__ = ["Dataset", "Scaler", "Windows", "load_dataset"]
