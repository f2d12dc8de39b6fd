"""slabctl: what operators type. It asks the daemon over gRPC, and shows the answer as a table or as JSON.

`__main__` takes the command line to its exit code; `commands/` has one module for each noun; `demo/` is the main job on
real files, `bench/` what it costs beside others. Nothing here decides anything about memory.
"""
