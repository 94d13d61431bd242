"""Projects: what keys open, each by itself."""
