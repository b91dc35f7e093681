"""A person's check of the labels: which images, the page to look at them, and the way through Label Studio."""
