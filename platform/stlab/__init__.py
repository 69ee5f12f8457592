"""stlab: studies of spatio-temporal forecasting models that give an answer that holds."""

__version__ = "0.1.0"
