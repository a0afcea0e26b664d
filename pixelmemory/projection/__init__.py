"""The projection: the log's events as rows of Pixeltable tables.

In the order that data flows::

    fold         events of a batch -> one change a memory (pure)
    preparation  a run of events, folded and embedded
    projector    reads the log, prepares, applies, moves the watermark
    apply        changes -> inserts, updates and deletes, with the checkpoint, in one transaction
    copy_rows    the one slow statement of Pixeltable's insert, replaced by COPY
    poison       finds the event that a batch was refused for
    layout       which tables there are; made, registered, repaired
    embed        the embedding function behind each table's index
    graph        when a table has its HNSW graph, and the planner its statistics
    read_sql     reads by SQL; public_api: the same reads through Pixeltable's API alone
    internals    every internal of Pixeltable that the above use

Pixeltable is imported in this package alone, and nothing of it before a store is opened.
"""
