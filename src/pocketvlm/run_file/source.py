"""Where images come from: one block for each kind."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pocketvlm.run_file.block import Block, Commit, Sha256


class Fetch(Block):
    """How images are downloaded. Whoever serves them is not trusted."""

    allow_hosts: list[str] = Field(default_factory=list)
    """Hosts that may be asked, beside the source's own; `host:port` for any but the default port."""
    allow_http: bool = False
    """Allow plain http too; otherwise https only, after redirects too."""
    allow_private_hosts: bool = False
    """Allow hosts whose addresses are not public: a server inside the cluster, or on this machine."""
    max_bytes: int = Field(default=20_000_000, ge=1)
    """A larger image is quarantined."""
    max_redirects: int = Field(default=3, ge=0, le=20)
    """An image behind more redirects is quarantined."""
    timeout_s: float = Field(default=30, gt=0)
    """Longest time of one try, from the first byte sent to the last received."""
    deadline_s: float = Field(default=300, gt=0)
    """Longest time of all tries of one image: server errors, 429 and lost connections are tried again until then."""
    parallel: int = Field(default=16, ge=1, le=256)
    """Downloads at once."""


class DigitsSource(Block):
    """The 1,797 handwritten digits that scikit-learn ships (UCI, CC BY 4.0), 8x8 grey, enlarged to `side_px`."""

    kind: Literal["digits"]
    side_px: int = Field(default=32, ge=8, le=512)
    """Side of the enlarged image, nearest neighbour."""
    limit: int | None = Field(default=None, ge=10)
    """Take only the first images, for tests."""


class FolderSource(Block):
    """Class sub-folders: `<path>/<class>/<image>`, as Kaggle sets come. With a teacher, images may lie anywhere in it."""

    kind: Literal["folder"]
    path: str
    """The folder; relative to the run file."""
    class_folders: dict[str, str] = Field(default_factory=dict)
    """Folder name -> class name, where they differ."""
    licence: str | None = None
    """Licence of the images, kept with each of them."""


class RecordsSource(Block):
    """A JSON, JSONL or CSV file with `image_id, image_path` and a label column, or a column for each field of an `extract` task;
    optionally `reason, confidence`."""

    kind: Literal["records"]
    path: str
    """The file; relative to the run file. `image_path` in it is relative to `images`."""
    images: str | None = None
    """Folder of the images; default: the folder of `path`."""
    label_column: str | None = None
    """Name of the label's column (for example `element`); default: `label`. With a teacher there may be none. For `extract`: the
    column that holds all fields as JSON; default: each field has its own."""
    field_columns: dict[str, str] = Field(default_factory=dict)
    """For `extract`: field -> its column, or its key in the JSON of `label_column`, where they differ."""
    licence: str | None = None
    """Licence of the images, kept with each of them."""


class ArchiveSource(Block):
    """A zip or tar file of class folders. Read member by member, never unpacked."""

    kind: Literal["archive"]
    path: str
    """The file (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz); relative to the run file."""
    inside: str = ""
    """Folder in the archive that holds the class folders; default: its top."""
    class_folders: dict[str, str] = Field(default_factory=dict)
    """Folder name -> class name, where they differ."""
    licence: str | None = None
    """Licence of the images, kept with each of them."""
    max_members: int = Field(default=200_000, ge=1)
    """An archive of more members is refused."""
    max_member_bytes: int = Field(default=64_000_000, ge=1)
    """A member that unpacks to more is quarantined."""
    max_total_bytes: int = Field(default=50_000_000_000, ge=1)
    """An archive that unpacks to more is refused."""
    max_ratio: float = Field(default=100, ge=1)
    """A member that unpacks to more than this many times its packed size is quarantined, if it is larger than 1 MB."""


class KaggleSource(Block):
    """A Kaggle dataset of class folders, downloaded by Kaggle's own client (`KAGGLE_USERNAME` and `KAGGLE_KEY`)."""

    kind: Literal["kaggle"]
    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """`owner/name`."""
    version: int = Field(ge=1)
    """Version number of the dataset, so that the same bytes come again."""
    inside: str = ""
    """Folder in the dataset that holds the class folders; default: its top."""
    class_folders: dict[str, str] = Field(default_factory=dict)
    """Folder name -> class name, where they differ."""
    licence: str | None = None
    """Licence of the images, kept with each of them."""


class CocoSource(Block):
    """Photographs of COCO 2017, sampled by the objects that people have marked in them. They have no labels of ours."""

    kind: Literal["coco"]
    split: Literal["train", "val"] = "train"
    """COCO's own split to sample from: 118,287 or 5,000 images."""
    limit: int = Field(default=1000, ge=1)
    """Images to take, at most."""
    categories: dict[str, list[str]] = Field(default_factory=dict)
    """Class name -> COCO categories (`boat`, `potted plant`) in which it is likely. Images are taken from the classes in turn,
    and from the categories of a class in turn. Default: from all 80 categories in turn."""
    licences: list[int] = Field(default=[4, 5, 7, 8], min_length=1)
    """Ids of COCO's licences that may be used: 1 BY-NC-SA, 2 BY-NC, 3 BY-NC-ND, 4 BY, 5 BY-SA, 6 BY-ND, 7 no known restrictions,
    8 US government. Default: those that allow commercial use and modification."""
    seed: int = 0
    """Another seed, another sample."""
    annotations: str = "https://s3.amazonaws.com/images.cocodataset.org/annotations/annotations_trainval2017.zip"
    """URL, or a file relative to the run file: COCO's zip, or one `instances_*2017.json`."""
    annotations_sha256: Sha256 = "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"
    """Of the bytes at `annotations`."""
    images_url: str = "https://s3.amazonaws.com/images.cocodataset.org"
    """What `/train2017/000000000009.jpg` is added to."""
    fetch: Fetch = Fetch()
    """How they are downloaded."""


class UnsplashSource(Block):
    """Photographs of Unsplash: by its search API, or from the files of its Lite dataset, which its terms point to for more than
    a few."""

    kind: Literal["unsplash"]
    queries: list[str] = Field(min_length=1)
    """Words that are searched, in turn; with `lite`, keywords that a photograph must have one of."""
    limit: int = Field(default=1000, ge=1)
    """Images to take, at most."""
    lite: str | None = None
    """Folder of the unpacked Lite dataset (`photos.tsv000`, `keywords.tsv000`), relative to the run file; `null`: the API."""
    width_px: int = Field(default=1080, ge=64, le=4096)
    """Width at which the image server delivers."""
    min_keyword_confidence: float = Field(default=50, ge=0, le=100)
    """Of `lite`: keywords that Unsplash's own models gave with less are passed over. People's keywords always count."""
    snapshot: str = Field(default="first", pattern=r"^[a-z0-9][-a-z0-9]{0,40}$")
    """Of the API: what a search finds changes from day to day, so it is kept in the store and found again under this word.
    Another word searches anew."""
    orientation: Literal["any", "landscape", "portrait", "squarish"] = "any"
    """Of the API."""
    content_filter: Literal["low", "high"] = "low"
    """Of the API; `high` leaves out more that may offend."""
    application: str = Field(default="pocketvlm", pattern=r"^[\w.-]+$")
    """Name of your application at Unsplash, for `utm_source` in the attribution."""
    api_url: str = "https://api.unsplash.com"
    """The API."""
    fetch: Fetch = Fetch()
    """How they are downloaded."""

    def idle(self) -> dict[str, str]:
        if self.lite is None:
            return {"min_keyword_confidence": "only the Lite dataset has it; remove it, or set lite"}
        why = "only the API has it; remove it, or lite"
        return dict.fromkeys(("snapshot", "orientation", "content_filter", "api_url"), why)


class HubSource(Block):
    """An image dataset of the Hugging Face Hub, or Parquet files of the same kind."""

    kind: Literal["hub"]
    dataset: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """`owner/name` on the Hub."""
    path: str | None = None
    """Instead: a Parquet file or a folder of them, relative to the run file."""
    revision: Commit | None = None
    """Commit of `dataset`, 40 hex digits; a run needs it, so that the same images come again."""
    config: str | None = None
    """Configuration of `dataset`, where it has several."""
    split: str | None = None
    """Split to read; default: the only one, else all of them one after the other. PocketVLM makes its own split."""
    image_column: str | None = None
    """Default: the only column of images."""
    label_column: str | None = None
    """Default: the only column of class labels, else the column `label`. With a teacher there may be none. For `extract`: the
    column that holds all fields, as JSON or as a structure; default: each field has its own."""
    field_columns: dict[str, str] = Field(default_factory=dict)
    """For `extract`: field -> its column, or its key in `label_column`, where they differ."""
    class_names: dict[str, str] = Field(default_factory=dict)
    """Class name, number or text in the dataset -> class name of the task, where they differ."""
    limit: int | None = Field(default=None, ge=1)
    """Images to take, at most: the first ones."""
    licence: str | None = None
    """Licence of the images, kept with each of them; default: that of the dataset's card."""

    def idle(self) -> dict[str, str]:
        why = "only a dataset of the Hub has it; remove it, or set dataset"
        return dict.fromkeys(("revision", "config"), why) if self.dataset is None else {}

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("set either dataset (on the Hub) or path (Parquet files)")
        return self


Source = Annotated[
    DigitsSource | FolderSource | RecordsSource | ArchiveSource | KaggleSource | CocoSource | UnsplashSource | HubSource,
    Field(discriminator="kind"),
]
