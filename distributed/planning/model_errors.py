"""Errors of models that cannot be served. Each message is one sentence for the person at the terminal.

ModelError                the model cannot be served; the start stops with this message
|-- BadCheckpoint         missing, cut short or contradictory files
|-- UnsupportedModel      a model type or a feature of it that no provider serves
|-- CannotDownload        (hub_model.py) the Hub refused or cannot be reached
`-- DoesNotFit            (layer_plan.py) the ranks cannot hold it
"""


class ModelError(ValueError):
    """The model cannot be served."""


class BadCheckpoint(ModelError):
    """Files of the model are missing, cut short, or contradict each other."""


class UnsupportedModel(ModelError):
    """No provider serves this model type, or a feature this checkpoint uses."""
