"""The service: HTTP, rows and files. It knows specs and artifacts, and never imports torch."""
