"""The wire and shared-memory contract of slabd: what the daemon and its clients both have to know. No I/O."""
