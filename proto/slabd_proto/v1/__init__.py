"""Version 1 of the wire contract, generated from proto/slabd/v1 by proto/generate.py."""
