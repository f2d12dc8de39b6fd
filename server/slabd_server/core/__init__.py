"""The core of slabd: every decision, as plain synchronous functions.

Nothing here knows the clock (methods take `now`), asyncio, gRPC, threads, files or the operating system. A
method either
raises an error of `errors` and has changed nothing, or has changed everything and returns a frozen record, effects
included; the caller performs the effects afterwards.
"""
