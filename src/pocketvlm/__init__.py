"""PocketVLM: images in, a small vision-language model for phones out, measured as shipped.

From Python, a released model is asked in three lines:

    from pocketvlm import Model
    model = Model.open("digits")
    print(model.predict("photo.png"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketvlm.predict import Model, Prediction

__all__ = ["Model", "Prediction"]


def __getattr__(name: str) -> Any:
    """What is exported is imported when it is first asked for: every stage imports this package."""
    if name in __all__:
        from pocketvlm import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
