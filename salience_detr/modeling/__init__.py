"""The model: its stages in the order of the data, and the meta-architecture that runs them."""

from salience_detr.modeling.salience_detr import SalienceDETR

__all__ = ["SalienceDETR"]
