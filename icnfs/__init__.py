"""icnfs: a network of independent storage providers, mounted as one local POSIX drive.

The layers, from the top: `cli`, `control`, `fuse`, `vfs`, `volume`, `state` beside `transfer`, `config`, `placement`,
`providers`, `format`, `crypto` beside `erasure`, and `errors` and `limits` at the bottom.  Imports point down only.
"""
