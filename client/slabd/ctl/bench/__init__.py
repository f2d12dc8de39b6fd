"""`slabctl bench`: what slabd costs on this machine, beside what people would use instead.

Theory of operation. The parent measures nothing itself: it starts a private daemon and child processes, says whose turn
it is, and makes tables of what comes back.

    parent ──Open(case)──► worker:   opens every peer of the case, warm and side by side
       ▲ ◄─Opened──                  (one that cannot is left out, with its reason)
       ├───Time(peer)──► worker:     does that peer's round over and over for one turn, and times each
       │ ◄─Timed──
       └───Carry(peer)──► producer ═══ frames ═══► consumer      the hand-off has a pair of processes of its own

1. All peers of a case do the same work, in the same process, in turns: a slow moment of the machine hits all of them.
   Who begins changes from repeat to repeat. The first turn of each is a warm-up and does not count.
2. Nothing is said about slabd that is not measured: how many gRPC calls a round makes is read off its counters.
   When leases stop being calls, only the numbers change.
3. Children hear no Ctrl-C. They end when the parent's end of their pipe is closed, by itself or by its death, after the
   turn they are in; so what they have in /dev/shm is always unlinked. The parent removes what iceoryx2 leaves there.
4. `model`, `statistics`, `options`, `catalogue` and `show` are pure; `peers/`, `worker` and `handoff` run in children;
   `processes`, `turns` and `figures` are the parent's.
"""
