"""What a memory is: its events, the rules for them, and what they come to. Pure: no I/O, no thread, no host."""
