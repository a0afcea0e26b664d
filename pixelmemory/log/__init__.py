"""The write-ahead log: what a store is rebuilt from."""
