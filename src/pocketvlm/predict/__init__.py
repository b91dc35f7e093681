"""Asking a released model about images: from the command line, and from Python. No torch."""

from pocketvlm.predict.answer import Prediction
from pocketvlm.predict.model import Model

__all__ = ["Model", "Prediction"]
