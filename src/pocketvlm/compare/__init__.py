"""Finished runs side by side: settings, data, numbers, and each common test image."""
