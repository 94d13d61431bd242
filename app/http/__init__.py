"""What every route shares: errors, authentication, pages, documentation, health."""
