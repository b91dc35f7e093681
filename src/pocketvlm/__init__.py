"""PocketVLM: images in, a small vision-language model for phones out, measured as shipped."""
