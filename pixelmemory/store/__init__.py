"""One store on this machine: its lock, its manifest, how it is opened, erased from and compacted."""
