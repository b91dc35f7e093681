"""The page on which a person tries a release: camera and upload, its types and the untrained base side by side."""
