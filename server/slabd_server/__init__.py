"""The slabd daemon: a pure core that decides, and a thin ring of I/O around it."""

__version__ = "0.1.0"
