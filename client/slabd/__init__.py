"""slabd: blocks of a large shared-memory heap, leased from a daemon."""
