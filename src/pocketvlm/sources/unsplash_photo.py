"""One photograph of Unsplash, where its image is, and how its photographer is named."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import BaseModel, ConfigDict

JPEG_QUALITY = 85


class Photo(BaseModel):
    """What is kept of a photograph."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    image: str
    """Address at the image server; its parameters stay, since Unsplash counts views by them."""
    page: str
    """Address of the photograph's page."""
    author: str
    profile: str
    """Address of the author's page."""
    download: str | None = None
    """What the API's terms ask to be called for each download."""
    alt: str | None = None
    """Unsplash's own description."""


def image_url(photo: Photo, width_px: int) -> str:
    """The image as a JPEG of at most this width; smaller ones are not enlarged (`fit=max`)."""
    return with_parameters(photo.image, {"w": str(width_px), "fit": "max", "fm": "jpg", "q": str(JPEG_QUALITY)})


def attributed(url: str, application: str) -> str:
    """A link to Unsplash as its guidelines want it."""
    return with_parameters(url, {"utm_source": application, "utm_medium": "referral"})


def attribution(photo: Photo, application: str) -> str:
    """The photographer and Unsplash, named as its guidelines want it."""
    return f"{photo.author} ({attributed(photo.profile, application)}) on Unsplash"


def with_parameters(url: str, parameters: dict[str, str]) -> str:
    """`url` with these parameters in place of its own of the same names."""
    parts = urlsplit(url)
    others = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in parameters]
    return parts._replace(query=urlencode([*others, *parameters.items()])).geturl()
