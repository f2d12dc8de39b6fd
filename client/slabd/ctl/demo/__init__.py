"""`slabctl demo`: the main job on real files, and the proof that nothing is lost, wrong or left behind.

Theory of operation. The parent starts a private daemon and four kinds of processes never share anything but the heap:

    parent ──Read──► reader:  leases blocks, readinto() from the file into the block, shares, releases its own lease
       ▲ ◄─Shared──            (so that a block now lives by its handle alone)
       ├───Digest──► worker:  opens the handles, SHA-256 over the read-only view in place, releases
       │ ◄─Digests──           (the last holder is gone: the block is free)
       └───Check───► checker: SHA-256 straight from the file; it does not even import slabd

1. Each child has a pipe of its own, and the parent is the only one at its other end: a child that is killed can hold no
   lock that others need. At most a few batches are under way per child, so no pipe ever fills up.
2. The reader keeps nothing that it waits for others to finish with, so a full heap only ever makes it wait: the workers
   empty it. Its requests are first come, first served.
3. When a worker dies, blocks it had open are free at once; those files are read again. Handles it had not opened yet
   still stand, and go to another worker. Which of the two it was, opening tells: the handle is stale, or it is not.
4. When the reader dies, what it had leased is free at once, and is read again by the next one. Handles it had made and
   not told of are lost; they expire, so after such a death the count at the end may have to wait for them.
5. `work` decides all this in plain functions; `run` and `children` do the I/O; `scene` kills a worker, once, while the
   daemon itself says which blocks that worker has open, and while others' blocks are alive that must not be touched.
"""
