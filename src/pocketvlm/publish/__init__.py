"""A release of the store as repositories on the Hugging Face Hub: what may go there, what is said of it, and the upload."""
