"""What licences allow, by the texts that our sources write, and whose addresses are public."""

from __future__ import annotations

import pytest

from pocketvlm.publish.card import attribution
from pocketvlm.publish.dataset_copy import is_public
from pocketvlm.publish.licences import Licences, decide, terms

TEXTS = {
    "CC BY 4.0": ("attribution", "cc-by-4.0"),
    "cc-by-4.0": ("attribution", "cc-by-4.0"),
    "CC-BY-SA-4.0": ("share alike", "cc-by-sa-4.0"),
    "cc by": ("attribution", None),
    "Attribution License (http://creativecommons.org/licenses/by/2.0/)": ("attribution", "cc-by-2.0"),
    "Attribution-ShareAlike License (http://creativecommons.org/licenses/by-sa/2.0/)": ("share alike", None),
    "Attribution-NonCommercial License (http://creativecommons.org/licenses/by-nc/2.0/)": ("non-commercial", "cc-by-nc-2.0"),
    "Attribution-NonCommercial-ShareAlike License (http://creativecommons.org/licenses/by-nc-sa/2.0/)":
        ("non-commercial", "cc-by-nc-sa-2.0"),
    "Attribution-NoDerivs License (http://creativecommons.org/licenses/by-nd/2.0/)": ("nothing", None),
    "Attribution-NonCommercial-NoDerivs License (http://creativecommons.org/licenses/by-nc-nd/2.0/)": ("nothing", None),
    "Creative Commons Attribution-NonCommercial 4.0": ("non-commercial", "cc-by-nc-4.0"),
    "No known copyright restrictions (http://flickr.com/commons/usage/)": ("attribution", None),
    "United States Government Work (http://www.usa.gov/copyright.shtml)": ("attribution", None),
    "CC0: Public Domain": ("attribution", "cc0-1.0"),
    "mit": ("attribution", "mit"),
    "apache-2.0": ("attribution", "apache-2.0"),
    "odbl": ("share alike", "odbl"),
    "Unsplash License (https://unsplash.com/license)": ("nothing", None),
    "Unsplash Data License, Lite (https://unsplash.com/data-terms)": ("nothing", None),
    **dict.fromkeys(("permit", "other", "unknown", "", " "), ("nothing", None)),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_terms_of_a_licence_text(text: str) -> None:
    found = terms(text)
    assert (found.allows, found.hub_id) == TEXTS[text]
    assert bool(found.why) == (found.allows == "nothing")


def counted(**images: int) -> Licences:
    licences = Licences()
    for name, count in images.items():
        for number in range(count):
            licences.add(name.replace("_", " ") if name != "none" else None, f"author {number}", "folder")
    return licences


def test_every_image_must_have_a_licence_that_allows_it() -> None:
    assert decide(counted(cc_by=3, cc0=2), non_commercial=False).allowed
    assert not decide(counted(cc_by=3, none=1), non_commercial=False).allowed
    assert not decide(counted(cc_by=3, cc_by_nc=1), non_commercial=False).allowed
    assert decide(counted(cc_by=3, cc_by_nc=1), non_commercial=True).allowed
    assert not decide(counted(cc_by_nd=1), non_commercial=True).allowed
    assert not decide(Licences(), non_commercial=True).allowed


def test_many_authors_get_a_file_of_their_own() -> None:
    assert attribution(counted(cc_by=40)) is None
    text = attribution(counted(cc_by=41)) or ""
    assert text.count("\n- author") == 41
    assert "## cc by (41 images)" in text


@pytest.mark.parametrize(("url", "public"), [
    ("https://live.staticflickr.com/1/2.jpg", True), ("http://images.cocodataset.org/train2017/1.jpg", True),
    ("https://images.unsplash.com/photo-1?ixid=abc&w=400", True),
    ("file:///home/x/1.jpg", False), ("/home/x/1.jpg", False), ("s3://bucket/1.jpg", False), ("https://files/1.jpg", False),
    ("https://10.1.2.3/1.jpg", False), ("https://127.0.0.1:80/1.jpg", False), ("https://a:b@example.com/1.jpg", False),
    ("https://bucket.example.com/1.jpg?X-Amz-Signature=1", False), ("https://x.example.com/1.jpg?sig=1", False),
    ("https://store.svc/1.jpg", False), ("https://nas.local/1.jpg", False), ("https://[broken/1.jpg", False),
])  # fmt: skip
def test_which_addresses_are_public(url: str, public: bool) -> None:
    assert is_public(url) == public
