"""The page on which a person tries a release: camera and upload, its types and the base before training side by side."""
